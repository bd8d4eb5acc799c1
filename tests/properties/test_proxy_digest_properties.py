"""Whatever is changed in a loaded proxy, a bit of a tensor, a setting or a token, changes its digest."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fedproxy_secure.proxy_intake.digest import loaded_sha256
from tests.support.tiny import tiny_llama, tiny_tokenizer

MODEL, TOKENIZER = tiny_llama(2), tiny_tokenizer()
MODEL.register_buffer("kept", torch.arange(6).view(2, 3))
BEFORE = loaded_sha256(MODEL, TOKENIZER)
TENSORS = dict(MODEL.named_parameters()) | {"kept": MODEL.kept}
OF_THE_MACHINE = {"_name_or_path", "_attn_implementation_internal", "_experts_implementation_internal"}
SETTINGS = sorted(set(vars(MODEL.config)) - OF_THE_MACHINE)
BACKEND = json.loads(TOKENIZER.backend_tokenizer.to_str())
# Each example hashes a model; deadlines would measure the machine.
many = settings(max_examples=100, deadline=None)


@given(name=st.sampled_from(sorted(TENSORS)), data=st.data())
@many
def test_any_bit_of_any_tensor_changes_the_digest(name, data):
    raw = TENSORS[name].data.reshape(-1).view(torch.uint8)
    place = data.draw(st.integers(0, raw.numel() - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    raw[place] ^= bit
    try:
        assert loaded_sha256(MODEL, TOKENIZER) != BEFORE
    finally:
        raw[place] ^= bit
    assert loaded_sha256(MODEL, TOKENIZER) == BEFORE


@given(name=st.sampled_from(sorted(TENSORS)))
@many
def test_any_tensor_in_another_shape_of_the_same_bytes_changes_the_digest(name):
    tensor = TENSORS[name]
    before = tensor.data
    tensor.data = before.reshape(1, *before.shape)
    try:
        assert loaded_sha256(MODEL, TOKENIZER) != BEFORE
    finally:
        tensor.data = before


def test_any_tensor_in_another_dtype_of_the_same_bytes_changes_the_digest():
    model = copy.deepcopy(MODEL)
    model.kept = model.kept.view(torch.float64)
    assert loaded_sha256(model, TOKENIZER) != BEFORE


@pytest.mark.parametrize("name", SETTINGS)
def test_another_value_of_any_setting_changes_the_digest(name):
    changed = copy.deepcopy(MODEL)
    before = vars(changed.config)[name]
    value = {bool: lambda: not before, int: lambda: before + 1, float: lambda: before * 2 + 1}
    vars(changed.config)[name] = value.get(type(before), lambda: "another")()
    assert loaded_sha256(changed, TOKENIZER) != BEFORE


@given(key=st.text(min_size=1, max_size=8), value=st.integers() | st.text(max_size=8) | st.booleans())
@many
def test_any_setting_more_changes_the_digest(key, value):
    changed = copy.copy(MODEL.config)
    vars(changed)["x" + key] = value
    MODEL.config, before = changed, MODEL.config
    try:
        assert loaded_sha256(MODEL, TOKENIZER) != BEFORE
    finally:
        MODEL.config = before


@pytest.mark.parametrize("name", sorted(OF_THE_MACHINE))
def test_what_differs_between_machines_does_not_change_the_digest(name):
    changed = copy.deepcopy(MODEL)
    vars(changed.config)[name] = "another"
    assert loaded_sha256(changed, TOKENIZER) == BEFORE


def rebuilt(backend):
    """A tokenizer from what it serialises to."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def test_the_same_tokenizer_read_again_has_the_same_digest():
    assert loaded_sha256(MODEL, rebuilt(BACKEND)) == BEFORE


@given(token=st.sampled_from(sorted(BACKEND["model"]["vocab"])[3:]), name=st.text(min_size=2, max_size=5))
@many
def test_any_token_renamed_changes_the_digest(token, name):
    changed = copy.deepcopy(BACKEND)
    number = changed["model"]["vocab"].pop(token)
    changed["model"]["vocab"]["\u4e2d" + name] = number
    assert loaded_sha256(MODEL, rebuilt(changed)) != BEFORE


@given(
    pair=st.lists(st.sampled_from(sorted(BACKEND["model"]["vocab"])), min_size=2, max_size=2, unique=True)
)
@many
def test_any_two_tokens_exchanged_change_the_digest(pair):
    changed = copy.deepcopy(BACKEND)
    vocabulary = changed["model"]["vocab"]
    vocabulary[pair[0]], vocabulary[pair[1]] = vocabulary[pair[1]], vocabulary[pair[0]]
    for added in changed["added_tokens"]:
        added["id"] = vocabulary[added["content"]]
    assert loaded_sha256(MODEL, rebuilt(changed)) != BEFORE


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("merges", [["a", "b"]]),
        ("pre_tokenizer", None),
        ("normalizer", {"type": "Lowercase"}),
        ("decoder", None),
        ("ignore_merges", True),
    ],
)
def test_any_other_rule_of_the_tokenizer_changes_the_digest(part, value):
    changed = copy.deepcopy(BACKEND)
    if part == "merges":
        changed["model"]["vocab"]["ab"] = len(changed["model"]["vocab"])
        alone = loaded_sha256(MODEL, rebuilt(changed))
        changed["model"]["merges"] = value
        assert loaded_sha256(MODEL, rebuilt(changed)) not in (alone, BEFORE)
        return
    (changed["model"] if part == "ignore_merges" else changed)[part] = value
    assert loaded_sha256(MODEL, rebuilt(changed)) != BEFORE
