"""An owner and three sites, each with folders and processes of its own, joined by the commands of a person.

They talk over TLS on loopback; networks with addresses of their own are in `tests/network`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import yaml

from fedproxy_secure.config import parse_config
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.launch.processes import free_port
from tests.support.tiny import tiny_settings

PROGRAM = [sys.executable, "-m", "fedproxy_secure", "deploy"]
SITES = ("c0", "c1", "c2")


def deploy(*words, code=0):
    """Run one command and return what it printed; it must end with this code."""
    command = [*PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def running(*words, log):
    """Run a command in the background; kill it and all that it started at the end."""
    with log.open("ab") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*PROGRAM, *map(str, words)]
        started = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(60)
        finally:
            started.kill()


@pytest.fixture
def federation(tmp_path):
    """An owner's folder with kits that all three sites have accepted; also the settings of the job."""
    settings = tiny_settings(
        tmp_path,
        seeds=[0],
        protect={"scheme": "masking", "weights": "self"},
        fusion={"rule": "h_ties"},
        federate={"rounds": 3, "timeout_s": 180.0, "min_clients": 3},
    )
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    owner = tmp_path / "owner"
    deploy("init", tmp_path / "job.yaml", "--address", f"127.0.0.1:{free_port()}", "--out", owner)
    told = []
    for site in SITES:
        printed = deploy("join", "--name", site, "--out", tmp_path / site)
        told += ["--fingerprint", printed.split("fingerprint: ")[1].strip()]
    requests = [tmp_path / site / f"{site}.request.json" for site in SITES]
    deploy("approve", owner, *requests, *told)
    deploy("kit", owner)
    key = next(word for word in (owner / "card.txt").read_text().split() if len(word) == 64)
    for site in SITES:
        deploy("accept", tmp_path / site, owner / "kits" / f"{site}.kit.json", "--owner", key)
        client = tmp_path / site / "client.yaml"  # the proposal does not say where the records lie
        text = client.read_text().replace(f"{site}.{{split}}", f"{site[1:]}.{{split}}")
        client.write_text(text.replace("data_root: null", f"data_root: {settings['data']['root']}"))
    return owner, settings


def wait_for_rounds(owner, count):
    lines = owner / "run" / "seed-0" / "federation" / "rounds.jsonl"
    deadline = time.monotonic() + 500  # less than the test's own limit; a minute where nothing else runs
    while not lines.exists() or len(lines.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.nightly  # five minutes; for every change `tests/network` deploys on networks of their own
@pytest.mark.timeout(900)
def test_a_deployment_ends_as_one_machine_does_though_owner_and_a_site_are_killed(federation, tmp_path):
    owner, settings = federation
    with ExitStack() as stack:
        nodes = {
            site: stack.enter_context(running("start", tmp_path / site, log=tmp_path / f"{site}.log"))
            for site in SITES
        }
        with running("run", owner, log=tmp_path / "owner.log") as first:
            wait_for_rounds(owner, 1)
            first.kill()
            nodes["c1"].kill()
        stack.enter_context(running("start", tmp_path / "c1", log=tmp_path / "c1.log"))
        with running("run", owner, log=tmp_path / "owner.log") as second:
            assert second.wait(600) == 0, (tmp_path / "owner.log").read_text()
        site_log = (tmp_path / "c0" / "logs" / "worker.log").read_text()
    assert "Traceback" not in site_log
    run(parse_config(settings), tmp_path / "twin")
    found, expected = (
        ServerState.load(folder / "seed-0" / "federation" / "state.safetensors")
        for folder in (owner / "run", tmp_path / "twin")
    )
    assert found.round == expected.round == 3
    np.testing.assert_array_equal(found.adapter, expected.adapter)
    lines = (tmp_path / "c0" / "logs" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {event["outcome"] for event in events} == {"done"}
