"""Flower's simulation and deployment run the same apps and end with the in-process engine's adapter."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.adapters import attach
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.llm import load_llm
from tests.support.tiny import tiny_settings


def on_engine(job, engine):
    return replace(
        job, federate=job.federate.model_copy(update={"engine": engine, "timeout_s": 500.0, "rounds": 2})
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    job = FederationJob.from_config(parse_config(tiny_settings(folder)), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    initial = initial_state(attach(model, job.adapter, seed=0))
    return job, folder / "llm", initial


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["simulation", "deployment"])
def test_an_engine_of_flowers_own_ends_like_the_in_process_one(world, tmp_path, engine):
    job, folder, initial = world
    expected = federate(on_engine(job, "in_process"), folder, initial)
    seen = []
    final = federate(
        on_engine(job, engine), folder, initial, run_folder=tmp_path, on_round=lambda m: seen.append(m)
    )
    np.testing.assert_allclose(final.adapter, expected.adapter, atol=1e-6)
    assert final.round == 2
    assert [line["round"] for line in seen] == [0, 1]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_clients_one_line_error_arrives_through_a_deployment(world, tmp_path):
    job, folder, initial = world
    lonely = job.clients[1].model_copy(update={"train_records": 1})
    job = replace(job, clients=(job.clients[0], lonely, job.clients[2]))
    with pytest.raises(DataError, match="client c1: has 1 training records"):
        federate(on_engine(job, "deployment"), folder, initial, run_folder=tmp_path)


def test_the_clients_app_starts_without_torch():
    check = "import sys, fedproxy_secure.flower.client_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
