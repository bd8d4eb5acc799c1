"""Flower's processes end with what started them, and none of an earlier call writes beside a later one.

None takes a module from the folder that it is started in, or sends requests to this machine to a proxy.
"""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.flower import launched
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.launch.parent import VARIABLE
from fedproxy_secure.flower.launch.processes import module, without_proxy_to_loopback
from tests.support.processes import ends_within
from tests.support.recorded import prepared

STARTS = """
import os, sys
from pathlib import Path
from fedproxy_secure.flower.launch.processes import alone_in, process, terminated_like_interrupted

logs = Path(sys.argv[1])
with terminated_like_interrupted(), alone_in(logs) as lock:
    with process("sleep", ["300"], os.environ, logs / "log", lock) as child:
        print(child.pid, flush=True)
        child.wait()
"""


def test_what_was_started_is_stopped_by_a_sigterm_to_whoever_started_it(tmp_path):
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(20) == 128 + signal.SIGTERM
        assert ends_within(child, seconds=1)


def test_a_folder_in_which_processes_of_a_killed_run_still_write_is_refused(tmp_path):
    job, proxy, initial = prepared(tmp_path, clients=3)
    job = job.changed(federate=job.federate.model_copy(update={"engine": "deployment"}))
    (tmp_path / "run" / "flower").mkdir(parents=True)
    with (tmp_path / "run" / "flower" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="of an earlier, killed run still write here"):
            federate(job, proxy, initial, run_folder=tmp_path / "run")


def test_a_module_that_is_run_is_not_taken_from_the_folder_that_it_is_started_in(tmp_path):
    (tmp_path / "this.py").write_text("print('of this folder')")
    said = subprocess.run(
        [sys.executable, *module("this")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("The Zen of Python")


def test_node_and_worker_of_a_client_are_run_so(tmp_path):
    job, _, _ = prepared(tmp_path, clients=3)
    programs = launched._node(job, 0, 1, tmp_path)
    for name, run in (("supernode", launched.NODE), ("worker", launched.WORKER)):
        assert programs[name][:3] == module(run)


def test_hosts_that_no_proxy_is_asked_for_are_named_once_however_often_they_are_made(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "a.example, localhost")
    monkeypatch.setenv("no_proxy", "a.example,b.example")
    once = without_proxy_to_loopback()
    assert once["NO_PROXY"] == once["no_proxy"] == "127.0.0.1,localhost,a.example,b.example"
    for name, value in once.items():
        monkeypatch.setenv(name, value)
    assert without_proxy_to_loopback() == once


def test_a_process_whose_starter_ended_before_it_looked_ends_too():
    """It is killed while the process still imports, and a lock that both hold would never be free again."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    program = (
        "import time\nfrom fedproxy_secure.flower.launch.parent import end_with_parent\n"
        "end_with_parent()\ntime.sleep(60)\n"
    )
    environment = {**os.environ, VARIABLE: str(gone.pid)}
    orphan = subprocess.run([sys.executable, "-c", program], env=environment, timeout=50, check=False)
    assert orphan.returncode == -signal.SIGTERM
