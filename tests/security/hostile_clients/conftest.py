"""A job with one client that answers anything it likes."""

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from tests.support.tiny import tiny_settings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of five clients and one round, the model's folder and the initial state."""
    folder = tmp_path_factory.mktemp("hostile")
    raw = tiny_settings(folder, clients=5, federate={"rounds": 1}, fusion={"rule": "fedavg"})
    job = FederationJob.from_config(parse_config(raw), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))
