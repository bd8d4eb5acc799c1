"""The two commands on a tiny model: reports, models, resume, and bad input."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.experiments.compare import compare, compare_report
from fedproxy_secure.experiments.dry_run import plan
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.stages import prepare
from fedproxy_secure.report.report import Report
from tests.support.tiny import tiny_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        seeds=[0, 1],
        compare={
            "methods": ["zero_shot", "centralised_llm", "fedproxy_h_ties"],
            "remove_ratios": [0.5],
            "jobs": 1,
        },
    )


def test_a_run_leaves_models_that_load_and_a_report_with_intervals(settings, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report = run(parse_config(settings), tmp_path / "run")
    proxy = AutoModelForCausalLM.from_pretrained(tmp_path / "run/seed-0/proxy")
    assert proxy.config.num_hidden_layers == 2
    assert PeftModel.from_pretrained(proxy, tmp_path / "run/seed-0/adapter")
    fused = AutoModelForCausalLM.from_pretrained(tmp_path / "run/seed-1/fused")
    assert fused.config.num_hidden_layers == 4
    (row,) = (r for r in report.rows if r.method == "fedproxy_h_ties")
    assert row.average.n == 2
    assert row.average.low <= row.average.value <= row.average.high


@pytest.mark.slow
def test_a_factor_that_was_searched_for_stands_in_the_record_and_on_the_report(settings, tmp_path):
    searching = parse_config({**settings, "plug_back": {"scale": "public_text"}})
    report = run(searching, tmp_path / "run", command="c")
    factors = []
    for seed in (0, 1):
        found = json.loads((tmp_path / f"run/seed-{seed}/result.json").read_text())["plug_back"]
        assert min(found["tried"], key=lambda pair: pair[1])[0] == found["scale"]
        factors.append(f"{found['scale']:g} (seed {seed})")
    (note,) = [n for n in report.notes if n.startswith("Plug-back")]
    assert note.endswith(f"like the tuned proxy: {', '.join(factors)}.")


@pytest.mark.slow
def test_an_aligned_llm_is_another_than_the_plain_one_and_the_report_says_so(settings, tmp_path):
    raw = {**settings, "seeds": [0]}
    plain = run(parse_config(raw), tmp_path / "plain", command="c")
    report = run(
        parse_config({**raw, "plug_back": {"align_windows": 8}}), tmp_path / "aligned", command="c"
    )
    one, other = (
        load_file(tmp_path / name / "seed-0/fused/model.safetensors") for name in ("plain", "aligned")
    )
    changed = [name for name in one if not torch.equal(one[name], other[name])]
    result = json.loads((tmp_path / "aligned/seed-0/result.json").read_text())
    assert result["plug_back"]["aligned_blocks"] == len(changed) > 0
    assert all(name.endswith("mlp.down_proj.weight") for name in changed)
    assert any("is aligned on 8 windows" in note for note in report.notes)
    assert not any("aligned" in note for note in plain.notes)


def test_public_text_that_is_too_short_to_align_on_is_refused_in_one_line(settings):
    short = {**settings, "compress": {"calibration_sequences": 500}, "plug_back": {"align_windows": 8}}
    with pytest.raises(DataError, match="must have at least 1002"):
        prepare(parse_config(short))


@pytest.mark.slow
def test_a_comparison_names_the_factors_that_were_searched_for_and_those_alone(settings, tmp_path):
    raw = {
        **settings,
        "seeds": [0],
        "plug_back": {"scale": "public_text"},
        "compare": {
            "methods": ["zero_shot", "fedproxy_fedavg", "exact_h_ties"],
            "remove_ratios": [0.5],
            "jobs": 1,
        },
    }
    report = compare(parse_config(raw), tmp_path / "table", command="c")
    lifted, exact = (
        json.loads((tmp_path / f"table/cells/{name}-0.5-seed0.json").read_text())
        for name in ("fedproxy_fedavg", "exact_h_ties")
    )
    assert "scale" not in exact
    (note,) = [n for n in report.notes if n.startswith("Plug-back")]
    assert note.endswith(f"like the tuned proxy: fedproxy_fedavg at 0.5: {lifted['scale']:g} (seed 0).")


def test_a_run_killed_after_one_round_resumes_to_the_same_result(settings, tmp_path, monkeypatch):
    config = parse_config({**settings, "seeds": [0]})
    whole = run(config, tmp_path / "whole", in_cell=True)

    class Killed(BaseException):
        pass

    class KillAfterOneRound:
        def start(self, task, total):
            pass

        def advance(self, task, steps=1, note=""):
            if task == "federate":
                raise Killed

        def done(self, task):
            pass

    with pytest.raises(Killed):
        run(config, tmp_path / "broken", progress=KillAfterOneRound(), in_cell=True)
    resumed = run(config, tmp_path / "broken", resume=True, in_cell=True)
    assert resumed.rows == whole.rows
    one, two = (
        (tmp_path / name / "seed-0/fused/model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert one == two


@pytest.mark.slow
def test_a_comparison_is_the_same_after_losing_a_cell(settings, tmp_path):
    config = parse_config(settings)
    whole = compare(config, tmp_path)
    (tmp_path / "cells" / "fedproxy_h_ties-0.5-seed1.json").unlink()
    assert compare(config, tmp_path, resume=True).rows == whole.rows
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 7


def test_a_comparison_is_widened_on_resume_and_keeps_the_cells_it_has(settings, tmp_path):
    short = {
        **settings,
        "seeds": [0],
        "compare": {"methods": ["zero_shot"], "remove_ratios": [0.5], "jobs": 1},
    }
    compare(parse_config(short), tmp_path)
    kept = tmp_path / "cells/zero_shot-seed0.json"
    before = kept.stat().st_mtime_ns
    wide = compare(parse_config({**settings, "name": "wide"}), tmp_path, resume=True)
    assert kept.stat().st_mtime_ns == before
    assert all(row.average.seeds == (0, 1) for row in wide.rows)
    assert [scale.zero_shot.seeds for scale in wide.task_scales] == [(0, 1)] * len(wide.rows[0].tasks)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seeds"] == [0, 1]
    with pytest.raises(RunFolderError, match="belongs to other settings"):
        compare(parse_config({**short, "local": {"steps": 3}}), tmp_path, resume=True)


@pytest.mark.slow
def test_cells_of_two_machines_make_one_table_and_foreign_cells_are_refused(settings, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    compare(parse_config({**settings, "seeds": [0]}), one)
    compare(parse_config({**settings, "seeds": [1]}), two)
    for file in (two / "cells").iterdir():
        (one / "cells" / file.name).write_bytes(file.read_bytes())
    joined = compare_report(parse_config(settings), one)
    assert joined.rows == compare(parse_config(settings), tmp_path / "whole").rows
    assert {d.method: d.average.n for d in joined.differences} == {"zero_shot": 2, "centralised_llm": 2}
    alone = compare_report(parse_config({**settings, "seeds": [0]}), one)
    assert "zero_shot-seed1" in next(
        n for n in alone.notes if n.startswith("Cells in the folder that these settings do not include")
    )
    other = parse_config({**settings, "local": {"steps": 1, "batch_size": 4}})
    with pytest.raises(
        RunFolderError, match=r"seed0\.json: was made with settings of SHA-256 \w+; must be"
    ) as raised:
        compare_report(other, one)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, pytest.param(RuntimeError, marks=pytest.mark.slow)])
def test_a_comparison_that_stops_leaves_a_report_of_what_is_there(settings, tmp_path, stop):
    config = parse_config({**settings, "compare": {**settings["compare"], "jobs": 1}})

    class StopAfterThree:
        cells = 0

        def start(self, task, total):
            pass

        def advance(self, task, steps=1, note=""):
            self.cells += task == "compare" and note.endswith("seed0") + note.endswith("seed1")
            if self.cells == 3:
                raise stop

        def done(self, task):
            pass

    with pytest.raises(stop):
        compare(config, tmp_path, progress=StopAfterThree())
    with pytest.raises(RunFolderError, match="is a comparison, not a run or a matrix"):
        join([tmp_path], tmp_path / "joined", command="c")
    assert not (tmp_path / "joined").exists()
    left = Report.load(tmp_path)
    assert len(left.rows) == 2
    assert left.unfinished == (
        "3 of 6 cells are missing: zero_shot (seed 1); fedproxy_h_ties at 0.5 (seeds 0, 1).",
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    shown = CliRunner().invoke(app, ["compare", str(file), "--report-only", "--out", str(tmp_path)])
    assert shown.exit_code == 0
    assert "one seed" in shown.stdout
    assert "3 of 6 cells are missing" in " ".join(shown.stdout.split())
    empty = CliRunner().invoke(app, ["compare", str(file), "--report-only", "--out", str(tmp_path / "no")])
    assert (empty.exit_code, empty.stderr.count("\n")) == (2, 1)
    assert "has no finished cell of these settings" in empty.stderr


def test_a_run_folder_of_another_config_is_refused(settings, tmp_path):
    (tmp_path / "manifest.json").write_text('{"work": "run", "config_sha256": "0"}')
    with pytest.raises(RunFolderError, match="belongs to other settings"):
        run(parse_config(settings), tmp_path, resume=True)


def test_the_plan_counts_what_a_run_would_use(settings):
    planned = plan(parse_config(settings))
    assert planned.llm_blocks == 4
    assert len(planned.proxy_blocks) == 2
    blocks = 28  # one a tensor, all of them small; 36 control words, 16 sentinels
    assert planned.upload_bytes == 4 * (planned.adapter_parameters + blocks + 36 + 16)
    plaintext = plan(parse_config({**settings, "protect": {"scheme": "unsafe_plaintext"}}))
    assert plaintext.upload_bytes == 4 * planned.adapter_parameters
    assert plaintext.protection.startswith("unsafe_plaintext")
    assert planned.truncated_records == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("compress.remove_ratio=0.95", "remove_ratio=0.95: removes all 4 blocks"),
        ("compress.remove_ration=0.5", "did you mean 'remove_ratio'?"),
        ("model.path=/no/such/model", "model.path=/no/such/model: no such folder"),
        ("data.clients.0.task=clasification", "did you mean 'classification'?"),
        ("data.clients.0.source=/no/such/{split}.jsonl", "/no/such/train.jsonl: cannot be read"),
        ("local.steps=many", "local.steps='many'"),
        ("federate.min_clients=9", "federate.min_clients=9: must be <= 3"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(settings, tmp_path, change, line):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["run", str(file), "--set", change, "--out", str(out)])
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (out / "report.json").exists()
