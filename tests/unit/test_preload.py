"""Workers end with the process that started them, however that ended."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from tests.support.processes import ends_within

POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from fedproxy_secure.runtime.preload import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 300).result()
"""


def test_a_worker_does_not_outlive_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        assert ends_within(worker, seconds=20)


def test_a_python_whose_forkserver_runs_the_code_of_other_users_is_not_supported():
    """CVE-2022-42919, mended in 3.11.1."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    supported = SpecifierSet(project["project"]["requires-python"])
    assert ("3.11.0" in supported, "3.11.1" in supported) == (False, True)
