"""A benchmark of seconds: two cells of the embedded world on a tiny model, attacked, killed and resumed."""

import json
import shutil
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from attacks import registry
from attacks.benchmark.compare import changes
from attacks.benchmark.grid import Grid, GridCell, World
from attacks.benchmark.results import Benchmark
from attacks.benchmark.run import run_benchmark
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measure import MEASURES
from fedproxy_secure.runtime.progress import NoProgress
from tests.support.tiny import save_tiny

SCHEMA = json.loads((resources.files("attacks.benchmark") / "benchmark.schema.json").read_text())
ATTACKS = ("A1", "A2", "sign_counts")
TINY = Grid(
    version=1,
    worlds={
        "tiny": World(
            tasks=("clinic", "petition"),
            records=12,
            test_records=3,
            canaries=(1,),
            rounds=2,
            rank=2,
            learning_rates={"adamw": 3e-3, "sgd": 0.1},
        )
    },
    cells=(
        GridCell(world="tiny", steps=2, batch=2),
        GridCell(
            world="tiny", steps=2, batch=2, protection="unsafe_plaintext", views=("server",), quick=True
        ),
    ),
)
NAMES = [cell.name for cell in TINY.cells]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny LLM in a folder."""
    return str(save_tiny(tmp_path_factory.mktemp("llm") / "tiny"))


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """A benchmark that ended, and its folder."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    return benchmark(out, model), out


@pytest.fixture
def copied(done, tmp_path):
    """A copy of the folder of `done`, to write into."""
    return shutil.copytree(done[1], tmp_path / "copied", symlinks=True)


def benchmark(out, model, **more):
    return run_benchmark(out, **{"grid": TINY, "model": model, "attacks": ATTACKS, "jobs": 1, **more})


def untimed(results):
    """What the attacks found, without what another call measures anew."""
    return [[replace(f, seconds=0.0) for f in cell.findings] for cell in results.cells]


def test_every_cell_is_a_recorded_run_that_was_attacked_from_its_views(done):
    results, out = done
    assert [cell.failed for cell in results.cells] == [None, None]
    for cell in results.cells:
        found = [(f.view, f.attack) for f in cell.findings]
        assert found == [(view, a.name) for view in cell.views for a in results.attacks]
        assert not [f.reason for f in cell.findings if f.outcome == Outcome.ERROR]
        assert (out / "runs" / cell.name / "seed-0" / "federation" / "transcript").is_dir()
        assert (out / "cells" / f"{cell.name}.json").is_file()
    tokens = [f for cell in results.cells for f in cell.findings if f.attack == "lora_span_tokens"]
    assert [f.headline is not None for f in tokens] == [True, True, True]


def test_the_results_follow_the_schema_and_say_what_was_left_out(done):
    results, out = done
    raw = json.loads((out / "benchmark.json").read_text())
    jsonschema.validate(raw, SCHEMA)
    assert Benchmark.read(out / "benchmark.json") == results
    assert results.subset
    assert set(results.attacks_left_out) == registry.every().keys() - {a.name for a in results.attacks}
    assert (out / "benchmark.txt").read_text().startswith(f"benchmark {results.benchmark_id}: grid 1, tiny")


def test_a_benchmark_that_is_interrupted_resumes_to_the_same_results(done, model, tmp_path):
    class Interrupts(NoProgress):
        """Interrupt the benchmark after its second attack, as Ctrl-C does."""

        ended = 0

        def advance(self, task, steps=1, note=""):
            if task.endswith("smoke suite"):
                self.ended += 1
                if self.ended == 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(tmp_path / "out", model, progress=Interrupts())
    assert not (tmp_path / "out" / "benchmark.json").exists()
    with pytest.raises(RunFolderError, match=r"is not empty; add --resume"):
        benchmark(tmp_path / "out", model)
    resumed = benchmark(tmp_path / "out", model, resume=True)
    unbroken, _ = done
    assert untimed(resumed) == untimed(unbroken)
    assert resumed.benchmark_id == unbroken.benchmark_id
    assert {c.change.value for c in changes(unbroken, resumed) if c.change is not None} == {0.0}


def test_what_is_there_is_kept_and_a_part_of_it_can_be_asked_for(done, copied, model):
    results, out = done[0], copied
    before = {name: (out / "cells" / f"{name}.json").stat().st_mtime_ns for name in NAMES}
    part = benchmark(out, model, resume=True, quick=True, attacks=["A2"])
    assert {name: (out / "cells" / f"{name}.json").stat().st_mtime_ns for name in NAMES} == before
    assert (part.cells_left_out, [a.id for a in part.attacks]) == ((NAMES[0],), ["A2"])
    assert {f.attack for f in part.cells[0].findings} == {"lora_span_tokens"}
    assert benchmark(out, model, resume=True) == results


def test_a_cell_that_fails_is_named_and_the_others_still_run(done, model, tmp_path):
    out = tmp_path / "out"
    place = out / "runs" / NAMES[0]
    benchmark(out, model, quick=True)
    place.mkdir(parents=True)
    (place / "something").write_text("else")
    results = benchmark(out, model, resume=True)
    assert "is not a run folder" in results.cells[0].failed
    assert results.cells[1].failed is None
    assert f"failed: {NAMES[0]}: " in (out / "benchmark.txt").read_text()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The example's attack, installed as a package that names an entry point."""
    registry.every()
    registered = dict(registry._REGISTERED)
    place = tmp_path / "somebody-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(f"[{registry.GROUP}]\nmine = own_attack:WorstToken\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    sys.modules.pop("own_attack", None)
    registry._load.cache_clear()
    registry.every()
    module = sys.modules["own_attack"]
    with MEASURES.added(module.WORST_TOKEN_AUC.key, module.WORST_TOKEN_AUC):
        yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(registered)
    registry._load.cache_clear()


def test_an_attack_of_another_package_stands_in_table_and_json_with_its_provider(own, copied, model):
    out = copied
    results = benchmark(out, model, resume=True, attacks=[*ATTACKS, "worst_token"])
    assert results.attacks[-1].name == "worst_token"
    assert (results.attacks[-1].provided_by, results.attacks[-1].provider_version) == ("somebody", "1.0")
    found = [f for cell in results.cells for f in cell.findings if f.attack == "worst_token"]
    assert [f.view for f in found] == ["server", "client", "server"]
    assert all(f.headline is not None for f in found), [f.reason for f in found]
    text = (out / "benchmark.txt").read_text()
    assert "X1 worst_token comes from somebody 1.0" in text
    assert any(line.startswith("X1 worst_token   ") for line in text.splitlines())
    assert '"worst_token"' in (out / "benchmark.json").read_text()
