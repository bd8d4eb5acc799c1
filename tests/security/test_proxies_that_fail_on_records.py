"""A proxy or tokenizer that fails on some records only is refused before any is read, or tells nothing."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedproxy_secure.config import parse_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import DataError, ModelError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.proxy_intake.checks import check_model
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.proxy_intake.public_text import bundled_texts
from tests.support.hostile_proxies import edit_json, edit_weights
from tests.support.loaded_proxies import load, refused, says
from tests.support.tiny import VOCABULARY, save_tiny, tiny_llama, tiny_settings


@pytest.fixture
def proxy(tmp_path):
    return save_tiny(tmp_path / "proxy", blocks=2)


def with_rows(folder, rows, *names):
    """Cut matrices to so many tokens, and say so in the configuration."""
    edit_json(folder / "config.json", vocab_size=rows, tie_word_embeddings=len(names) == 1)
    return edit_weights(folder, lambda t: [t.update({name: t[name][:rows].contiguous()}) for name in names])


def test_a_proxy_with_fewer_embeddings_than_tokens_is_refused(proxy):
    with_rows(proxy, VOCABULARY - 1, "model.embed_tokens.weight", "lm_head.weight")
    refused(proxy, f"has {VOCABULARY - 1} rows; must have {VOCABULARY}", ModelError)


def test_a_proxy_for_shorter_records_than_the_job_allows_is_refused(proxy):
    load(proxy, max_tokens=128)
    refused(proxy, r"takes 128 tokens; must take 129 \(data.max_tokens\)", ModelError, max_tokens=129)


def test_positions_that_are_not_there_are_found_by_running(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.support.tiny import tiny_tokenizer

    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    load(folder)
    refused(folder, "takes 64 tokens", ModelError, max_tokens=65)
    edit_json(folder / "config.json", n_positions=65)
    refused(folder, "^proxy: ", ModelError, max_tokens=65)


def test_a_tokenizer_without_padding_or_end_is_refused(proxy):
    edit_json(proxy / "tokenizer_config.json", pad_token=None, eos_token=None)
    refused(proxy, "pad_token_id is None", ModelError)


@pytest.fixture
def world(tmp_path):
    config = parse_config(tiny_settings(tmp_path, protect={"scheme": "unsafe_plaintext"}))
    return FederationJob.from_config(config, seed=0), tmp_path / "llm"


def records(job, text):
    """The job with one more record of client 0, of that text."""
    file = Path(job.data_root) / "0.train.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps({"text": text, "choices": ["no", "yes"], "label": 0}) + "\n")


def test_what_is_wrong_with_a_proxy_is_said_before_records_are_read(world):
    job, folder = world
    with_rows(folder, VOCABULARY - 1, "model.embed_tokens.weight", "lm_head.weight")
    before = says(job, folder)
    records(job, "the last token: \u00ff\u0143")
    after = says(job, folder)
    nowhere = job.changed(data_root="/nowhere")
    assert before == after == says(nowhere, folder)
    assert before.startswith("ModelError: proxy: its input embedding has")
    with pytest.raises(ModelError, match="its input embedding has"):
        with_proxy(job, folder)  # a server does not offer it either


RECORD_DP = {"unit": "record", "target_delta": 1e-3, "randomness": "unsafe_simulated"}


def with_privacy(job, folder, tmp_path):
    settings = {**RECORD_DP, "ledger": str(tmp_path / f"ledger-{len(list(tmp_path.iterdir()))}")}
    local = job.local.model_copy(update={"batch_size": 16})  # all records: to find the noise takes no time
    return with_proxy(job.changed(privacy=job.privacy.model_copy(update=settings), local=local), folder)


def save_word_tokenizer(folder, words):
    """A tokenizer that fails, on purpose, on every word that it does not know."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[none]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.save_pretrained(folder)


def words_of(job):
    """All words that a tokenizer meets in client 0's training records."""
    train = load_task(job.clients[0], root=job.data_root).train
    return sorted({word for r in train for text in (r.prompt, *r.choices) for word in text.split()})


def test_a_tokenizer_that_fails_on_a_word_does_not_tell_whether_it_is_in_the_data(world, tmp_path):
    pytest.importorskip("opacus")
    job, folder = world
    words = sorted({*words_of(job), *"\n".join(bundled_texts()).split()})
    model = tiny_llama()
    model.resize_token_embeddings(3 + len(words), mean_resizing=False)
    model.save_pretrained(folder)
    save_word_tokenizer(folder, words)
    without = says(with_proxy(job, folder), folder), says(with_privacy(job, folder, tmp_path), folder)
    records(job, "wanted")
    with pytest.raises(Exception, match="UNK"):  # without privacy it tells
        build_client(with_proxy(job, folder), 0, folder)
    assert without == ("built", "built")
    assert says(with_privacy(job, folder, tmp_path), folder) == "built"


def test_a_tokenizer_that_fails_on_public_text_is_refused_before_a_record_is_read(world):
    job, folder = world
    save_word_tokenizer(folder, [*words_of(job), *(f"word{n}" for n in range(100))])
    with pytest.raises(ModelError, match="fails on public text"):
        load_proxy(folder, max_tokens=64, device="cpu")


def test_a_response_too_long_for_a_tokenizer_made_for_it_does_not_tell(world, tmp_path):
    pytest.importorskip("opacus")
    job, folder = world
    file = Path(job.data_root) / "0.train.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps({"text": "x", "choices": ["n" * 80, "y"], "label": 0}) + "\n")
    assert says(with_proxy(job, folder), folder).startswith("DataError: record 12")  # without privacy
    client = build_client(with_privacy(job, folder, tmp_path), 0, folder)
    assert len(client.items) == 13
    assert client.items[12].ids == ()
    update = client.train(round=0, start=start_of(client))
    assert torch.isfinite(torch.from_numpy(update.update)).all()


def edit_tokenizer(folder, **changes):
    return edit_json(folder / "tokenizer.json", **changes)


def replace_part(word, content):
    return {"type": "Replace", "pattern": {"String": word}, "content": content}


GROWING = {  # a word of 7 letters becomes 2.5e14, and the process ends where it is read
    "type": "Sequence",
    "normalizers": [
        replace_part("Mallory", "\x01" * 4000),
        replace_part("\x01", "\x02" * 4000),
        replace_part("\x02", "\x03" * 4000),
        replace_part("\x03", "x" * 4000),
    ],
}


LONG_WORD = replace_part("Mallory", "x" * 40)


SEARCHING = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"normalizer": GROWING}, "Replace: content must be a word of at most 64"),
        ({"normalizer": LONG_WORD}, None),  # grows by less than the bound: see the models that couple
        ({"pre_tokenizer": SEARCHING}, "its regular expression"),
    ],
    ids=["grows", "grows little", "searches for ever"],
)
def test_a_tokenizer_that_ends_the_process_on_a_word_is_refused_before_records_are_read(
    world, tmp_path, changes, line
):
    job, folder = world
    edit_tokenizer(folder, **changes)
    if line is None:
        assert says(with_proxy(job, folder), folder) == "built"
        return
    refused(folder, line, DataError)
    private = job.changed(privacy=job.privacy.model_copy(update=RECORD_DP), data_root="/nowhere")
    for one in (job, private):
        assert says(one, folder).startswith("DataError: proxy's tokenizer: ")
        with pytest.raises(DataError, match=r"^proxy's tokenizer: "):
            with_proxy(one, folder)


def test_a_tokenizer_that_draws_its_tokens_is_refused(proxy):
    """Training would not be repeatable: the same noise would serve other gradients."""
    raw = json.loads((proxy / "tokenizer.json").read_text())
    edit_tokenizer(proxy, model=raw["model"] | {"dropout": 0.1})
    refused(proxy, "has dropout; must have none", DataError)
    edit_tokenizer(proxy, model=raw["model"] | {"dropout": 0.0})
    load(proxy)


ROPE = {"rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 45}


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [0.02] * 4, "attention_factor": 1.0}


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("named", ["rope_type", "type"])
@pytest.mark.parametrize("kind", ["longrope", "dynamic", "su", ["default"]])
@pytest.mark.parametrize("deep", [False, True], ids=["all layers", "of some layers"])
def test_positions_that_depend_on_the_longest_record_of_a_batch_are_refused(proxy, key, named, kind, deep):
    rope = {**ROPE, named: kind}
    edit_json(proxy / "config.json", **{key: {"full_attention": rope} if deep else rope})
    refused(proxy, "its rope_type is .*; must be one of default, linear", DataError)


def test_factors_by_length_are_refused(proxy):
    edit_json(proxy / "config.json", rope_parameters={**ROPE, **FACTORS, "rope_type": "yarn"})
    refused(proxy, "_factor' is not allowed; rows of a batch would couple", DataError)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_positions_that_depend_on_a_token_s_place_alone_are_allowed(proxy, kind):
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    edit_json(proxy / "config.json", rope_parameters={**ROPE, **more, "rope_type": kind})
    load(proxy)


def test_what_a_model_was_built_with_is_looked_at_too(proxy):
    model = load(proxy).model
    check_model(model)
    rotary = model.model.rotary_emb
    for kind in ("dynamic", {"sliding_attention": "default", "full_attention": "longrope"}):
        rotary.rope_type = kind
        with pytest.raises(DataError, match="its rope_type is"):
            check_model(model)
    rotary.rope_type = "default"
    model.extra = torch.nn.BatchNorm1d(4)
    with pytest.raises(DataError, match="normalises over a batch"):
        check_model(model)


def start_of(client):
    from fedproxy_secure.models.adapters import get_vector

    with client.model.lent() as tuned:
        return get_vector(tuned)
