"""Cells of a comparison on disk: what they are read from, and which settings and folders they fit."""

import hashlib
import json
from dataclasses import fields, replace

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.data.records import Record, Task, records_sha256
from fedproxy_secure.data.sources import public_text_sha256
from fedproxy_secure.errors import ModelError, RunFolderError
from fedproxy_secure.experiments.sweeps.method_cells import (
    Cell,
    Origin,
    cell_file,
    read_cell,
    write_cell,
)
from fedproxy_secure.experiments.sweeps.method_folder import (
    check_origins,
    folder_notes,
    missing_cells,
    open_folder,
    read_cells,
)
from fedproxy_secure.models.llm import llm_sha256
from tests.support.finished_cells import finished, origin
from tests.support.tiny import save_tiny

TWO = ("fedot_equal_bytes", "fedproxy_h_ties")
ORIGIN = [field.name for field in fields(Origin)]


# --- on disk


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_cell_is_read_back_as_it_was_written_with_answers_by_both_measures(tmp_path, ratio):
    made = finished("fedproxy_h_ties", ratio, 1, 0.5)
    made = replace(made, outcome=replace(made.outcome, scale=0.5, aligned_windows=3))
    write_cell(tmp_path, made)
    assert read_cell(tmp_path, made.cell) == made
    raw = json.loads(cell_file(tmp_path, made.cell).read_text())
    assert raw["fused"]["bank"].count("1") == 20
    assert raw["fused_norm"]["bank"].count("1") == 24


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"fused_norm": None}, "is damaged"),
        ({"fused_norm": {"bank": "01"}}, "is damaged: answers by acc and acc_norm: 40 and 2 records"),
        ({"fused": {"bank": ""}}, "is damaged: answers '': must be of 0 and 1"),
        ({"seed": 4}, "is the record of another cell; rename it"),
        ({"made_with": {"llm": "a"}}, "is damaged"),
        (
            {"made_with": {**dict.fromkeys(ORIGIN, "a"), "truncated": "many"}},
            "is damaged: made_with: must be five texts and a whole number",
        ),
    ],
)
def test_a_cell_that_is_not_what_its_name_says_is_one_line(tmp_path, change, line):
    made = finished("zero_shot", None, 0, 0.5)
    write_cell(tmp_path, made)
    file = cell_file(tmp_path, made.cell)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunFolderError, match=line) as raised:
        read_cell(tmp_path, made.cell)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["fused_norm", "made_with", "version"])
def test_a_cell_that_lacks_a_key_is_one_line_with_the_remedy(tmp_path, key):
    made = finished("zero_shot", None, 0, 0.5)
    write_cell(tmp_path, made)
    file = cell_file(tmp_path, made.cell)
    raw = json.loads(file.read_text())
    del raw[key]
    file.write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match=f"is damaged: '{key}'; delete it and resume"):
        read_cell(tmp_path, made.cell)


# --- a folder


SWEPT = {
    "name": "other",
    "seeds": [3, 4],
    "data": {"root": "/elsewhere"},
    "compare": {"methods": ["zero_shot"], "remove_ratios": [0.1], "jobs": 3, "against": []},
    "attacks": {"suite": "none"},
    "matrix": {"remove_ratios": [0.1]},
    "track": [],
}


@pytest.mark.parametrize("key", SWEPT)
def test_what_says_which_cells_there_are_does_not_change_a_cells_settings(key):
    assert parse_config({key: SWEPT[key]}).cell_sha256() == parse_config({}).cell_sha256()


@pytest.mark.parametrize(
    "changes",
    [
        {"local": {"steps": 3}},
        {"model": {"path": "x"}},
        {"data": {"max_tokens": 64}},
        {"compare": {"prox_mu": 1.0}},
        {"audit": {"canaries": [1]}},
    ],
    ids=str,
)
def test_what_a_cell_is_computed_from_changes_its_settings(changes):
    assert parse_config(changes).cell_sha256() != parse_config({}).cell_sha256()


def test_how_the_proxy_is_made_changes_the_settings_of_methods_that_have_one_and_of_no_others(tmp_path):
    proxied, whole = finished(TWO[0], 0.25, 0, 0.5), finished("zero_shot", None, 0, 0.5)
    for result in (proxied, whole):
        write_cell(tmp_path, result)
    other = parse_config({"heal": {"steps": 5}, "compress": {"importance": "uniform"}})
    assert len(read_cells(other, tmp_path, [whole.cell])) == 1
    with pytest.raises(RunFolderError, match="was made with settings of SHA-256 "):
        read_cells(other, tmp_path, [proxied.cell])


def test_a_folder_takes_more_seeds_methods_and_ratios_but_no_other_training(tmp_path):
    open_folder(parse_config({}), tmp_path, resume=False)
    open_folder(parse_config(SWEPT), tmp_path, resume=True)
    with pytest.raises(RunFolderError, match="is not empty; add --resume"):
        open_folder(parse_config({}), tmp_path, resume=False)
    with pytest.raises(RunFolderError, match="belongs to other settings"):
        open_folder(parse_config({"local": {"steps": 3}}), tmp_path, resume=True)


def test_cells_of_other_settings_and_of_other_records_are_refused(tmp_path):
    config, steps = parse_config({}), parse_config({"local": {"steps": 3}})
    good = finished("zero_shot", None, 0, 0.5)
    foreign = finished("zero_shot", None, 1, 0.5, made=origin(steps, has_proxy=False))
    other = finished("zero_shot", None, 2, 0.5, made=origin(has_proxy=False, records="cd" * 32))
    unmarked = replace(finished("zero_shot", None, 3, 0.5), origin=None)
    for result in (good, foreign, other, unmarked):
        write_cell(tmp_path, result)
    unfinished = Cell(method="fedot", remove_ratio=0.5, seed=0)
    assert read_cells(config, tmp_path, [good.cell, unfinished]) == [good]
    for result, line in (
        (foreign, "was made with settings of SHA-256 "),
        (other, "was made with other records than those of zero_shot-seed0"),
        (unmarked, "was made with settings of SHA-256 "),
    ):
        with pytest.raises(RunFolderError, match=line) as raised:
            read_cells(config, tmp_path, [good.cell, result.cell])
        assert result.cell.name in str(raised.value)
    with pytest.raises(RunFolderError, match="other records than those found now"):
        check_origins(tmp_path, [good], origin(records="ef" * 32))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"llm": "00" * 32}, "was made with another LLM than that {}; move it out .*, or use its LLM"),
        ({"public_text": "00" * 32}, "was made with other public text than that {}; move it out"),
    ],
)
def test_cells_of_another_llm_and_of_other_public_text_are_refused(tmp_path, changes, line):
    good = finished("zero_shot", None, 0, 0.5)
    foreign = finished("zero_shot", None, 1, 0.5, made=origin(has_proxy=False, **changes))
    for result in (good, foreign):
        write_cell(tmp_path, result)
    with pytest.raises(RunFolderError, match="seed1.json: " + line.format("of zero_shot-seed0")):
        read_cells(parse_config({}), tmp_path, [good.cell, foreign.cell])
    with pytest.raises(RunFolderError, match="seed0.json: " + line.format("found now")):
        check_origins(tmp_path, [good], origin(**changes))


def test_a_cell_of_an_earlier_version_of_its_method_is_refused(tmp_path):
    pooled = finished("centralised_llm", None, 0, 0.5)
    write_cell(tmp_path, pooled)
    file = cell_file(tmp_path, pooled.cell)
    raw = json.loads(file.read_text())
    assert read_cell(tmp_path, pooled.cell) == pooled
    file.write_text(json.dumps({**raw, "version": raw["version"] - 1}))
    with pytest.raises(RunFolderError, match="is of an earlier version; delete it and resume"):
        read_cell(tmp_path, pooled.cell)


def test_the_digests_of_an_llm_and_of_public_text_see_their_files_and_no_others(tmp_path):
    save_tiny(tmp_path / "llm")
    (tmp_path / "public.txt").write_text("some text")
    (tmp_path / "tiny.gguf").write_bytes(b"weights")

    def digests():
        text = public_text_sha256("{data}/public.txt", root=str(tmp_path))
        return llm_sha256(tmp_path / "llm"), llm_sha256(tmp_path / "tiny.gguf"), text

    first = digests()
    assert first[1] == hashlib.sha256(b"weights").hexdigest()
    assert first[2] == hashlib.sha256(b"some text").hexdigest()
    (tmp_path / "llm" / "README.md").write_text("of no effect")
    assert digests() == first
    save_tiny(tmp_path / "llm", seed=1)
    (tmp_path / "tiny.gguf").write_bytes(b"other weights")
    (tmp_path / "public.txt").write_text("other text")
    assert not set(digests()) & set(first)
    assert public_text_sha256("demo", root=None) != public_text_sha256("real_things", root=None)
    with pytest.raises(ModelError, match=r"model.path=.*gone.gguf: cannot be loaded"):
        llm_sha256(tmp_path / "gone.gguf")


def test_the_digest_of_records_sees_every_text_label_and_their_order():
    def tasks(*records: Record, name: str = "bank") -> list[Task]:
        return [Task(name=name, train=records, test=(Record(prompt="t", choices=(" a",), label=0),))]

    one = Record(prompt="p", choices=(" a", " b"), label=0)
    two = Record(prompt="q", choices=(" a", " b"), label=0)
    variants = [
        tasks(one, two),
        tasks(two, one),
        tasks(one),
        tasks(replace(one, label=1), two),
        tasks(replace(one, choices=(" a", " c")), two),
        tasks(one, two, name="clinic"),
    ]
    assert len({records_sha256(v) for v in variants}) == len(variants)
    assert records_sha256(tasks(one, two)) == records_sha256(tasks(one, two))


def test_notes_say_what_is_missing_what_is_left_over_and_where_cells_were_made(tmp_path):
    there = [
        finished("zero_shot", None, 0, 0.5),
        finished("zero_shot", None, 1, 0.5, made=origin(device="cuda")),
    ]
    left_over = finished("fedot", 0.5, 9, 0.5)
    for result in (*there, left_over):
        write_cell(tmp_path, result)
    missing = [Cell(method="fedot", remove_ratio=0.5, seed=s) for s in (0, 1)]
    cells = [*(r.cell for r in there), *missing]
    assert missing_cells(cells, there) == ["2 of 4 cells are missing: fedot at 0.5 (seeds 0, 1)."]
    assert missing_cells([r.cell for r in there], there) == []
    assert folder_notes(tmp_path, cells, there) == [
        "Cells in the folder that these settings do not include, left out: fedot-0.5-seed9.",
        "Cells were made on several devices: cpu, cuda.",
    ]
