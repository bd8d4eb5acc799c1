"""What tests of the audit log share: a finished run, and a copy of it to tamper with."""

import pytest

from tests.support.audited_run import copied, finished_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished, tmp_path):
    return copied(finished, tmp_path / "run")
