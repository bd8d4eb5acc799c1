"""Disturbed runs end in the exact result or in an abort that says why; and how that is counted is right."""

import os
from pathlib import Path

import pytest

from tests.network.deployed import SITES
from tests.network.disturbances import Line, main, missing, read_lines, table
from tests.network.disturbed import Ending
from tests.network.exactness import half_written
from tests.network.large_proxy import measure
from tests.network.schedule import KINDS, STEPS, plans
from tests.support.network.commands import missing as unable

MISSING = unable()
NEEDS_NETWORK = pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=str(MISSING))


def line(run: int, step: int, outcome="exact") -> Line:
    planned = plans(0, run, sites=len(SITES))[step]
    return Line(seed=0, run=run, ending=Ending(plan=planned, outcome=outcome, said=("a",), seconds=1.0))


def write(file: Path, *lines: Line) -> None:
    file.write_text("".join(one.to_json() + "\n" for one in lines))


@NEEDS_NETWORK
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_disturbed_in_every_step_ends_well(tmp_path):
    """All other disturbances come every night."""
    out = tmp_path / "disturbed.jsonl"
    assert until_done(["--runs", "1", "--seed", "8", "--out", str(out)]) == 0, out.read_text()
    assert [line.ending.plan.step for line in read_lines(out)] == list(STEPS)


def until_done(arguments: list[str]) -> int:
    """Call `main` until it returns 0, at most three times, and return its last exit code."""
    for _ in range(3):
        if (code := main(arguments)) == 0:
            break
    return code


@NEEDS_NETWORK
@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_every_disturbance_ends_well_in_every_step(tmp_path):
    out = tmp_path / "disturbed.jsonl"
    assert until_done(["--runs", str(len(KINDS)), "--seed", "1", "--out", str(out)]) == 0, out.read_text()


def test_a_schedule_has_every_disturbance_once_in_every_step():
    runs = [plans(3, run, sites=len(SITES)) for run in range(len(KINDS))]
    assert all([plan.step for plan in planned] == list(STEPS) for planned in runs)
    every = [plan for planned in runs for plan in planned]
    assert {(p.kind, p.step) for p in every} == {(kind, step) for kind in KINDS for step in STEPS}
    assert {p.target for p in every} == set(range(len(SITES)))
    assert runs == [plans(3, run, sites=len(SITES)) for run in range(len(KINDS))]
    assert runs[0] != plans(4, 0, sites=len(SITES))
    assert runs[0] != plans(3, len(KINDS), sites=len(SITES))


def test_the_table_counts_what_ended_well():
    lines = [line(0, 0), line(0, 1, "hang"), line(1, 1, "exact when called again")]
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in table(lines).splitlines()}
    assert [cell.strip() for cell in rows["all"]] == ["1/1", "1/2", "", "", "", "", "", "2/3"]
    assert rows[lines[1].ending.plan.kind][1].strip() == "0/1"


def test_disturbances_of_one_kind_can_be_asked_for(tmp_path, capsys):
    out = tmp_path / "disturbed.jsonl"
    wanted = missing([], 0, len(KINDS), ["SuperNode"])
    places = [(run, STEPS.index(plan.step)) for run, planned in wanted.items() for plan in planned]
    assert sorted(step for _, step in places) == list(range(len(STEPS)))
    write(out, *(line(run, step) for run, step in places))
    assert main(["--runs", str(len(KINDS)), "--only", "SuperNode", "--out", str(out)]) == 0
    assert "7/7" in capsys.readouterr().out


def test_what_is_in_the_file_is_not_done_again_and_a_bad_ending_counts(tmp_path, capsys):
    out = tmp_path / "disturbed.jsonl"
    some = [line(0, step) for step in range(3)]
    write(out, *some)
    assert read_lines(out) == some
    assert missing(some, 0, 1, []) == {0: plans(0, 0, sites=len(SITES))[3:]}
    assert missing(some, 1, 1, []) == {0: plans(1, 0, sites=len(SITES))}
    write(out, *(line(0, step) for step in range(len(STEPS))))
    assert main(["--runs", "1", "--out", str(out)]) == 0
    write(out, *(line(0, step, "hang" if step == 2 else "exact") for step in range(len(STEPS))))
    assert main(["--runs", "1", "--out", str(out)]) == 1
    assert "6/7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", b"{"),
        ("a.jsonl", b'{"a": 1}\n{"b'),
        ("a.safetensors", b"1234"),
        ("a.journal", b"not a database"),
    ],
)
def test_a_file_that_is_not_whole_is_found(tmp_path: Path, name: str, text: bytes):
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / "whole.jsonl").write_text('{"a": 1}\n')
    assert half_written(tmp_path) == []
    (tmp_path / name).write_bytes(text)
    (found,) = half_written(tmp_path)
    assert found.startswith(name)


@NEEDS_NETWORK
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_proxy_whose_line_is_cut_on_the_way_goes_on_where_it_was(tmp_path):
    """The cut lasts longer than a node may be silent before it counts as away."""
    found = measure(tmp_path, megabytes=16, mbit=20, loss=0.0, cut_s=75)
    assert found["was_cut"]
    assert (found["ended_with"], found["sites"]) == (0, 5)
    cut, *others = (found["crossed"][name] for name in SITES)
    assert cut < max(others) + 0.25  # to begin anew would be 0.33 more
