"""A signed run, its bundle's files, and the check of what became of them."""

import pytest
from typer.testing import CliRunner

from fedproxy_secure.bundle.archive import archive_bytes
from fedproxy_secure.bundle.build import bundle_files
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.cli.app import app
from tests.support.bundles import RESEARCH
from tests.support.signed_run import signed_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return signed_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def files(run):
    return bundle_files(read_source(run.folder, run.key), RESEARCH)


@pytest.fixture
def check(run, tmp_path):
    """Pack files or take bytes, run the command, and return exit code and lines."""

    def checked(packed, key=None):
        out = tmp_path / "b.zip"
        out.write_bytes(packed if isinstance(packed, bytes) else archive_bytes(packed))
        arguments = ["evidence", "verify", str(out), "--key", (key or run.public).hex()]
        done = CliRunner().invoke(app, arguments)
        assert not done.exception or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output.splitlines()

    return checked
