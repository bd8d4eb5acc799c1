"""What cannot be corrected once a run has begun is checked before anything is written or trained."""

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments import attacked, matrix
from fedproxy_secure.experiments.attacked import check_attacks

pytestmark = pytest.mark.torch
MISSPELT = ["--set", 'attacks.views=["server", "clinet"]']


@pytest.mark.parametrize(
    "command",
    [
        ["matrix", "demo_matrix"],
        ["matrix", "demo_matrix", "--dry-run"],
        ["run", "quickstart", "--suite", "smoke"],
        ["run", "quickstart", "--suite", "smoke", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_misspelt_view_ends_a_command_before_it_writes_anything(command, tmp_path):
    done = CliRunner().invoke(app, [*command, *MISSPELT, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert done.output.startswith(
        "error: attacks.views=clinet: is not a known threat model; did you mean 'client'?"
    )
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_views_do_not_matter_where_nothing_is_attacked():
    check_attacks(parse_config({"attacks": {"suite": "none", "views": ["clinet"]}}))


def test_a_matrix_without_an_installed_suite_ends_before_it_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(attacked, "SUITES", "fedproxy_secure.no_such_group")
    with pytest.raises(ConfigError, match=r"attacks\.suite=smoke: no suite is installed; set it to none"):
        matrix.matrix(parse_config({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
