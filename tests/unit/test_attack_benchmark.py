"""The attack benchmark: its grid, its id, the form of its results, and two results side by side."""

import json
import shutil
from dataclasses import replace
from importlib import resources
from itertools import pairwise

import jsonschema
import pytest
from typer.testing import CliRunner

from attacks.benchmark.cells import CODE, forget_changed
from attacks.benchmark.cli import app
from attacks.benchmark.compare import changes, text_of_changes
from attacks.benchmark.grid import GRID, Grid, GridCell, chosen, config_of
from attacks.benchmark.identity import Identity, identity_of, model_sha256
from attacks.benchmark.providers import AttackEntry, entries_of
from attacks.benchmark.results import Benchmark, CellResult
from attacks.benchmark.schema import FILE, benchmark_schema
from attacks.benchmark.table import WIDTH, table
from attacks.fit import fits
from attacks.registry import every
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import ConfigError, ModelError, RunFolderError
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.targets import Targets
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_EVENTS, ATTACKS
from fedproxy_secure.runtime.only_one import only_run_in
from threat_models import get as threat_model

SCHEMA = json.loads((resources.files("attacks.benchmark") / "benchmark.schema.json").read_text())
CELL = "coded-lora-adamw-10x16-4clients-masking"


def identity(**changes):
    parts = {name: "5a" * 32 for name in ("settings_sha256", "world_sha256", "model_sha256")}
    made = Identity(version=1, **parts, profile="smoke", seconds=120.0, seed=0)
    return replace(made, **changes)


def finding(value=0.7, *, attack="lora_span_tokens", ranks=None, outcome=Outcome.SUCCEEDED, view="server"):
    number = Estimate(
        metric="auc",
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        n=9,
        unit="AUC",
        seeds=(0,),
        how="for the test",
    )
    numbers = () if outcome in (Outcome.ERROR, Outcome.NOT_APPLICABLE) else (number,)
    return Finding(
        attack=attack,
        id="A2",
        title="tokens",
        view=view,
        surfaces=("MOD",),
        seed_folder="seed-0",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=numbers,
        measures={},
        positive=None,
        negative=None,
        seconds=1.25,
        seed=0,
        mapping=(),
        read=("MOD",),
        chance=0.5,
        margin=0.05,
        targets=ranks and Targets(exam="ab", kinds="110011", values=ranks),
    )


def results(*findings, name=CELL, failed=None, **changes):
    own = identity(**changes)
    names = list(dict.fromkeys(f.attack for f in findings))
    attacks = tuple(
        AttackEntry(
            name=n,
            id="A2",
            title="tokens",
            headline="auc",
            chance=0.5,
            provided_by="fedproxy-secure",
            provider_version="0.1.0",
            code_sha256="",
        )
        for n in names
    )
    cell = CellResult(
        benchmark_id=own.id,
        name=name,
        world="coded",
        adapter="lora",
        optimizer="adamw",
        steps=10,
        batch=16,
        clients=4,
        protection="masking",
        epsilon=None,
        views=("server",),
        attacks=attacks,
        seconds=1.0,
        failed=failed,
        findings=findings,
    )
    return Benchmark(
        benchmark_id=own.id,
        identity=own,
        model="demo",
        command="for the test",
        environment={"packages": {"fedproxy-secure": "0.1.0"}},
        attacks=attacks,
        cells=(cell,),
        attacks_left_out=(),
        cells_left_out=(),
        subset=False,
    )


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


# the grid


def test_every_cell_of_the_grid_has_settings_that_can_be_protected_and_a_name_of_its_own():
    names = [config_of(GRID, cell, model="demo").name for cell in GRID.cells]
    assert len(set(names)) == len(names)
    assert CELL in names


def test_the_quick_part_has_one_cell_of_each_world():
    assert [cell.world for cell in chosen(GRID, quick=True)] == list(GRID.worlds)


def test_views_of_the_first_cell_give_every_attack_a_threat_model_that_it_fits():
    models = [threat_model(name) for name in GRID.cells[0].views]
    assert [a.info.name for a in every().values() if not any(fits(a, m) for m in models)] == []


@pytest.mark.parametrize("world", GRID.worlds)
def test_no_record_belongs_to_two_of_sixteen_clients(world):
    cell = next(c for c in GRID.cells if (c.world, c.clients) == (world, 16))
    clients = config_of(GRID, cell, model="demo").data.clients
    held = [load_task(client, root=None).train for client in clients]
    assert {len(records) for records in held} == {GRID.worlds[world].records}
    prompts = [record.prompt for records in held for record in records]
    assert len(set(prompts)) == len(prompts)


def test_cells_are_chosen_by_patterns_and_an_unknown_one_is_named():
    assert [c.name for c in chosen(GRID, patterns=["coded-ffa*"])] == [CELL.replace("lora", "ffa")]
    with pytest.raises(ConfigError, match=r"^--cells coded-loro\*: names no cell; "):
        chosen(GRID, patterns=["coded-loro*"])
    with pytest.raises(ConfigError, match="no cell matches both"):
        chosen(GRID, quick=True, patterns=["coded-ffa*"])


# the id


@pytest.fixture(scope="module")
def small():
    """The first two cells of the coded world."""
    return replace(GRID, cells=GRID.cells[:2])


@pytest.fixture
def model(tmp_path):
    """A folder with small stand-ins for weights, configuration and tokenizer."""
    place = tmp_path / "llm"
    place.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (place / name).write_text(name)
    return place


def test_the_id_is_the_same_for_another_order_of_cells_and_another_folder_of_the_model(small, model):
    known = identity_of(small, model=str(model), profile="smoke")
    turned = replace(small, cells=small.cells[::-1])
    moved = shutil.copytree(model, model.parent / "elsewhere")
    assert identity_of(turned, model=str(moved), profile="smoke").id == known.id


def test_the_id_changes_with_every_setting_with_the_model_and_with_the_profile(small, model):
    def one_cell(**changed):
        return replace(small, cells=(replace(small.cells[0], **changed), small.cells[1]))

    def one_world(**changed):
        return replace(small, worlds={**small.worlds, "coded": replace(small.worlds["coded"], **changed)})

    grids: list[Grid] = [
        small,
        replace(small, version=2),
        replace(small, cells=small.cells[:1]),
        *(
            one_cell(**{key: value})
            for key, value in {
                "world": "notes",
                "adapter": "ffa",
                "optimizer": "sgd",
                "steps": 11,
                "batch": 17,
                "clients": 8,
                "protection": "unsafe_plaintext",
                "epsilon": 8.0,
                "views": ("server",),
            }.items()
        ),
        *(
            one_world(**{key: value})
            for key, value in {
                "tasks": ("clinic", "bank"),
                "records": 100,
                "test_records": 49,
                "canaries": (1,),
                "rounds": 5,
                "rank": 8,
                "learning_rates": {"adamw": 1e-3, "sgd": 0.1},
            }.items()
        ),
    ]
    ids = [identity_of(grid, model=str(model), profile="smoke").id for grid in grids]
    ids.append(identity_of(small, model=str(model), profile="standard").id)
    (model / "model.safetensors").write_text("other weights")
    ids.append(identity_of(small, model=str(model), profile="smoke").id)
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 12 for one in ids)


@pytest.mark.parametrize("kind", ["a folder", "a file", "an empty folder"])
def test_a_model_without_files_that_can_be_read_is_one_line(tmp_path, kind):
    place = tmp_path / ("none.gguf" if kind == "a file" else "none")
    if kind == "an empty folder":
        place.mkdir()
    with pytest.raises(ModelError, match=rf"^--model {place}: ") as raised:
        model_sha256(str(place))
    assert "\n" not in str(raised.value)


# who provides an attack


def test_an_attack_of_this_project_is_named_with_the_version_and_the_digest_of_its_code():
    entries = entries_of(every().values())
    assert {e.provided_by for e in entries} == {"fedproxy-secure"}
    assert all(len(e.code_sha256) == 64 and e.provider_version for e in entries)


def test_only_the_findings_of_an_attack_whose_code_has_changed_are_forgotten(tmp_path):
    (one,) = results(finding()).attacks
    steady, other = replace(one, code_sha256="aa"), replace(one, name="other", code_sha256="bb")
    events = RunFolder(path=tmp_path)
    for name in (steady.name, other.name):
        events.append_jsonl(ATTACK_EVENTS, {"attack": name})
    forget_changed(tmp_path, (steady, other))
    assert len(events.read_jsonl(ATTACK_EVENTS)) == 2
    forget_changed(tmp_path, (steady, replace(other, code_sha256="cc")))
    assert events.read_jsonl(ATTACK_EVENTS) == [{"attack": steady.name}]
    assert json.loads((tmp_path / ATTACKS / CODE).read_text()).keys() == {steady.name, other.name}


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
        ({"schema_version": 9}, "schema_version=9: must be 2"),
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


# the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cells", "coded-lora-sgb*"), "names no cell"),
        (("--attack", "lora_span_token"), "did you mean 'lora_span_tokens'?"),
        (("--profile", "huge"), "must be smoke or standard"),
        (("--model", "no/such/folder"), "has no weights"),
        (("--against", "no/such.json"), "cannot be read"),
    ],
)
def test_what_is_not_known_is_one_line_and_exit_code_2(tmp_path, words, said):
    shown = invoke("attacks", "--out", tmp_path / "out", *words)
    assert shown.exit_code == 2
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1
    assert said in shown.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_benchmark_is_refused_in_one_line(tmp_path):
    RunFolder.create(tmp_path / "out", identity())
    for more in ((), ("--resume",)):
        shown = invoke("attacks", "--out", tmp_path / "out", *more)
        assert shown.exit_code == 2
        assert shown.stderr.count("\n") == 1
    assert "belongs to other settings" in shown.stderr


def test_a_folder_in_which_another_process_works_is_left_alone(tmp_path):
    out = tmp_path / "out"
    RunFolder.create(out, identity())
    with only_run_in(out):
        before = sorted(f.name for f in out.iterdir())
        for more in ((), ("--resume",)):
            shown = invoke("attacks", "--out", out, *more)
            assert shown.exit_code == 75, shown.output
            assert "a command runs here already" in shown.stderr
        assert sorted(f.name for f in out.iterdir()) == before


def test_a_dry_run_names_the_id_the_cells_and_the_attacks():
    shown = invoke("attacks", "--dry-run", "--quick", "--attack", "A2")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split()[0] == "benchmark"
    assert sum(line.startswith("cell ") for line in lines) == len(chosen(GRID, quick=True))
    assert [line for line in lines if line.startswith("attack ")] == ["attack A2 lora_span_tokens"]


def test_cells_of_one_world_differ_from_its_base_in_few_things():
    for world in GRID.worlds:
        base, *others = (cell for cell in GRID.cells if cell.world == world)
        axes = ("adapter", "optimizer", "steps", "batch", "clients", "protection", "epsilon")
        differ = [sum(getattr(base, a) != getattr(o, a) for a in axes) for o in others]
        assert all(count >= 1 for count in differ)
        assert differ.count(1) == len(others) - 2  # the two rounds of the literature differ in more
    assert all(a.name != b.name for a, b in pairwise(GRID.cells))
    assert isinstance(GRID.cells[0], GridCell)
