"""Flower's simulation and deployment run the same apps and end and record as the in-process engine does."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedproxy_secure.data.planted import draw_canaries
from fedproxy_secure.errors import DataError
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.launch.processes import quiet_environment
from fedproxy_secure.flower.launched import _token_for_ray
from fedproxy_secure.record.private import read_private
from fedproxy_secure.record.view import view
from tests.support.recorded import AUDIT, prepared
from threat_models import get

LOOPBACK = {"0100007F", f"{0:024X}01000000", "0000000000000000FFFF00000100007F"}


def on_engine(job, engine, rounds=2):
    asked = {"engine": engine, "timeout_s": 500.0, "rounds": rounds}
    return job.changed(seed=1, federate=job.federate.model_copy(update=asked))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("engines"), clients=3)


def recorded(world, engine, rounds, folder, **watch):
    """The last state, what the server saw, and what clients wrote down, of a masked run."""
    job, proxy, initial = world
    place = folder / engine / "federation"
    place.mkdir(parents=True)
    final = federate(on_engine(job, engine, rounds), proxy, initial, run_folder=place, **watch)
    states = [read_private(place / "transcript", c.name) for c in job.clients]
    return final, view(folder / engine, get("server")), states


def listening():
    """The local addresses, in the kernel's own form, at which processes below this one listen."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = local.split(":")[0]
    found = set()
    for process in descendants():
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):  # it has ended
                found |= {sockets[target] for target in (os.readlink(entry),) if target in sockets}
    return found


def descendants():
    """The processes that this one has started, and all that those have."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[place.name] = (place / "stat").read_text().rpartition(")")[2].split()[1]
    own, found = str(os.getpid()), set()
    for process in parents:
        line = [process]
        while (parent := parents.get(line[-1])) is not None and line[-1] != own:
            line.append(parent)
        if own in line[1:]:
            found.add(process)
    return found


def environments_of_ray():
    """The environments of Ray's processes below this one."""
    found = []
    for process in descendants():
        with suppress(OSError):
            if b"--gcs-address=" in Path(f"/proc/{process}/cmdline").read_bytes():
                pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")[:-1]
                found.append(dict(pair.split("=", 1) for pair in pairs))
    return found


def joins(address, environment, *, timeout_s):
    """Whether a process with this environment gets into a Ray cluster of this machine in this time."""
    program = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    with suppress(subprocess.TimeoutExpired):
        asked = [sys.executable, "-c", program, address]
        ended = subprocess.run(asked, env=environment, capture_output=True, timeout=timeout_s, check=False)
        return ended.returncode == 0
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nobody_joins_a_simulations_ray_cluster_without_the_runs_secret(tmp_path):
    stranger = quiet_environment(tmp_path / "flwr")
    own = {**stranger, **_token_for_ray(tmp_path / "ray.token")}
    program = (
        "import ray; c = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False); "
        "print('at', c.address_info['gcs_address'], flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], env=own, text=True, **pipes) as cluster:
        try:
            line = next(one for one in cluster.stdout if one.startswith("at "))
            began = time.monotonic()
            assert joins(line.split()[1], own, timeout_s=200)
            longer_s = 5 + 1.5 * (time.monotonic() - began)  # without the secret nobody is answered
            assert not joins(line.split()[1], stranger, timeout_s=longer_s)
        finally:
            cluster.stdin.close()
            cluster.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("engine", "rounds"),
    # one round shows every step; tests/network runs a deployment for every change
    [
        pytest.param("simulation", 1, marks=pytest.mark.change),
        ("deployment", 1),
        pytest.param("deployment", 2, marks=pytest.mark.nightly),
    ],
)
def test_an_engine_of_flowers_own_ends_and_records_like_the_in_process_one(world, tmp_path, engine, rounds):
    told, heard, rays = [], set(), []

    def note(line):
        told.append(line)
        heard.update(listening())
        rays.extend(environments_of_ray())

    expected, seen, written = recorded(world, "in_process", rounds, tmp_path)
    final, also_seen, also_written = recorded(world, engine, rounds, tmp_path, on_round=note)
    np.testing.assert_allclose(final.adapter, expected.adapter, atol=1e-6)
    assert final.round == rounds
    assert [line["round"] for line in told] == list(range(rounds))
    assert heard, "what it started does listen"
    assert heard <= LOOPBACK
    assert {one["RAY_AUTH_MODE"] for one in rays} <= {"token"}
    assert engine == "simulation" or not rays
    assert also_seen.cohorts == seen.cohorts
    assert also_seen.masked.keys() == seen.masked.keys()
    for number in range(rounds):
        one, two = seen.sums[number].segments, also_seen.sums[number].segments
        np.testing.assert_allclose(two["update"], one["update"], atol=4e-6)
        np.testing.assert_allclose(also_seen.adapters[number], seen.adapters[number], atol=1e-6)
    for state in written:
        assert state.canaries == draw_canaries(state.client, AUDIT["canaries"], seed=1)
    for one, two in zip(written, also_written, strict=True):
        assert (two.train, two.holdout, two.canaries) == (one.train, one.holdout, one.canaries)
        for number in range(rounds):
            assert two.rounds[number].used.tolist() == one.rounds[number].used.tolist()
            np.testing.assert_allclose(two.rounds[number].update, one.rounds[number].update, atol=1e-6)

    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_clients_error_on_its_records_ends_a_deployment_and_stays_in_its_own_log(world, tmp_path):
    """The server learns that a client cannot use its records, and not what they say."""
    job, proxy, initial = world
    lonely = job.clients[1].model_copy(update={"train_records": 1})
    job = job.changed(clients=(job.clients[0], lonely, job.clients[2]))
    with pytest.raises(DataError, match="records or messages cannot be used; its own log has the reason"):
        federate(on_engine(job, "deployment"), proxy, initial, run_folder=tmp_path)
    logs = tmp_path / "flower"
    assert "audit.holdout=0.3: leaves client c1 0 of 1" in (logs / "worker-1.log").read_text()
    assert "audit.holdout" not in (logs / "run.log").read_text()


def test_the_clients_app_starts_without_torch():
    check = "import sys, fedproxy_secure.flower.client_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
