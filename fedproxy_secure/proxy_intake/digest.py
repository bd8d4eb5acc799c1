"""The digest of a proxy as it was loaded: tensors, configuration, tokenizer.

The hash of a folder's files says what was sent, but not what a library makes of the files: it may follow a
name to other weights, or fill in tensors that are missing. So clients compare this digest, which is taken
over the objects that they train.

Taken before tensors are cast to the dtype that training uses, it is the same on every machine: a client
that trains in bfloat16 on a GPU and one in float32 on a CPU agree.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol, cast

import torch
from torch import nn

from fedproxy_secure.data.chat.formats import STORED, stored_value
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.cache import raw_bytes
from fedproxy_secure.models.llm import Tokenizer

# attributes of a configuration that differ between machines for the same proxy
_OF_THIS_MACHINE = {
    "_name_or_path",  # where the folder lies
    "_attn_implementation_internal",  # which of equal ways to compute attention is installed here
    "_experts_implementation_internal",  # likewise for mixtures of experts
}
# what a tokenizer does beside its backend; vocabulary, merges and added tokens are the backend's
_OF_TOKENIZER = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
    "add_prefix_space",
    "chat_template",
    "special_tokens_map",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "unk_token_id",
    "all_special_ids",
)


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def loaded_sha256(model: nn.Module, tokenizer: Tokenizer) -> str:
    """Return the hex digest of a transformers model and its fast tokenizer, as they are in memory.

    Covered: name, dtype, shape and bytes of every parameter and persistent buffer; which parameters are
    one (tied); the model's class and configuration; the tokenizer's class, backend, special tokens,
    settings and stored format of conversations.

    Not covered, since it differs between machines or does nothing in training: where the folder lies, which
    implementation of attention and experts is installed, settings of text generation, and buffers that
    follow from the configuration (rotary frequencies, causal masks).

    Memory: nothing beside the model, for tensors on the CPU; one tensor at a time otherwise.

    Raises `ModelError` for a configuration that holds anything but plain values.
    """
    total = hashlib.sha256()
    _add(total, "model", f"{type(model).__module__}.{type(model).__qualname__}")
    _add(total, "config", as_plain(cast(Any, model).config))
    _add(total, "tokenizer", _as_loaded(tokenizer))
    _add(total, "vocabulary", hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
    first: dict[int, str] = {}  # a parameter's first name
    tensors = dict(model.named_parameters(remove_duplicate=False)) | persistent_buffers(model)
    for name in sorted(tensors):
        tensor = tensors[name]
        if id(tensor) in first:
            _add(total, name, first[id(tensor)])
            continue
        first[id(tensor)] = name
        _add(total, name, [str(tensor.dtype), list(tensor.shape)])
        total.update(raw_bytes(tensor))
    return total.hexdigest()


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that are saved with the model, by name."""
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def as_plain(value: Any) -> Any:
    """Return a configuration as JSON values, with keys as text; attributes of this machine are left out.

    Raises `ModelError` for values that are not plain.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(as_plain(inner) for inner in value)
    if isinstance(value, dict):
        return {f"{key}": as_plain(inner) for key, inner in value.items()}
    if _is_config(value):
        own = {key: inner for key, inner in vars(value).items() if key not in _OF_THIS_MACHINE}
        return {"class": type(value).__qualname__, "values": as_plain(own)}
    raise ModelError(f"proxy: its configuration holds a {type(value).__name__}; must be plain values")


def _is_config(value: Any) -> bool:
    from transformers import PretrainedConfig

    return isinstance(value, PretrainedConfig)


def _as_loaded(tokenizer: Tokenizer) -> list[Any]:
    settings = {name: as_plain(getattr(tokenizer, name, None)) for name in _OF_TOKENIZER}
    if (chat := stored_value(tokenizer)) is not None:
        settings[STORED] = as_plain(chat)
    return [f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}", settings]


def _add(total: _Hash, name: str, value: Any) -> None:
    """Hash one line of JSON; a tensor's line also gives the length of the bytes that follow it."""
    total.update(json.dumps([name, value], sort_keys=True).encode() + b"\n")
