"""A proxy cannot load anything but its own files, nor couple records; the client compares what it loads."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import DataError, ModelError, ProtocolAborted
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake.files import check_folder
from fedproxy_secure.proxy_intake.parts import Offer
from tests.support.hostile_proxies import as_adapter_of, edit_json, edit_weights, shard
from tests.support.loaded_proxies import NORM, load, refused, says
from tests.support.tiny import same_weights, save_tiny, tiny_settings


@pytest.fixture
def proxy(tmp_path):
    return save_tiny(tmp_path / "proxy", blocks=2)


@pytest.fixture
def elsewhere(tmp_path):
    return save_tiny(tmp_path / "elsewhere", blocks=2, seed=5)


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


@pytest.fixture
def world(tmp_path):
    config = parse_config(tiny_settings(tmp_path, protect={"scheme": "unsafe_plaintext"}))
    return FederationJob.from_config(config, seed=0), tmp_path / "llm"


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
