"""No guess of ours reads the truth: not by import, not around it, not from disk after the view was taken.

The wall is against mistakes. The last test shows what it does not stop: code that means to look.
"""

import ast
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import attacks.registry
from attacks.base import Budget
from attacks.membership.updates import UpdateMembership
from attacks.reconstruction.sequences import LoraSpanSequences
from attacks.reconstruction.spans import LoraSpanTokens
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.config import ClientConfig
from fedproxy_secure.record.view import view
from tests.support.recorded import record_run
from threat_models import every, get

ROOT = Path(attacks.__file__).parent
GUESSERS = (  # every module with a guess in it, and what guesses are made with; the others run them
    "attacks.audit",
    "attacks.extraction",
    "attacks.integrity",
    "attacks.membership",
    "attacks.memorization",
    "attacks.reconstruction",
    "attacks.base",
    "attacks.budget",
    "attacks.registry",
    "attacks.statistics",
    "attacks.white_box",
)
SEALED = (
    "attacks.suite",
    "fedproxy_secure.experiments.attacked",
    "fedproxy_secure.experiments.compare",
    "fedproxy_secure.experiments.inputs",
    "fedproxy_secure.experiments.methods",
    "fedproxy_secure.experiments.sweeps",
    "fedproxy_secure.flower.engines",
    "fedproxy_secure.flower.recording",
    "fedproxy_secure.flower.server_app",
    "fedproxy_secure.experiments.matrix",
    "fedproxy_secure.experiments.stages",
    "fedproxy_secure.record.transcript",
    "fedproxy_secure.experiments.run",
)
READERS = {"view", "client_names", "read_private", "read_events", "read_truth"}
READERS |= {"draw_canaries", "load_task", "set_aside"}  # they draw by settings that a view has
# ways around arguments: frames, the garbage collector, memory, modules by name
AROUND = {
    "_current_frames",
    "_getframe",
    "cr_frame",
    "ctypes",
    "currentframe",
    "f_back",
    "f_locals",
    "gc",
    "get_objects",
    "get_referents",
    "get_referrers",
    "gi_frame",
    "inspect",
    "modules",
    "tb_frame",
    "tracemalloc",
}
FILES = ("transcript", "records.safetensors", "canaries.json")  # of a run, that hold the truth


def modules():
    for file in sorted(ROOT.rglob("*.py")):
        name = "attacks." + ".".join(file.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


def imports(file):
    """(module, name) of everything a file imports, at any depth."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def ways_around(source):
    """Names and texts in Python source by which a guess could get at the truth; docstrings aside."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    holders = [n for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)]
    said = {n.body[0].value for n in holders}  # type: ignore[attr-defined]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & AROUND
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0], *(alias.name for alias in node.names)} & AROUND
        elif isinstance(node, ast.Attribute):
            called = isinstance(node.value, ast.Name) and node.value.id != "sys"
            found |= {node.attr} & (AROUND - {"modules"} if called else AROUND)
        elif isinstance(node, ast.Name):
            found |= {node.id} & (AROUND - {"modules"})
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
            found |= {f for f in FILES if f in node.value} | ({node.value} & AROUND)
    return found


def guessers():
    return [(name, file) for name, file in modules() if name.startswith(GUESSERS)]


def test_every_attack_is_among_the_modules_watched_and_the_runner_does_read():
    """Or the next test would forbid nothing."""
    assert {type(a).__module__ for a in attacks.registry.every().values()} <= {
        name for name, _ in guessers()
    }
    assert "read_private" in {what for _, what in imports(ROOT / "suite.py")}


@pytest.mark.parametrize(("name", "file"), guessers(), ids=[n for n, _ in guessers()])
def test_no_module_that_guesses_can_read_a_run(name, file):
    for module, what in imports(file):
        full = f"{module}.{what}"
        assert not any(module == s or full == s or module.startswith(f"{s}.") for s in SEALED), full
        assert what not in READERS, full


@pytest.mark.parametrize(("name", "file"), guessers(), ids=[n for n, _ in guessers()])
def test_no_module_that_guesses_looks_around_its_arguments(name, file):
    assert ways_around(file.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nframe = sys._getframe(1)",
        "from inspect import currentframe",
        "import gc\ngc.get_objects()",
        "getattr(sys, '_getframe')(3)",
        "import sys\nsys.modules['attacks.suite']",
        "try:\n    f()\nexcept E as e:\n    e.__traceback__.tb_frame",
        "(view.proxy.parent / 'federation' / 'transcript')",
        "import ctypes.util",
    ],
)
def test_a_module_that_does_look_around_is_found(source):
    assert ways_around(source)


def test_a_docstring_may_speak_of_transcripts():
    assert not ways_around('"""From the transcript."""\n\n\ndef f():\n    """Of a transcript."""\n')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return record_run(folder, fusion={"rule": "fedavg"}, federate={"rounds": 2}, audit={"holdout": 0.5})


def guesses(seen, truth_for_exam):
    """Return, as text, what three attacks guess from a view or why they cannot; questions are prepared."""
    made = []
    for attack, question in truth_for_exam:
        rng = np.random.default_rng(0)
        try:
            made.append(("guess", repr(attack.guess(seen, question, Budget(), rng))))
        except Exception as error:  # an attack may not apply; then it must not apply again
            made.append((type(error).__name__, repr(error)))
    return made


SLOW = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.change])
    for name in ("server_with_clients", "network")
]


@pytest.mark.parametrize("name", ["server", "client", *SLOW])
def test_no_guess_changes_when_the_truth_is_patched_or_gone_after_the_view_was_taken(run, tmp_path, name):
    place = tmp_path / "seed-0"
    shutil.copytree(run, place)
    model = get(name)
    seen = view(place, model)
    truth = read_truth(place, honest_besides=model.clients)
    asked = [
        (attack, attack.exam(truth, seen, np.random.default_rng(1)).question)
        for attack in (LoraSpanTokens(), LoraSpanSequences(), UpdateMembership())
    ]
    before = guesses(seen, asked)
    # the clients use AdamW, whose updates are no sums of gradients
    assert [what for what, _ in before] == ["guess", "NotApplicable", "guess"], before
    transcript = place / "federation" / "transcript"
    for client in truth.clients:
        for file in (transcript / "clients" / client).iterdir():
            file.write_bytes(b"patched")
    assert guesses(seen, asked) == before
    shutil.rmtree(transcript)
    assert guesses(seen, asked) == before


@pytest.mark.parametrize("model", every().values(), ids=list(every()))
def test_honest_clients_state_does_not_even_enter_the_view(run, tmp_path, model):
    """Patched before the view is taken, it changes no view: views are made of messages."""
    place = tmp_path / "seed-0"
    shutil.copytree(run, place)
    seen = view(place, model)
    bad = set(seen.own)
    for client in (place / "federation" / "transcript" / "clients").iterdir():
        if client.name not in bad:
            for file in client.iterdir():
                file.write_bytes(b"patched")
    again = view(place, model)
    for part in ("adapters", "updates", "masked"):
        one, two = getattr(seen, part), getattr(again, part)
        assert one.keys() == two.keys()
        assert all(one[k].tobytes() == two[k].tobytes() for k in one)
    assert (seen.settings, seen.cohorts, set(seen.own)) == (again.settings, again.cohorts, set(again.own))


def test_a_view_says_nothing_of_where_other_clients_records_lie(run):
    for model in every().values():
        text = repr(view(run, model))
        assert ".jsonl" not in text
        assert ClientConfig.__name__ not in text


def test_an_attack_that_means_to_look_finds_the_truth_on_the_stack(run):
    """Not a claim but its limit, which `attacks.base` states: an attack is code that runs as you."""
    seen = view(run, get("server"))
    truth = read_truth(run)
    found = []

    class Peeks(LoraSpanTokens):
        def guess(self, view, question, budget, rng):
            frame = sys._getframe()
            while frame is not None:
                found.extend(v for v in frame.f_locals.values() if v is truth)
                frame = frame.f_back
            return super().guess(view, question, budget, rng)

    run_one(Peeks(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found
