"""A matrix runs, fails in parts, is killed and resumed, and joins with other runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli import app
from fedproxy_secure.comparison import Cell
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.join import join
from fedproxy_secure.matrix import _no_ceiling, _note_failure, cell_config, cells_of, matrix
from fedproxy_secure.report.report import Report
from fedproxy_secure.runs import run
from tests.support.tiny import tiny_settings

TIMED = ("seconds_federate", "seconds_total", "seconds_over_unprotected", "peak_memory_bytes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        seeds=[0, 1],
        fusion={"rule": "fedavg"},
        matrix={
            "protections": ["unsafe_plaintext", "masking"],
            "remove_ratios": [0.5],
            "suite": "none",
        },
    )


def untimed(report: Report) -> list:
    """Configurations without what another run measures anew."""
    return [
        replace(c, measures=tuple(m for m in c.measures if m.key not in TIMED))
        for c in report.configurations
    ]


def test_cells_are_every_combination_and_what_cannot_run_is_said(settings):
    swept = {
        "protections": ["masking", "ckks"],
        "remove_ratios": [0.25, 0.5],
        "fusions": ["fedavg", "h_ties_coordinate"],
    }
    cells, refused = cells_of(parse_config({**settings, "matrix": swept}))
    assert len(cells) == 2 * (2 * 2 * 2 - 2)
    assert len(refused) == 2
    assert refused[0].startswith("ckks-0.25-h_ties_coordinate-lora: protect.granularity=coordinate")


def test_a_matrix_that_cannot_run_at_all_says_so(settings):
    two_clients = {**settings, "data": {**settings["data"], "clients": settings["data"]["clients"][:2]}}
    changed = parse_config({**two_clients, "matrix": {"protections": ["masking"]}})
    with pytest.raises(ConfigError, match="no configuration can run"):
        cells_of(changed)


def test_a_cell_has_its_own_settings_and_nothing_else_changes(settings):
    config = parse_config(
        {**settings, "matrix": {"protections": ["masking_dp3"], "fusions": ["h_ties_coordinate"]}}
    )
    cells, _ = cells_of(config)
    own = cell_config(config, cells[0])
    assert (own.protect.scheme, own.protect.granularity) == ("masking", "coordinate")
    assert (own.privacy.unit, own.privacy.target_epsilon) == ("record", 3.0)
    assert own.audit.record
    assert own.seeds == (cells[0].seed,)
    assert own.local == config.local


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_matrix_killed_twice_resumes_to_the_same_report(settings, tmp_path: Path):
    config = parse_config(settings)
    whole = matrix(config, tmp_path / "whole")
    assert [c.name for c in whole.configurations] == ["no protection, 50% removed", "masking, 50% removed"]
    for configuration in whole.configurations:
        assert configuration.seeds == (0, 1)
        assert configuration.measure("accuracy_fused").estimate.n == 2
    assert whole.configurations[0].unsafe
    assert Report.load(tmp_path / "whole") == whole

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "fedproxy_secure", "matrix", str(file), "--out", str(out), "--resume"]
    for done in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(out.glob("cells/*/cell.json"))) < done and process.poll() is None:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = matrix(config, out, resume=True)
    assert untimed(resumed) == untimed(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_cell_stands_in_the_report_and_loses_nothing(settings, tmp_path: Path):
    raw = {
        **settings,
        "seeds": [0],
        "privacy": {"target_delta": 0.5},
        "matrix": {**settings["matrix"], "protections": ["masking", "masking_dp8"]},
    }
    report = matrix(parse_config(raw), tmp_path)
    fine, failed = report.configurations
    assert fine.measure("gap_closed") is not None or fine.measure("accuracy_centralised") is not None
    assert not fine.failed
    assert failed.measures == ()
    assert "target_delta=0.5: must be < 1 / the client's number of records" in failed.failed[0]


def test_a_ceiling_that_failed_is_named_with_its_reason(settings, tmp_path: Path):
    config = parse_config(settings)
    _note_failure(
        tmp_path, Cell(method="centralised_llm", remove_ratio=None, seed=1), "out of memory", again=True
    )
    assert _no_ceiling(config, tmp_path) == [
        "gap closed: centralised_llm-seed0 failed: did not finish",
        "gap closed: centralised_llm-seed1 failed: out of memory",
    ]


def test_runs_of_the_same_settings_join_over_their_seeds(settings, tmp_path: Path):
    for seed in (0, 1):
        run(parse_config({**settings, "seeds": [seed]}), tmp_path / str(seed))
    report = join([tmp_path / "0", tmp_path / "1"], tmp_path / "both", command="typed")
    (configuration,) = report.configurations
    assert configuration.seeds == (0, 1)
    assert configuration.measure("accuracy_fused").estimate.n == 2
    assert configuration.measure("token_auc") is None
    assert any("no suite of attacks ran" in line for line in report.not_measured)
    assert json.loads((tmp_path / "both" / "report.json").read_text())["command"] == "typed"


def test_what_is_no_run_is_not_joined(tmp_path: Path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        join([tmp_path], tmp_path / "out", command="")
    with pytest.raises(RunFolderError, match="is one of the folders to join"):
        join([tmp_path], tmp_path, command="")


def test_a_dry_run_counts_cells_and_says_what_is_left_out(settings, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    shown = CliRunner().invoke(app, ["matrix", str(file), "--dry-run"])
    assert shown.exit_code == 0
    assert "cells: 4: 2 configurations, 2 seeds" in shown.stdout
