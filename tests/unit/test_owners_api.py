"""The owner's API: what is told, noise that asking again does not change, the service, its commands."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import ApiConfig, parse_config
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, QueryRefused
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.serve.disclosure import joined, tell
from fedproxy_secure.serve.ledger import QueryLedger, Usage
from fedproxy_secure.serve.noise import noise
from fedproxy_secure.serve.service import OwnersApi
from tests.support.tiny import VOCABULARY, save_tiny, tiny_llama

KEY = Secret(bytes(range(32)))
TEXT = [1, 40, 50, 60, 70]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("owner") / "fused")


def opened(folder, tmp_path, **policy) -> OwnersApi:
    ledger = QueryLedger.create(tmp_path / "api.queries")
    return OwnersApi(folder, policy=ApiConfig(**policy), ledger=ledger)


@torch.no_grad()
def logits_of(text) -> torch.Tensor:
    return tiny_llama()(input_ids=torch.tensor([text]), use_cache=False).logits[0]


# What is told


@given(seed=st.integers(0, 2**31), k=st.integers(1, 30), size=st.integers(2, 25))
def test_top_k_tells_the_likeliest_tokens_and_their_probabilities_and_nothing_else(seed, k, size):
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    told = tell(logits, torch.tensor([1, 2, 3]), ApiConfig(answers="top_k", top_k=k))
    shown = min(k, size)
    ordered = logits.log_softmax(-1).sort(-1, descending=True)
    assert torch.equal(told.tokens, ordered.indices[:, :shown])
    assert torch.allclose(told.numbers, ordered.values[:, :shown])
    for part in (told.tokens, told.numbers):
        assert part.untyped_storage().nbytes() == part.nbytes  # no other number is behind it
    assert torch.equal(told.likeliest, logits.argmax(-1))


def test_text_tells_one_token_and_no_number():
    logits = logits_of(TEXT)
    told = tell(logits, torch.tensor(TEXT), ApiConfig(answers="text"))
    assert told.numbers is None
    assert torch.equal(told.tokens, logits.argmax(-1, keepdim=True))
    assert told.tokens.untyped_storage().nbytes() == told.tokens.nbytes


def test_logits_are_told_as_they_are_and_are_a_copy():
    logits = logits_of(TEXT)
    told = tell(logits, torch.tensor(TEXT), ApiConfig())
    assert torch.equal(told.numbers, logits)
    told.numbers.zero_()
    assert logits.abs().sum() > 0


def test_noise_without_a_key_is_refused():
    with pytest.raises(ValueError, match=r"noise=0.5: needs a key"):
        tell(logits_of(TEXT), torch.tensor(TEXT), ApiConfig(noise=0.5))


def test_every_kind_of_answer_is_made_from_the_same_noisy_logits():
    ids, logits = torch.tensor(TEXT), logits_of(TEXT)
    noisy = tell(logits, ids, ApiConfig(noise=3), KEY).numbers
    assert not torch.equal(noisy.argmax(-1), logits.argmax(-1))
    top = tell(logits, ids, ApiConfig(noise=3, answers="top_k"), KEY)
    assert torch.allclose(top.numbers, noisy.log_softmax(-1).gather(-1, top.tokens))
    said = tell(logits, ids, ApiConfig(noise=3, answers="text"), KEY)
    assert torch.equal(said.likeliest, noisy.argmax(-1))


# Noise


@given(
    text=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    one=st.lists(st.integers(0, 9), max_size=3),
    other=st.lists(st.integers(0, 9), max_size=3),
)
def test_noise_after_a_token_does_not_depend_on_what_follows(text, one, other):
    n = len(text)
    first, second = (noise(KEY, np.array(text + more), level=1.5, size=7) for more in (one, other))
    assert np.array_equal(first[:n], second[:n])
    later = noise(KEY, np.array(text + one), level=1.5, size=7, start=n - 1)
    assert np.array_equal(later, first[n - 1 :])  # nor on where one begins to look


def test_noise_is_another_after_another_beginning_under_another_key_and_at_another_level():
    def drawn(text, key=KEY, level=1.0):
        return noise(key, np.array(text), level=level, size=50)[-1]

    base = drawn([5, 6, 7])
    for other in (
        drawn([4, 6, 7]),
        drawn([6, 7]),
        drawn([5 + 256 * 6, 7]),  # no two texts run into the same bytes
        drawn([5, 6, 7], key=Secret(bytes(32))),
        drawn([5, 6, 7], level=2.0) / 2.0,  # two levels of one noise would give it away
    ):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.5
        assert np.abs(base - other).min() > 0


# The service


def test_answers_are_the_models_by_the_policy(folder, tmp_path):
    api = opened(folder, tmp_path, answers="top_k", top_k=3)
    first, second = api.ask("acme", [TEXT, TEXT[:2]])
    expected = logits_of(TEXT).log_softmax(-1).topk(3)
    assert torch.equal(first.tokens, expected.indices)
    assert torch.allclose(first.numbers, expected.values, atol=1e-5)
    assert torch.equal(second.tokens, first.tokens[:2])
    assert api.asked("acme") == Usage(queries=2, tokens=7)
    assert api.asked("other") == Usage()


def test_the_api_writes_the_likeliest_token_each_time_and_counts_what_it_writes(folder, tmp_path):
    api = opened(folder, tmp_path, answers="text")
    told = api.write("acme", TEXT, count=4)
    text = list(TEXT)
    for _ in range(4):
        text.append(int(logits_of(text)[-1].argmax()))
    assert told.likeliest.tolist() == text[5:]
    assert told.numbers is None
    assert api.asked("acme") == Usage(queries=1, tokens=9)


@pytest.mark.parametrize("answers", ["text", "top_k", "logits"])
def test_asking_again_or_as_somebody_else_brings_the_same_noise(folder, tmp_path, answers):
    api = opened(folder, tmp_path, noise=2.0, answers=answers)
    first = joined([api.ask("acme", [TEXT])[0] for _ in range(8)])
    other = api.ask("other", [[*TEXT, 80, 90]])[0]
    again = OwnersApi(folder, policy=api.policy, ledger=api.ledger).ask("acme", [TEXT])[0]
    for part in (*(first.part(i) for i in range(8)), other.part(slice(0, 5)), again):
        assert torch.equal(part.likeliest, first.part(0).likeliest)
        if part.numbers is not None:
            assert torch.allclose(part.numbers, first.part(0).numbers, atol=1e-4)
    written = api.write("acme", TEXT, count=1)
    assert written.likeliest.tolist() == [int(first.part(0).likeliest[-1])]


def test_texts_and_tokens_are_both_limited_and_a_refused_call_counts_nothing(folder, tmp_path):
    api = opened(folder, tmp_path, queries=3, tokens=20)
    api.ask("acme", [TEXT, TEXT])
    for texts, line in (
        ([TEXT, TEXT], "acme: has asked 2 queries and would have asked 4; must be <= 3 (api.queries)"),
        ([TEXT * 3], "acme: has asked 10 tokens and would have asked 25; must be <= 20 (api.tokens)"),
    ):
        with pytest.raises(QueryRefused) as refused:
            api.ask("acme", texts)
        assert str(refused.value) == line
    with pytest.raises(QueryRefused, match=r"api\.tokens"):
        api.write("acme", TEXT, count=6)
    assert api.asked("acme") == Usage(queries=2, tokens=10)
    api.write("acme", TEXT, count=5)
    with pytest.raises(QueryRefused, match=r"api\.queries"):
        api.ask("acme", [[1]])
    api.ask("other", [TEXT])  # has limits of its own


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ([], "text: has no token"),
        ([VOCABULARY], f"token={VOCABULARY}: must be >= 0 and < {VOCABULARY}"),
        ([-1], "token=-1"),
        ([1] * 129, "tokens=129: must be <= 128"),
    ],
)
def test_a_text_that_the_model_cannot_read_is_refused_and_not_counted(folder, tmp_path, text, line):
    api = opened(folder, tmp_path)
    with pytest.raises(QueryRefused) as refused:
        api.ask("acme", [TEXT, text])
    assert str(refused.value).startswith(line)
    with pytest.raises(QueryRefused):
        api.write("acme", text, count=1)
    assert api.asked("acme") == Usage()


def test_a_call_that_asks_for_nothing_is_refused_and_not_counted(folder, tmp_path):
    api = opened(folder, tmp_path)
    with pytest.raises(QueryRefused, match="must be >= 1"):
        api.write("acme", TEXT, count=0)
    with pytest.raises(QueryRefused, match="must be at least one text"):
        api.ask("acme", [])
    assert api.ledger.customers() == {}


def test_a_call_of_too_many_tokens_is_refused_whatever_the_policy_grants_and_not_counted(folder, tmp_path):
    ledger = QueryLedger.create(tmp_path / "api.queries")
    api = OwnersApi(folder, policy=ApiConfig(), ledger=ledger, most_tokens=12)
    with pytest.raises(QueryRefused, match=r"tokens=15 in one call: must be <= 12; ask in several calls"):
        api.ask("acme", [TEXT, TEXT, TEXT])
    with pytest.raises(
        QueryRefused, match=r"tokens=15 in one call: .*; ask a shorter text, or give OwnersApi a"
    ):
        api.ask("acme", [TEXT, 3 * TEXT])
    with pytest.raises(
        QueryRefused, match=r"tokens=13 in one call: .*; ask a shorter text or for fewer tokens"
    ):
        api.write("acme", TEXT, count=8)
    assert api.asked("acme") == Usage()
    api.ask("acme", [TEXT, TEXT])


def test_the_api_computes_only_what_was_counted_and_what_was_counted_stays_so(folder, tmp_path):
    api = opened(folder, tmp_path, queries=1)
    passes = []

    def fails(*_: object) -> None:
        passes.append(api.asked("acme"))
        raise RuntimeError("out of memory")

    api._model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError):
        api.ask("acme", [TEXT])
    assert passes == [Usage(queries=1, tokens=5)]  # counted before the first pass
    with pytest.raises(QueryRefused):
        api.ask("acme", [TEXT])
    assert len(passes) == 1


# Commands


def typed(*words: str):
    return CliRunner().invoke(app, ["api", *words])


def test_a_run_is_asked_through_its_policy_from_the_command_line(tmp_path):
    run = tmp_path / "demo"
    RunFolder.create(
        run, parse_config({"api": {"answers": "top_k", "top_k": 2, "queries": 2, "tokens": 30}})
    )
    save_tiny(run / "seed-0" / "fused")
    ask = ("ask", "to be", "--run", str(run), "--customer", "acme", "--tokens", "3")
    assert "without its ledger an API answers nothing" in typed(*ask).output
    made = typed("open", "--run", str(run))
    assert "the 2 likeliest next tokens" in made.output
    assert "is there already" in typed("open", "--run", str(run)).output
    assert "no queries yet" in typed("ledger", "--run", str(run)).output
    answer = typed(*ask)
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert lines[-1] == "acme: 1 of 2 queries, 9 of 30 tokens"
    assert len(lines) >= 5
    assert typed("ledger", "--run", str(run)).output == "acme: 1 of 2 queries, 9 of 30 tokens\n"
    (tmp_path / "question").write_text("to be\n")
    other = ("ask", "--run", str(run), "--customer", "other", "--tokens", "3")
    by_file = typed(*other, "--file", str(tmp_path / "question")).output
    assert by_file.splitlines()[:-1] == answer.output.splitlines()[:-1]
    for wrong in ((), ("to be", "--file", "-")):
        assert "TEXT, --file: must be exactly one" in typed(*other, *wrong).output
    assert "cannot be read" in typed(*other, "--file", str(tmp_path / "none")).output
    long = typed("ask", "to be or not to be", "--run", str(run), "--customer", "acme")
    assert long.exit_code == 2
    assert "must be <= 30 (api.tokens)" in long.output
    assert typed(*ask).exit_code == 0
    assert "must be <= 2 (api.queries)" in typed(*ask).output


def test_commands_for_what_is_not_there_end_in_one_line(tmp_path):
    run = tmp_path / "demo"
    assert typed("ledger", "--run", str(run)).exit_code == 2
    RunFolder.create(run, parse_config({}))
    typed("open", "--run", str(run), "--ledger", str(tmp_path / "l"))
    missing = typed(
        *("ask", "x", "--run", str(run), "--customer", "a", "--seed", "3", "--ledger", str(tmp_path / "l"))
    )
    assert missing.exit_code == 2
    assert "there is no fused LLM" in missing.output
    save_tiny(run / "seed-0" / "fused")
    nobody = typed("ask", "x", "--run", str(run), "--customer", "../a", "--ledger", str(tmp_path / "l"))
    assert nobody.exit_code == 2
    assert "customer='../a'" in nobody.output
    plain = typed("ask", "x", "--run", str(run), "--customer", "a", "--ledger", str(tmp_path / "l"))
    assert plain.output.splitlines()[-1] == "a: 1 queries, 18 tokens"


def test_a_text_from_standard_input_stands_in_no_command(tmp_path):
    code = "from fedproxy_secure.cli.api import _asked_text; print(repr(_asked_text(None, '-')))"
    done = subprocess.run([sys.executable, "-c", code], input="to be\n", capture_output=True, text=True)
    assert done.stdout == "'to be'\n", done.stderr


def test_a_customers_name_is_a_short_plain_one(tmp_path):
    ledger = QueryLedger.create(tmp_path / "l")
    for name in ("", "-a", "a b", "a\n", "a" * 65, "é"):
        with pytest.raises(ConfigError, match="customer="):
            ledger.spend(name, [1], ApiConfig())
    ledger.spend("Acme_1.x@y-z", [1], ApiConfig())
