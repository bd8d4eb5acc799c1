"""The attack benchmark: its grid, its id, who provides attacks, and its command."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest

from attacks.benchmark.cells import CODE, forget_changed
from attacks.benchmark.grid import GRID, Grid, GridCell, chosen, config_of
from attacks.benchmark.identity import identity_of, model_sha256
from attacks.benchmark.providers import entries_of
from attacks.fit import fits
from attacks.registry import every
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import ConfigError, ModelError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_EVENTS, ATTACKS
from fedproxy_secure.runtime.only_one import only_run_in
from tests.support.benchmark_results import CELL, finding, identity, invoke, results
from threat_models import get as threat_model

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
        replace(small, version=small.version + 1),
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
    for name in ("model.safetensors", "chat_template.jinja"):
        (model / name).write_text("another one")
        ids.append(identity_of(small, model=str(model), profile="smoke").id)
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 12 for one in ids)


@pytest.mark.parametrize("kind", ["a folder", "a file", "an empty folder"])
def test_a_model_without_files_that_can_be_read_is_one_line(tmp_path, kind):
    place = tmp_path / ("none.gguf" if kind == "a file" else "none")
    if kind == "an empty folder":
        place.mkdir()
    with pytest.raises(ModelError, match=rf"^(--model |model\.path=){place}: ") as raised:
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


# the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cells", "coded-lora-sgb*"), "names no cell"),
        (("--attack", "lora_span_token"), "did you mean 'lora_span_tokens'?"),
        (("--profile", "huge"), "must be smoke or standard"),
        (("--model", "no/such/folder"), "no such folder"),
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
    RunFolder.create(tmp_path / "out", identity(), "benchmark")
    for more in ((), ("--resume",)):
        shown = invoke("attacks", "--out", tmp_path / "out", *more)
        assert shown.exit_code == 2
        assert shown.stderr.count("\n") == 1
    assert "belongs to other settings" in shown.stderr


def test_a_folder_in_which_another_process_works_is_left_alone(tmp_path):
    out = tmp_path / "out"
    RunFolder.create(out, identity(), "benchmark")
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
