"""A proxy cannot load anything but its own files, nor fail on some records only, nor couple records."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedproxy_secure.config import parse_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import DataError, FedProxyError, ModelError, ProtocolAborted
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake.checks import check_model
from fedproxy_secure.proxy_intake.files import check_folder
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.proxy_intake.parts import Offer
from fedproxy_secure.proxy_intake.public_text import bundled_texts
from tests.support.hostile_proxies import as_adapter_of, edit_json, edit_weights, shard
from tests.support.tiny import VOCABULARY, same_weights, save_tiny, tiny_llama, tiny_settings

NORM = "model.norm.weight"


@pytest.fixture
def proxy(tmp_path):
    return save_tiny(tmp_path / "proxy", blocks=2)


@pytest.fixture
def elsewhere(tmp_path):
    return save_tiny(tmp_path / "elsewhere", blocks=2, seed=5)


def load(folder, max_tokens=64):
    return load_proxy(folder, max_tokens=max_tokens, device="cpu")


def refused(folder, match, kind=FedProxyError, max_tokens=64):
    """Refused in one line that names neither the place nor the machine."""
    with pytest.raises(kind, match=match) as caught:
        load(folder, max_tokens)
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)


# ------------------------------------------------------------------ other weights under the same files


def test_the_same_files_no_longer_stand_for_different_weights(tmp_path, proxy, elsewhere):
    """An adapter names its base model, and that can be another on each client's machine."""
    base = save_tiny(tmp_path / "base", blocks=2, seed=1)
    as_adapter_of(proxy, base)
    one, _ = load_llm(proxy, device="cpu")
    shutil.rmtree(base)
    elsewhere.rename(base)
    two, _ = load_llm(proxy, device="cpu")
    assert not same_weights(one, two)  # not a file of the folder differs
    refused(proxy, "must be one that a causal LM saved as safetensors has", DataError)
    with pytest.raises(DataError):
        Offer.of(proxy)


def test_a_whole_model_with_an_adapter_beside_it_is_refused(tmp_path, proxy):
    adapter = as_adapter_of(save_tiny(tmp_path / "adapter", blocks=2), proxy)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, proxy)
    refused(proxy, "'adapter_", DataError)


def test_an_index_cannot_name_shards_of_another_folder(proxy, elsewhere):
    shard(elsewhere)
    shard(proxy, place="../elsewhere/")
    there, _ = load_llm(elsewhere, device="cpu")
    assert same_weights(load_llm(proxy, device="cpu")[0], there)  # transformers follows it
    refused(proxy, "must name the folder's shards and no other file", DataError)


@pytest.mark.parametrize("where", ["../elsewhere/", "./", "{there}/"])
def test_an_index_names_shards_by_their_bare_names(proxy, elsewhere, where):
    shard(elsewhere)
    shard(proxy, place=where.format(there=elsewhere))
    refused(proxy, "must name the folder's shards and no other file", DataError)


def test_whole_shards_are_a_proxy_like_any_other(tmp_path, proxy):
    whole = load(proxy)
    split = load(shard(proxy))
    assert split.loaded_sha256 == whole.loaded_sha256
    assert same_weights(split.model, whole.model)


def test_two_sets_of_weights_in_one_folder_are_refused(tmp_path, proxy):
    other = shard(save_tiny(tmp_path / "other", blocks=2))
    for file in other.glob("model*"):
        shutil.copy(file, proxy)
    refused(proxy, "must have model.safetensors alone", DataError)


def test_a_tokenizer_cannot_come_from_another_folder(proxy, elsewhere):
    """transformers picks among versions of tokenizer.json by a list, and follows paths in it."""
    other = json.loads((elsewhere / "tokenizer.json").read_text())
    other["model"]["vocab"]["zz"] = 300
    (elsewhere / "tokenizer.4.0.0.json").write_text(json.dumps(other))
    edit_json(proxy / "tokenizer_config.json", fast_tokenizer_files=["../elsewhere/tokenizer.4.0.0.json"])
    _, followed = load_llm(proxy, device="cpu")
    assert "zz" in followed.get_vocab()
    refused(proxy, "'fast_tokenizer_files' is not allowed", DataError)


@pytest.mark.parametrize(
    "key",
    ["tokenizer_file", "vocab_file", "merges_file", "spm_file", "gguf_file", "vocab", "tokenizer_object"],
)
def test_a_tokenizer_s_settings_cannot_name_files(proxy, elsewhere, key):
    edit_json(proxy / "tokenizer_config.json", **{key: str(elsewhere / "tokenizer.json")})
    refused(proxy, f"'{key}' is not allowed", DataError)


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "AutoTokenizer", "RagTokenizer", "PythonBackend", "NoSuchTokenizer", 7]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_the_tokenizer_s_class_must_be_a_fast_tokenizer(proxy, file, name):
    edit_json(proxy / file, tokenizer_class=name)
    refused(proxy, "tokenizer_class is", ModelError)


STEERING = {
    "_attn_implementation": "someone/kernel",
    "attn_implementation": "kernels-community/flash-attn3",
    "base_model_name_or_path": "someone/model",
    "custom_generate": "someone/code",
    "experts_implementation": "someone/kernel",
    "fusion_config": {"rms_norm": True},
    "kernel_config": {"RMSNorm": "someone/kernel:Norm"},
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "transformers_weights": "other.safetensors",
}


@pytest.mark.parametrize("key", STEERING)
@pytest.mark.parametrize("deep", [False, True], ids=["outermost", "nested"])
def test_a_configuration_cannot_steer_what_else_is_loaded(proxy, key, deep):
    setting = {key: STEERING[key]}
    edit_json(proxy / "config.json", **({"text_config": [{"inner": setting}]} if deep else setting))
    refused(proxy, f"'{key}' is not allowed", DataError)


@pytest.mark.parametrize(
    "key",
    ["to_dict", "get_text_config", "attribute_map", "_auto_class", "__class__", "__dict__", "validate"],
)
def test_a_configuration_cannot_hide_the_library_s_own_methods(proxy, key):
    edit_json(proxy / "config.json", **{key: {"vocab_size": "hidden_size"}})
    refused(proxy, "is not a setting", ModelError)


@pytest.mark.parametrize("kind", ["bert-japanese", "vit", "no-such-model", ["llama"], None])
def test_a_proxy_must_be_a_causal_model_of_the_library(proxy, kind):
    edit_json(proxy / "config.json", model_type=kind)
    refused(proxy, "its model_type is", ModelError)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '{"a": NaN', "\ufeff\0"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_file_is_one_line(proxy, file, text):
    (proxy / file).write_text(text)
    refused(proxy, "^proxy")


# -------------------------------------------------- settings without effect: nothing else is opened


_watching: list[tuple[str, str]] | None = None


def _audit(event, arguments):
    if _watching is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "exec"):
        _watching.append((event, str(arguments[0])))


@contextmanager
def watched():
    """What the interpreter opens meanwhile."""
    global _watching
    if not hasattr(sys, "_proxy_audit"):
        sys.addaudithook(_audit)  # for good: hooks cannot be taken away
        sys._proxy_audit = True  # type: ignore[attr-defined]
    _watching = []
    try:
        yield _watching
    finally:
        _watching = None


WITHOUT_EFFECT = {
    "nothing": lambda folder: folder,
    "code for the configuration": lambda folder: edit_json(
        folder / "config.json",
        auto_map={
            "AutoConfig": "someone/code--configuration.Evil",
            "AutoModelForCausalLM": "modeling.Evil",
        },
    ),
    "code for the tokenizer": lambda folder: edit_json(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.Evil", "someone/code--b.Evil"]}
    ),
    "another name for the model": lambda folder: edit_json(
        folder / "config.json", _name_or_path="someone/model", name_or_path="someone/model"
    ),
    "another name for the tokenizer": lambda folder: edit_json(
        folder / "tokenizer_config.json",
        name_or_path="someone/model",
        is_local=False,
        local_files_only=False,
    ),
    "code for generation": lambda folder: edit_json(
        folder / "generation_config.json", custom_generate="someone/code", assistant_model="someone/model"
    ),
    "the wrong dtype": lambda folder: edit_json(folder / "config.json", dtype="float16"),
}


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
def test_settings_that_name_other_places_open_nothing_else(proxy, change, monkeypatch):
    before = load(proxy)
    WITHOUT_EFFECT[change](proxy)
    with watched() as events:
        after = load(proxy)
    assert same_weights(before.model, after.model)
    assert type(after.model) is type(before.model)
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    assert not [e for e in events if e[0].startswith("socket")]
    opened = {Path(place) for event, place in events if event == "open" and place.startswith("/")}
    library = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path("/proc"), Path("/sys")
    outside = {p for p in opened if not any(p.resolve().is_relative_to(root) for root in library)}
    assert {p.parent for p in outside} <= {proxy.resolve()}


def test_the_hub_is_reachable_again_after_a_proxy_was_loaded(proxy):
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    load(proxy)
    assert before == constants.HF_HUB_OFFLINE


# ------------------------------------------------------------------------- weights that are not whole


def test_a_tensor_that_is_missing_is_not_made_up(proxy):
    edit_weights(proxy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    load_llm(proxy, device="cpu")  # fills it in at random
    refused(proxy, r"lacks 'model.layers.1.mlp.up_proj.weight'", ModelError)


def test_a_head_that_is_missing_is_not_made_up(proxy):
    edit_weights(proxy, lambda tensors: tensors.pop("lm_head.weight"))
    refused(proxy, r"lacks 'lm_head.weight'", ModelError)


def test_a_tensor_too_many_is_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({"evil\x1b[31m": torch.zeros(3)}))
    refused(proxy, r"has, unused, 'evil\\x1b", ModelError)


def test_a_tensor_of_another_shape_is_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({NORM: torch.ones(17)}))
    refused(proxy, "^proxy: ", ModelError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(proxy, value):
    edit_weights(proxy, lambda tensors: tensors[NORM].__setitem__(3, value))
    refused(proxy, f"{NORM}' is not finite", ModelError)


def test_weights_whose_outputs_are_not_finite_are_refused(proxy):
    edit_weights(
        proxy, lambda tensors: tensors.update({"lm_head.weight": torch.full((VOCABULARY, 16), 3e38)})
    )
    refused(proxy, "outputs on 64 tokens are not finite", ModelError)


def test_quantised_weights_are_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.float8_e4m3fn)}))
    refused(proxy, f"{NORM}' is F8_E4M3; must be", ModelError)


# ------------------------------------------------------------ proxies that fail on some records only


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


def says(job, folder):
    """What building client 0 ends in."""
    try:
        build_client(job, 0, folder)
    except FedProxyError as error:
        return f"{type(error).__name__}: {error}"
    return "built"


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


# --------------------------------------------------------------------------- what the client compares


def test_a_proxy_that_loads_as_another_than_the_job_names_is_not_trained(world):
    job, folder = world
    named = with_proxy(job, folder)
    assert says(named, folder) == "built"
    for other in ("", "0" * 64):
        line = says(named.changed(proxy_loaded_sha256=other), folder)
        assert line.startswith("ProtocolAborted: proxy loads as ")


def test_files_exchanged_between_verification_and_loading_are_found_out(world):
    job, folder = world
    named = with_proxy(job, folder)
    edit_weights(folder, lambda tensors: tensors[NORM].add_(1e-3))
    with pytest.raises(ProtocolAborted, match="proxy loads as"):
        build_client(named, 0, folder)


def test_the_demo_model_is_a_proxy():
    from fedproxy_secure.models.llm import demo_llm_folder

    check_folder(demo_llm_folder())
    load(demo_llm_folder(), max_tokens=128)
