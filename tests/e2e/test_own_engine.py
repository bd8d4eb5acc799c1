"""An engine of one's own, as docs/extend.md describes it: a function that `run` takes."""

import inspect

import pytest

import fedproxy_secure as fp
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.flower.client_app import app
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.secagg.provision import provision
from tests.support.tiny import tiny_settings


def engine(calls):
    def my_engine(job, proxy_folder, initial, *, run_folder=None, on_round=None, on_client=None):
        calls.append(job.seed)
        grid = InProcessGrid(app, len(job.clients))
        return serve(grid, job, proxy_folder, initial, run_folder=run_folder, on_round=on_round)

    return my_engine


def settings(tmp_path, **sections):
    return parse_config(tiny_settings(tmp_path / "work", clients=3, federate={"rounds": 2}, **sections))


def test_a_run_takes_an_engine_of_ones_own_in_place_of_that_of_the_settings(tmp_path):
    calls = []
    config = settings(tmp_path, protect={"scheme": "unsafe_plaintext"})
    report = run(config, tmp_path / "out", federate=engine(calls))
    assert calls == list(config.seeds)
    assert report.configurations[0].measures
    assert len((tmp_path / "out/seed-0/federation/rounds.jsonl").read_text().splitlines()) == 2


def test_its_clients_need_keys_where_the_protection_does(tmp_path):
    config = settings(tmp_path, protect={"scheme": "masking"})
    with pytest.raises(ConfigError, match="keys"):
        run(config, tmp_path / "no keys", federate=engine([]))
    keys = tmp_path / "keys"
    provision([client.name for client in config.data.clients], keys)
    run(
        settings(tmp_path, protect={"scheme": "masking", "keys": str(keys)}),
        tmp_path / "out",
        federate=engine([]),
    )


def test_run_and_tune_alone_take_one():
    takes = {
        n
        for n in ("run", "tune", "compare", "matrix")
        if "federate" in inspect.signature(getattr(fp, n)).parameters
    }
    assert takes == {"run", "tune"}
