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

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.matrix import attack_jobs, matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.sweeps.matrix_cells import cell_config, cells_of, note_failure, title_of
from fedproxy_secure.experiments.sweeps.matrix_report import ceilings_of, configurations_of, no_ceiling
from fedproxy_secure.experiments.sweeps.method_cells import cell_file
from fedproxy_secure.protect.plaintext import Plaintext
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import CEILING_NOT_COUNTED
from fedproxy_secure.report.sweep import labelled
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import BASELINES, CELL_DONE, CELL_FAILED
from tests.support.sample_report import sample_report
from tests.support.tiny import tiny_settings

PLAINTEXT, MASKING = {"scheme": "unsafe_plaintext"}, {"scheme": "masking"}
BY_COORDINATE = {"rule": "h_ties", "granularity": "coordinate"}
TIMED = ("seconds_federate", "seconds_total", "seconds_over_unprotected", "peak_memory_bytes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        seeds=[0, 1],
        fusion={"rule": "fedavg"},
        attacks={"suite": "none"},
        matrix={"protections": [PLAINTEXT, MASKING], "remove_ratios": [0.5], "jobs": 1},
    )


def untimed(report: Report) -> list:
    """Configurations without what another run measures anew."""
    return [
        replace(c, measures=tuple(m for m in c.measures if m.key not in TIMED))
        for c in report.configurations
    ]


def test_attacks_of_the_last_cell_use_the_cores_that_nothing_else_needs(settings, tmp_path):
    config = parse_config(settings)
    cells, _ = cells_of(config)
    ceilings = ceilings_of(config)
    assert (len(cells), len(ceilings)) == (4, 2)
    jobs = [attack_jobs(config, tmp_path, 4)]
    for cell in cells[:3]:
        if cell is cells[0]:
            note_failure(tmp_path / cell.folder, "cannot run")
        else:
            (tmp_path / cell.folder).mkdir(parents=True)
            (tmp_path / cell.folder / CELL_DONE).write_text("{}")
        jobs.append(attack_jobs(config, tmp_path, 4))
    for ceiling in ceilings:
        file = cell_file(tmp_path / BASELINES, ceiling)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        jobs.append(attack_jobs(config, tmp_path, 4))
    assert jobs == [1, 1, 1, 1, 2, 4]
    assert attack_jobs(config, tmp_path, 1) == 1


@pytest.mark.slow
def test_a_matrix_names_the_factors_that_were_searched_for(settings, tmp_path):
    raw = {
        **settings,
        "seeds": [0],
        "plug_back": {"scale": "public_text"},
        "matrix": {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1},
    }
    report = matrix(parse_config(raw), tmp_path)
    (result,) = tmp_path.glob("cells/*/seed-0/result.json")
    found = json.loads(result.read_text())["plug_back"]["scale"]
    (note,) = [n for n in report.notes if n.startswith("Plug-back")]
    assert note.endswith(f"{report.configurations[0].name}: {found:g} (seed 0).")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_attacks_of_the_last_cell_run_in_processes_that_its_process_starts(settings, tmp_path):
    raw = {
        **settings,
        "seeds": [0],
        "attacks": {"suite": "smoke", "views": ["server"], "seconds": 60},
        "matrix": {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 2},
    }
    (cell,) = matrix(parse_config(raw), tmp_path).configurations
    assert not cell.failed
    assert {f.outcome for f in cell.findings} <= {"SUCCEEDED", "RESISTED", "INCONCLUSIVE", "NOT_APPLICABLE"}


def test_a_protection_may_have_settings_of_its_own_which_its_title_says(settings, tmp_path):
    private = {
        **MASKING,
        "epsilon": 8,
        "recipe": "small",
        "settings": {"adapter": {"kind": "core"}, "local": {"learning_rate": 0.05}},
    }
    config = parse_config(
        {**settings, "matrix": {"protections": [MASKING, private], "remove_ratios": [0.5]}}
    )
    plain, small = (
        next(c for c in cells_of(config)[0] if c.protection.recipe == name) for name in (None, "small")
    )
    assert small.name == "masking_dp8_small-0.5-fedavg-lora-seed0"
    assert "adapter.kind=core, local.learning_rate=0.05" in title_of(small, config)
    changed = cell_config(config, small)
    assert (changed.adapter.kind, changed.local.learning_rate) == ("core", 0.05)
    assert cell_config(config, plain).adapter.kind == "lora"
    recipes = {c.name: (c.scheme, c.recipe) for c in configurations_of(config, tmp_path, [plain, small])}
    assert recipes == {
        title_of(plain, config): ("masking", ""),
        title_of(small, config): ("masking", "small"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": "small"},
        {"settings": {"adapter": {"kind": "core"}}},
        {"recipe": "small", "settings": {"data": {"max_tokens": 9}}},
    ],
)
def test_settings_of_a_protection_need_a_name_and_leave_the_records_alone(settings, wrong):
    with pytest.raises(ConfigError, match=r"matrix\.protections"):
        parse_config({**settings, "matrix": {"protections": [{**MASKING, **wrong}]}})


def test_cells_are_every_combination_and_what_cannot_run_is_said(settings):
    swept = {
        "protections": [MASKING, {"scheme": "ckks"}],
        "remove_ratios": [0.25, 0.5],
        "fusions": [{"rule": "fedavg"}, BY_COORDINATE],
    }
    cells, refused = cells_of(parse_config({**settings, "matrix": swept}))
    assert len(cells) == 2 * (2 * 2 * 2 - 2)
    assert len(refused) == 2
    assert refused[0].startswith("ckks-0.25-h_ties_coordinate-lora: protect.granularity=coordinate")


def test_a_matrix_that_cannot_run_at_all_says_so(settings):
    two_clients = {**settings, "data": {**settings["data"], "clients": settings["data"]["clients"][:2]}}
    plain = {"protect": PLAINTEXT, "matrix": {"protections": [MASKING]}}
    changed = parse_config({**two_clients, **plain})
    with pytest.raises(ConfigError, match="no configuration can run"):
        cells_of(changed)


def test_a_cell_has_its_own_settings_and_nothing_else_changes(settings):
    swept = {"protections": [{"scheme": "masking", "epsilon": 3}], "fusions": [BY_COORDINATE]}
    config = parse_config({**settings, "attacks": {"suite": "smoke"}, "matrix": swept})
    cells, _ = cells_of(config)
    own = cell_config(config, cells[0])
    assert (own.protect.scheme, own.protect.granularity) == ("masking", "coordinate")
    assert (own.privacy.unit, own.privacy.target_epsilon) == ("record", 3.0)
    assert own.audit.record
    assert own.seeds == (cells[0].seed,)
    assert own.local == config.local


@pytest.mark.parametrize(
    ("protection", "key", "title", "unit", "epsilon"),
    [
        (PLAINTEXT, "unsafe_plaintext", "no protection", "none", None),
        (MASKING, "masking", "masking", "none", None),
        ({**MASKING, "epsilon": 8}, "masking_dp8", "masking + DP 8", "record", 8.0),
        ({**MASKING, "epsilon": 0.5}, "masking_dp0.5", "masking + DP 0.5", "record", 0.5),
        (
            {**MASKING, "epsilon": 4, "unit": "client"},
            "masking_client_dp4",
            "masking + client-level DP 4",
            "client",
            4.0,
        ),
        ({"scheme": "ckks", "epsilon": 2}, "ckks_dp2", "CKKS + DP 2", "record", 2.0),
        ({**PLAINTEXT, "epsilon": 3}, "unsafe_plaintext_dp3", "no protection + DP 3", "record", 3.0),
    ],
)
def test_any_scheme_is_swept_with_any_epsilon(settings, protection, key, title, unit, epsilon):
    config = parse_config({**settings, "matrix": {"protections": [protection], "remove_ratios": [0.5]}})
    cells, refused = cells_of(config)
    assert not refused
    assert cells[0].name == f"{key}-0.5-fedavg-lora-seed0"
    assert title_of(cells[0], config) == f"{title}, 50% removed"
    own = cell_config(config, cells[0])
    assert (own.protect.scheme, own.privacy.unit) == (protection["scheme"], unit)
    assert epsilon is None or own.privacy.target_epsilon == epsilon


class Coarse(Plaintext):
    """A protection with an option."""

    name, title, options = "coarse", "coarse", ("bits",)


def test_a_protections_options_are_swept_and_are_no_other_schemes(settings, tmp_path):
    swept = [{"scheme": "coarse", "options": {"bits": b}} for b in (2, 4)]
    with PROTECTIONS.added("coarse", Coarse()):
        raw = {**settings, "protect": {"scheme": "coarse", "options": {"bits": 8}}}
        raw["matrix"] = {"protections": [*swept, {"scheme": "coarse"}, MASKING], "remove_ratios": [0.5]}
        config = parse_config(raw)
        cells, refused = cells_of(config)
        assert not refused
        options = {c.protection.name: dict(cell_config(config, c).protect.options) for c in cells}
        assert options == {"coarse_bits2": {"bits": 2}, "coarse_bits4": {"bits": 4}} | {
            "coarse": {"bits": 8},
            "masking": {},
        }
        assert "coarse bits=2, 50% removed" in {title_of(c, config) for c in cells}
        kinds = [item.kind for item in labelled(configurations_of(config, tmp_path, cells))]
        assert kinds == ["coarse (bits=2)", "coarse (bits=4)", "coarse", "masking"]
        raw["protect"] = {"scheme": "coarse", "options": {"bitz": 8}}
        with pytest.raises(
            ConfigError, match=r"^protect.options.bitz: is no option of protect.scheme=coar"
        ):
            parse_config(raw)


def test_a_name_that_no_folder_can_have_is_refused_before_the_matrix_begins(settings):
    recipe = {"recipe": "r" * 250, "settings": {"local": {"steps": 1}}}
    swept = {"protections": [{**MASKING, **recipe}], "remove_ratios": [0.5]}
    with pytest.raises(ConfigError, match="characters; must have at most 200; shorten `recipe`"):
        cells_of(parse_config({**settings, "matrix": swept}))


def test_a_protection_that_cannot_be_is_left_out_with_the_rule_it_breaks(settings):
    client_level = {"scheme": "ckks", "epsilon": 4, "unit": "client"}
    swept = {"protections": [MASKING, client_level], "remove_ratios": [0.5]}
    cells, refused = cells_of(parse_config({**settings, "matrix": swept}))
    assert {c.protection.scheme for c in cells} == {"masking"}
    assert refused == [
        "ckks_client_dp4-0.5-fedavg-lora: protect.scheme=ckks: with privacy.unit=client must be masking, "
        "where the noise is added"
    ]


def test_a_limit_below_a_swept_epsilon_is_refused_for_that_cell_alone(settings):
    swept = {"protections": [{**MASKING, "epsilon": e} for e in (2, 8)], "remove_ratios": [0.5]}
    raw = {**settings, "privacy": {"target_epsilon": 2, "max_epsilon": 4}, "matrix": swept}
    cells, (line,) = cells_of(parse_config(raw))
    assert {c.protection.epsilon for c in cells} == {2.0}
    assert line.startswith("masking_dp8-0.5-fedavg-lora: privacy: max_epsilon=4.0: must be >=")


@pytest.mark.parametrize(
    ("swept", "line"),
    [
        ({"protections": [MASKING, MASKING]}, "protections=[masking, masking]: must all differ"),
        ({"protections": [{"scheme": "maskin"}]}, "did you mean 'masking'?"),
        ({"protections": [{**MASKING, "epsilon": 0}]}, "matrix.protections.0.epsilon=0"),
        ({"compressions": [{"kind": "drop_block"}]}, "did you mean 'drop_blocks'?"),
        ({"compressions": [{"kind": "drop_blocks", "options": {"a": "../b"}}]}, "part of folder names"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(settings, swept, line):
    with pytest.raises(ConfigError) as raised:
        parse_config({**settings, "matrix": swept})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_option_that_a_compression_lacks_leaves_its_cells_out(settings):
    compressions = [{"kind": "drop_blocks"}, {"kind": "drop_blocks", "options": {"bits": 4}}]
    config = parse_config({**settings, "matrix": {**settings["matrix"], "compressions": compressions}})
    cells, refused = cells_of(config)
    assert {c.key.split("-")[1] for c in cells} == {"drop_blocks"}
    assert len(refused) == 2
    assert "drop_blocks_bits4-0.5-fedavg-lora: compress.options.bits: is no option" in refused[0]


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


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_cell_stands_in_the_report_and_loses_nothing(settings, tmp_path: Path):
    raw = {
        **settings,
        "seeds": [0],
        "privacy": {"target_delta": 0.5},
        "matrix": {**settings["matrix"], "protections": [MASKING, {"scheme": "masking", "epsilon": 8}]},
    }
    report = matrix(parse_config(raw), tmp_path)
    fine, failed = report.configurations
    assert fine.measure("gap_closed") is not None or fine.measure("accuracy_centralised") is not None
    assert not fine.failed
    assert failed.measures == ()
    assert "target_delta=0.5: must be < 1 / the client's number of records" in failed.failed[0]


def test_a_ceiling_that_failed_is_named_with_its_reason(settings, tmp_path: Path):
    config = parse_config(settings)
    note_failure(tmp_path / BASELINES / "centralised_llm-seed1", "out of memory")
    assert no_ceiling(config, tmp_path) == [
        "gap closed: centralised_llm-seed0 failed: did not finish",
        "gap closed: centralised_llm-seed1 failed: out of memory",
    ]


def test_a_matrix_forgets_why_something_failed_before_and_logs_what_ends_it(settings, tmp_path: Path):
    own = {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1}
    config = parse_config({**settings, "seeds": [0], "matrix": own})
    RunFolder.create(tmp_path, config)
    (cell,), (ceiling,) = cells_of(config)[0], ceilings_of(config)
    places = [tmp_path / cell.folder, tmp_path / BASELINES / ceiling.name]
    for place in places:
        note_failure(place, "out of memory")
    report = matrix(config, tmp_path, resume=True)
    assert [c.failed for c in report.configurations] == [()]
    assert not [place for place in places if (place / CELL_FAILED).exists()]
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()  # stands in for a full disk
    with pytest.raises(RunFolderError, match=r"report\.html"):
        matrix(config, tmp_path, resume=True)
    assert "aborted" in (tmp_path / "audit.jsonl").read_text().splitlines()[-1]


def test_runs_of_the_same_settings_join_over_their_seeds(settings, tmp_path: Path):
    for seed in (0, 1):
        run(parse_config({**settings, "seeds": [seed]}), tmp_path / str(seed), in_cell=True)
    report = join([tmp_path / "0", tmp_path / "1"], tmp_path / "both", command="typed")
    (configuration,) = report.configurations
    assert configuration.seeds == (0, 1)
    assert configuration.measure("accuracy_fused").estimate.n == 2
    assert configuration.measure("token_auc") is None
    assert any("no suite of attacks ran" in line for line in report.not_measured)
    assert json.loads((tmp_path / "both" / "report.json").read_text())["command"] == "typed"


@pytest.mark.parametrize("private", [True, False])
def test_a_matrix_that_is_joined_tells_that_its_ceiling_is_not_counted(settings, tmp_path: Path, private):
    RunFolder.create(tmp_path / "matrix", parse_config(settings))
    (tmp_path / "matrix" / "cells").mkdir()
    protections = ("masking", "masking_dp8") if private else ("masking",)
    sample_report(protections=protections, ratios=(0.5,), seeds=(0,), rounds=2).write(tmp_path / "matrix")
    report = join([tmp_path / "matrix"], tmp_path / "out", command="")
    assert (CEILING_NOT_COUNTED in report.composition) == private


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
