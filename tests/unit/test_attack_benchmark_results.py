"""What the attack benchmark writes: the form of its results, its table, and two results side by side."""

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest

from attacks.benchmark.compare import changes, text_of_changes
from attacks.benchmark.results import Benchmark
from attacks.benchmark.schema import FILE, benchmark_schema
from attacks.benchmark.table import WIDTH, table
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.finding import Outcome
from tests.support.benchmark_results import CELL, finding, invoke, results

SCHEMA = json.loads((resources.files("attacks.benchmark") / "benchmark.schema.json").read_text())


# the form of results


def test_the_shipped_schema_is_what_the_classes_say():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(FILE.read_text()) == benchmark_schema()


def test_written_results_follow_the_schema_and_are_read_back_equal(tmp_path):
    made = results(finding(ranks=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), finding(0.4, attack="b"))
    jsonschema.validate(json.loads(made.write(tmp_path).read_text()), SCHEMA)
    assert Benchmark.read(tmp_path / "benchmark.json") == made


@pytest.mark.parametrize("key", ["benchmark_id", "identity", "attacks", "cells", "subset"])
def test_the_schema_refuses_results_without_what_they_rest_on(key):
    raw = json.loads(json.dumps(results(finding()).to_json()))
    del raw[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, SCHEMA)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema_version": 9}, "schema_version=9: must be 3"),
        ({"benchmark_id": "0" * 12}, "benchmark_id=000000000000: must be "),
        ({"cells": 3}, "is damaged"),
    ],
)
def test_results_that_are_not_what_was_written_are_refused_in_one_line(tmp_path, changed, said):
    raw = json.loads(results(finding()).write(tmp_path).read_text())
    (tmp_path / "benchmark.json").write_text(json.dumps({**raw, **changed}))
    with pytest.raises(RunFolderError, match=said) as raised:
        Benchmark.read(tmp_path / "benchmark.json")
    assert "\n" not in str(raised.value)


# the table


def test_the_table_shows_headlines_with_intervals_and_outcomes_in_a_hundred_columns():
    long = "an_attack_with_a_long_name"
    made = results(
        finding(),
        finding(0.4, attack=long, outcome=Outcome.RESISTED),
        finding(attack="no_number", outcome=Outcome.NOT_APPLICABLE),
    )
    shown = table(replace(made, cells=made.cells * 4))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert next(line for line in lines if line.startswith("A2 lora_span_tokens")).split()[2:6] == [
        "0.7",
        "[0.6,",
        "0.8]",
        "S",
    ]
    assert "0.4 [0.3, 0.5] r" in shown
    assert "no number: A2 no_number (-)" in shown
    assert made.benchmark_id in lines[0]


def test_the_table_names_failed_cells_what_was_left_out_and_who_else_provides_attacks():
    made = results(finding(), failed="CUDA is on fire")
    (one,) = made.attacks
    other = replace(one, id="X1", provided_by="somebody", provider_version="1.0")
    shown = table(replace(made, attacks=(other,), attacks_left_out=("a", "b"), subset=True))
    assert f"failed: {CELL}: CUDA is on fire" in shown
    assert "a part of the benchmark: without 2 attacks" in shown
    assert "X1 lora_span_tokens comes from somebody 1.0" in shown


# two results


def test_a_difference_is_paired_where_the_same_targets_were_asked_about():
    old = results(finding(0.25, ranks=(3.0, 2.0, 5.0, 4.0, 1.0, 6.0)))
    new = results(finding(0.75, ranks=(6.0, 5.0, 2.0, 1.0, 4.0, 3.0)))
    (one,) = changes(old, new)
    assert one.paired
    assert "paired by target" in one.change.how
    assert " ~" not in text_of_changes(old, new).split("change:")[0]


def test_a_difference_without_common_targets_has_the_interval_of_independent_samples():
    old, new = results(finding(0.2)), results(finding(0.8))
    (one,) = changes(old, new)
    assert (one.paired, one.shows) == (False, True)
    assert one.change.value == pytest.approx(0.6)
    assert one.change.low > 0
    lines = text_of_changes(old, new).splitlines()
    shown = next(line for line in lines if line.startswith("A2 lora_span_tokens"))
    assert shown.endswith("* ~")
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1] == "numbers in both: 1, marked *: 1"


def test_a_comparison_says_where_one_of_two_attacks_did_less_work():
    """A busy machine would otherwise look like a weaker attack."""
    whole = {"documents": 1200, "steps of a shadow": 75}
    old = results(replace(finding(0.8), effort=whole))
    new = results(replace(finding(0.6), effort={**whole, "documents": 448}))
    lines = text_of_changes(old, new).splitlines()
    assert "  ! documents 1,200, then 448" in lines
    assert lines[-1] == "numbers in both: 1, marked *: 1, marked !: 1"
    same = text_of_changes(old, replace_effort(new, whole))
    assert "  !" not in same
    assert "marked !" not in same


def replace_effort(made, effort):
    (cell,) = made.cells
    return replace(made, cells=(replace(cell, findings=(replace(cell.findings[0], effort=effort),)),))


def test_what_only_one_result_has_is_told_without_a_difference():
    old = results(finding(), finding(attack="gone"))
    new = results(finding(), finding(attack="fresh", outcome=Outcome.ERROR))
    shown = text_of_changes(old, new)
    assert [c.change is None for c in changes(old, new)] == [False, True, True]
    assert any(line.startswith("A2 gone") and "not there" in line for line in shown.splitlines())
    assert any(line.startswith("A2 fresh") and "error" in line for line in shown.splitlines())


def test_results_of_another_id_are_refused_with_what_differs_and_exit_code_2(tmp_path):
    files = []
    for name, weights in (("a", "5a"), ("b", "6b")):
        files.append(results(finding(), model_sha256=weights * 32).write(tmp_path / name))
    shown = invoke("compare", *files)
    assert shown.exit_code == 2
    assert shown.stderr.count("\n") == 1
    assert "other model; compare only results of the same id" in shown.stderr


def test_results_of_the_same_id_are_compared_on_the_command_line(tmp_path):
    file = results(finding()).write(tmp_path)
    shown = invoke("compare", file, file)
    assert shown.exit_code == 0
    assert "0.7 [0.6, 0.8] S" in shown.stdout
