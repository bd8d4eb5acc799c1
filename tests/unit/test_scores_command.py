"""The command `attack scores`: a row for each target, in a private file, and one line for a wrong wish."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from attacks.cli import app
from attacks.commands.scores import COLUMNS, rows_of
from attacks.statistics import auc_value
from fedproxy_secure.evidence.finding import write_findings
from tests.support.side_by_side import MASKED, NO_NUMBER, OPEN, finding


def invoke(*words):
    return CliRunner().invoke(app, ["scores", *map(str, words)])


@pytest.fixture
def run(tmp_path):
    """The folder of a run with the findings of four attacks, one of which has no number."""
    write_findings(tmp_path / "run", (*OPEN[:3], replace(OPEN[3], **NO_NUMBER)))
    return tmp_path / "run"


def rows_in(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_there_is_a_row_for_each_target_and_the_headline_follows_from_the_rows(run, tmp_path):
    out = tmp_path / "scores.csv"
    done = invoke("--run", run, "--out", out)
    assert done.exit_code == 0
    assert done.stdout == f"{out}: 600 rows of X11, X8, X10\n"
    rows = rows_in(out)
    assert tuple(rows[0]) == COLUMNS
    for found in OPEN[:3]:
        own = [r for r in rows if r["attack"] == found.attack]
        scores, member = (np.array([float(r[key]) for r in own]) for key in ("score", "member"))
        assert auc_value(scores, member == 1) == pytest.approx(found.headline.value, abs=1e-4)
        assert tuple(scores) == found.targets.scores
        assert [float(r["rank"]) for r in own] == list(found.targets.values)
    first = rows[0]
    assert {k: first[k] for k in COLUMNS[:9]} == {
        "id": "X11",
        "attack": "from_update",
        "view": "server",
        "surface": "single update",
        "seed": "0",
        "attack_seed": "0",
        "outcome": "SUCCEEDED",
        "exam": "one client's",
        "target": "one client's-0-0",
    }


def test_json_lines_have_the_same_rows_with_numbers_as_numbers(run, tmp_path):
    table, lines = tmp_path / "scores.csv", tmp_path / "scores.jsonl"
    assert invoke("--run", run, "--out", table).exit_code == 0
    assert invoke("--run", run, "--out", lines).exit_code == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [{k: str(v) for k, v in row.items()} for row in rows] == rows_in(table)
    assert isinstance(rows[0]["score"], float)
    assert rows[0]["member"] == 1


def test_the_same_target_has_the_same_name_under_two_protections(run, tmp_path):
    write_findings(tmp_path / "masked", MASKED)
    names = []
    for folder in (run, tmp_path / "masked"):
        out = tmp_path / "scores.csv"
        assert invoke("--run", folder, "--out", out, "--spec", "from_sum").exit_code == 0
        names.append([r["target"] for r in rows_in(out)])
    assert names[0] == names[1]
    assert len(set(names[0])) == 200


def test_a_name_is_of_the_same_target_where_an_attack_judged_fewer_of_a_question(run, tmp_path):
    """An attack with less time reads fewer of each question's documents."""
    whole = OPEN[1]
    first = [place for question in (range(60), range(100, 160)) for place in question]
    kinds, values, scores = (
        [kept[place] for place in first]
        for kept in (whole.targets.kinds, whole.targets.values, whole.targets.scores)
    )
    cut = replace(whole.targets, kinds="".join(kinds), values=tuple(values), scores=tuple(scores))
    named = []
    for targets in (replace(whole.targets, parts=(100, 100)), replace(cut, parts=(60, 60))):
        named.append({r["target"]: r["score"] for r in rows_of([replace(whole, targets=targets)])})
    assert len(named[1]) == 120
    assert named[1].items() <= named[0].items()


def test_the_file_is_private_and_the_command_says_why(run, tmp_path):
    out = tmp_path / "scores.csv"
    done = invoke("--run", run, "--out", out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert "Treat this file like the clients' records" in done.stderr


def test_a_findings_file_will_do_and_an_attack_can_be_chosen_by_id(run, tmp_path):
    out = tmp_path / "scores.csv"
    done = invoke("--run", run / "attacks" / "results.json", "--out", out, "--spec", "X10")
    assert done.stdout == f"{out}: 200 rows of X10\n"


def test_a_mean_over_targets_has_no_rows(tmp_path):
    auc = finding("from_sum", 1.0)
    mean = replace(auc, attack="mean", targets=replace(auc.targets, kinds="", scores=()))
    write_findings(tmp_path, (auc, mean))
    assert "200 rows" in invoke("--run", tmp_path, "--out", tmp_path / "s.csv").stdout


def test_what_cannot_be_exported_is_one_line_with_exit_code_2(run, tmp_path):
    out = tmp_path / "scores.csv"
    ranks, damaged = tmp_path / "ranks", tmp_path / "damaged.json"
    write_findings(ranks, [f.without_scores() for f in OPEN])
    damaged.write_text('{"schema_version": 4, "results": [{}]}')
    (empty := tmp_path / "empty.json").write_text("{}")
    for words, says in (
        (("--run", tmp_path / "none", "--out", out), "run `attack run` first"),
        (("--run", damaged, "--out", out), "damaged.json: is damaged"),
        (("--run", empty, "--out", out), "is damaged, or no findings: must have schema_version and"),
        (("--run", run, "--out", tmp_path / "scores.txt"), "scores.txt: must end in .csv or .jsonl"),
        (
            ("--run", run, "--out", out, "--spec", "A5"),
            "--spec A5: no finding is of this attack",
        ),
        (("--run", ranks, "--out", out), "has no scores"),
        (
            ("--run", run, "--out", out, "--spec", "secret"),
            "secret: has no AUC over targets; must be one that has: X",
        ),
        (("--run", run, "--out", run / "attacks" / "results.json" / "s.csv"), "s.csv: cannot be written"),
    ):
        done = invoke(*words)
        assert done.exit_code == 2, words
        assert len(done.stderr.splitlines()) == 1
        assert says in done.stderr
    assert not out.exists()
