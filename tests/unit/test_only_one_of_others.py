"""A process of another user in a folder is found, and not stopped."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fedproxy_secure.deploy.running import stop, the_only_one
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.files.names import RUNNING
from fedproxy_secure.runtime.only_one import running


def test_a_folder_runs_one_process_which_is_found_while_it_runs(tmp_path):
    assert running(tmp_path) is None
    with the_only_one(tmp_path, "a node"):
        assert running(tmp_path) is not None
        with (
            pytest.raises(RunFolderError, match="a node runs here already"),
            the_only_one(tmp_path, "a node"),
        ):
            pass
    assert running(tmp_path) is None
    assert stop(tmp_path) is False


@contextmanager
def held_by_another_user(folder):
    """Name a process that this one may not end as the holder of a folder, while the block lasts."""
    if os.geteuid() != 0:
        (folder / RUNNING).write_text(json.dumps({"pid": 1}))
        yield
        return
    folder.chmod(0o755)
    with subprocess.Popen(["sleep", "60"], user=1) as other:
        (folder / RUNNING).write_text(json.dumps({"pid": other.pid}))
        assert running(folder) == other.pid  # loads what only root may read
        os.seteuid(2)  # root may end any process
        try:
            yield
        finally:
            os.seteuid(0)
            other.kill()


def test_a_process_of_another_user_is_not_stopped_and_that_is_one_line():
    with TemporaryDirectory() as place:
        folder = Path(place)
        with the_only_one(folder, "a node"), held_by_another_user(folder):
            assert running(folder) is not None
            with pytest.raises(RunFolderError, match=r"is another user's; stop it as that user$"):
                stop(folder)
