"""Servers that deviate, against clients in Flower's own processes."""

import json

import pytest

from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.launched import federate_launched
from tests.support.hostile_server import READ
from tests.support.recorded import prepared


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flowers_processes_answer_two_messages_at_once_once(tmp_path, monkeypatch):
    """Also where a SuperNode answers them one after another, as Flower 1.41 does within one of its runs.

    Overlapping processes are in `tests/security/test_parallel_messages.py`; this shows that the workers
    beside a deployment's SuperNodes find and use the journal and their policy.
    """
    monkeypatch.setenv("PYTHONPATH", ".")
    job, proxy, initial = prepared(
        tmp_path,
        clients=4,
        audit={"record": False, "canaries": [], "holdout": 0.0},
        federate={"rounds": 1, "engine": "deployment", "timeout_s": 500.0},
    )
    with with_keys(job) as keyed:
        federate_launched(
            keyed, proxy, initial, run_folder=tmp_path / "run", server="tests.support.hostile_server"
        )
    seen = json.loads((tmp_path / "run" / READ).read_text())
    assert seen["twice"] == []
    assert "read" not in seen
    assert "0 clients answered twice" in seen["stopped"]
