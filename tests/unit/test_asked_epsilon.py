"""Whoever asks for an epsilon gets differential privacy, or a refusal."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import load_config, parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.sweeps.matrix_cells import cell_config, cells_of

pytestmark = pytest.mark.torch
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LINE = "has no effect with privacy.unit=none, which adds no noise; set privacy.unit to record or client"


@pytest.mark.parametrize("asked", ["target_epsilon=3", "target_epsilon=8", "max_epsilon=9"])
@pytest.mark.parametrize("command", ["run", "run --dry-run", "compare", "compare --dry-run", "provision"])
def test_an_epsilon_without_differential_privacy_is_refused(command, asked, tmp_path):
    words = [*command.split(), "quickstart", "--set", f"privacy.{asked}", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert f"privacy.{asked}: {LINE}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_settings_ask_for_no_epsilon_in_vain(file):
    load_config(file).check_epsilon()


def swept(*protections, **privacy):
    matrix = {"protections": [{"scheme": "masking", **p} for p in protections], "remove_ratios": [0.5]}
    return parse_config({"privacy": privacy, "matrix": matrix})


def test_a_matrix_without_private_cells_may_not_ask_for_an_epsilon():
    with pytest.raises(ConfigError, match=r"privacy\.target_epsilon=3: has no effect"):
        cells_of(swept({}, target_epsilon=3))


def test_a_swept_epsilon_needs_no_unit_and_every_cell_can_be_run_alone():
    config = swept({}, {"epsilon": 2}, target_epsilon=3, max_epsilon=4)
    cells, refused = cells_of(config)
    assert (len(cells), refused) == (2, [])
    for cell in cells:
        settings = cell_config(config, cell)
        again = parse_config(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json"))))
        again.check_epsilon()
        assert settings.privacy.target_epsilon == (cell.protection.epsilon or 8)


def test_an_epsilon_in_a_recipe_without_a_unit_refuses_that_cell():
    recipe = {"recipe": "strict", "settings": {"privacy": {"target_epsilon": 3}}}
    cells, (line,) = cells_of(swept({}, recipe))
    assert len(cells) == 1
    assert "privacy.target_epsilon=3: has no effect with privacy.unit=none" in line


def test_the_resolved_settings_of_a_run_without_privacy_can_be_run_again():
    parse_config(parse_config({}).model_dump(mode="json")).check_epsilon()
