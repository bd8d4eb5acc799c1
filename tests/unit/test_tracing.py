"""Traitor tracing: which rows are marked, what a copy differs in, and what a leaked copy says."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.models.llm import demo_llm_folder, load_tokenizer
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.tracing.copies import amplitudes, code_of, make_marks, marked_numbers
from fedproxy_secure.tracing.key import commitment, uniforms
from fedproxy_secure.tracing.suspects import answers_in, rows_of, trace_rows
from fedproxy_secure.tracing.tardos import CUT, Innocence, probabilities, scores
from fedproxy_secure.tracing.tensor_file import (
    as_bytes,
    as_numbers,
    find_matrix,
    with_rows,
)
from fedproxy_secure.tracing.unused import unused_rows
from tests.support.hostile_proxies import edit_json
from tests.support.tiny import save_tiny
from tests.support.traced import marks_like_a_real_llm, traced_proxy

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
