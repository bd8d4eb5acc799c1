"""Disturbed runs end in the exact result or in an abort that says why; and how that is counted is right."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.network.deployed import SITES
from tests.network.disturbances import Line, main, read_lines, table
from tests.network.exactness import half_written
from tests.network.large_proxy import measure
from tests.network.schedule import BEFORE_ROUNDS, KINDS, STEPS, plan
from tests.support.network.commands import missing

MISSING = missing()
NEEDS_NETWORK = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


def line(index: int, outcome) -> Line:
    planned = plan(0, index, sites=5, rounds=2)
    return Line(seed=0, index=index, plan=planned, outcome=outcome, calls=1, said=(), seconds=1.0, load=0.0)


@NEEDS_NETWORK
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_disturbed_runs_end_well(tmp_path):
    """One with a bad cable and one with killed processes; all other disturbances come every night."""
    out = tmp_path / "disturbed.jsonl"
    assert main(["--runs", "2", "--seed", "8", "--out", str(out)]) == 0, out.read_text()
    kinds = {line.plan.kind for line in read_lines(out)}
    assert kinds == {"a site's worker is killed", "a site's cable takes 100 ms"}


@NEEDS_NETWORK
@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_fifty_disturbed_runs_end_well(tmp_path):
    out = tmp_path / "disturbed.jsonl"
    assert main(["--runs", "50", "--seed", "1", "--out", str(out)]) == 0, out.read_text()


def test_a_schedule_has_every_disturbance_once_a_block_and_in_every_step_once_a_lap():
    count = len(KINDS) * len(STEPS)
    plans = [plan(3, index, sites=5, rounds=2) for index in range(count)]
    assert {(p.kind, p.step) for p in plans} == {(kind, step) for kind in KINDS for step in STEPS}
    assert plans == [plan(3, index, sites=5, rounds=2) for index in range(count)]
    for block in range(len(STEPS)):
        drawn = plans[block * len(KINDS) : (block + 1) * len(KINDS)]
        assert {p.kind for p in drawn} == set(KINDS), "none waits for the end of the lap"
    assert {p.target for p in plans} == set(range(5))
    assert {p.round for p in plans if p.step not in BEFORE_ROUNDS} == {0, 1}
    assert {p.round for p in plans if p.step in BEFORE_ROUNDS} == {0}
    assert plans != [plan(4, index, sites=5, rounds=2) for index in range(count)]


def test_the_table_counts_what_ended_well():
    lines = [
        line(0, "exact"),
        line(1, "hang"),
        line(3, "exact when called again"),
    ]
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in table(lines).splitlines()}
    assert rows["all"][-1].strip() == "2/3"
    assert rows[lines[1].plan.kind][STEPS.index(lines[1].plan.step)].strip() in ("0/1", "1/2")


def test_runs_of_one_disturbance_can_be_asked_for(tmp_path, capsys):
    out = tmp_path / "disturbed.jsonl"
    wanted = [index for index in range(len(KINDS)) if "SuperNode" in plan(0, index, sites=5, rounds=2).kind]
    assert len(wanted) == 1
    out.write_text(line(wanted[0], "exact").to_json() + "\n")
    assert main(["--runs", str(len(KINDS)), "--only", "SuperNode", "--out", str(out)]) == 0
    assert "1/1" in capsys.readouterr().out


def test_runs_that_are_in_the_file_are_not_done_again_and_a_bad_one_counts(tmp_path, capsys):
    out = tmp_path / "disturbed.jsonl"
    out.write_text("".join(line(index, "exact").to_json() + "\n" for index in range(3)))
    assert read_lines(out) == [line(index, "exact") for index in range(3)]
    assert main(["--runs", "3", "--out", str(out)]) == 0
    with out.open("a") as file:
        file.write(replace(line(2, "hang"), index=3).to_json() + "\n")
    assert main(["--runs", "4", "--out", str(out)]) == 1
    assert "3/4" in capsys.readouterr().out


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
