"""Load a proxy from its folder and from nowhere else, and check it before use.

Guarantees: the folder's files pass `check_folder`; no request is made to a model hub and no code of the
folder is run; every tensor of the model comes from the folder and no tensor of the folder is left over; the
digest is of what is in memory, and of the chat template, which is not run but taken away. Not guaranteed:
that a proxy of the right digest is an honest one; that the libraries' parsers withstand hostile files; that
weights stay as they are if somebody who may write to the folder overwrites its files in place. On the CPU
weights are mapped from the files, so that processes share them; nothing here overwrites such a file: the
store and `save_pretrained` put another in its place.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import getattr_static
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.data.encode import ENDS_THE_PROCESS
from fedproxy_secure.errors import FedProxyError, ModelError, reason_of
from fedproxy_secure.models.llm import (
    Tokenizer,
    load_tokenizer,
    pick_device,
    pick_dtype,
    without_library_bars,
)
from fedproxy_secure.models.mixed import mix_products
from fedproxy_secure.proxy_intake.checks import (
    check_finite,
    check_format,
    check_model,
    check_runs,
    check_shapes,
)
from fedproxy_secure.proxy_intake.digest import loaded_sha256, persistent_buffers
from fedproxy_secure.proxy_intake.files import CONFIG, TOKENIZER_CONFIG, check_folder
from fedproxy_secure.proxy_intake.own_copy import put_back
from fedproxy_secure.proxy_intake.public_text import check_public_text
from fedproxy_secure.proxy_intake.tokenizer import check_tokenizer
from fedproxy_secure.proxy_intake.weights import check_weights
from fedproxy_secure.runtime.quoting import one_line, quoted
from fedproxy_secure.runtime.untrusted import parse_json, read_json
from fedproxy_secure.tracing.marks import Marks

_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_PLAIN = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64"})  # of buffers that are no weights
_SILENT = 60  # above the library's levels: names in hostile files would reach the terminal as they are
_offline = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class ProxyModel:
    """A proxy ready to be trained, and the digest of what was loaded (see `loaded_sha256`)."""

    model: nn.Module
    tokenizer: Tokenizer
    loaded_sha256: str


def load_proxy(
    folder: Path,
    *,
    max_tokens: int,
    device: str = "auto",
    dtype: str = "auto",
    marks: Marks | None = None,
) -> ProxyModel:
    """Load the proxy in a folder, in eval mode, for records of up to `max_tokens` tokens.

    With `marks`, the folder is one client's copy; what is loaded, and its digest, are without its marks.

    Raises `DataError` for files that a proxy may not have, `ModelError` for a model that cannot be loaded
    whole from them or fails the checks of `proxy_intake.checks`, `weights` or `public_text`; each in one
    line, which depends on the proxy alone, and on the client's own public text if it names one.
    """
    check_folder(folder)
    place = pick_device(device)
    try:
        model, tokenizer = _load_stored(folder.resolve())
        if marks is not None:
            put_back(model, folder, marks)
        check_model(model)
        check_tokenizer(parse_json(tokenizer.backend_tokenizer.to_str()))  # files may be read in two ways
        check_shapes(model, tokenizer, max_tokens=max_tokens)
        check_finite(model)
        check_weights(model, tokenizer)
        check_format(tokenizer)
        sha256 = loaded_sha256(model, tokenizer)
        tokenizer.chat_template = None  # the server's program: nobody here can run it
        cast_weights(model, pick_dtype(dtype, place))
        model.to(place)
        if dtype == "mixed":
            mix_products(model)
    except (FedProxyError, *ENDS_THE_PROCESS):
        raise
    except BaseException as error:  # damaged files may raise any error of the library that reads them
        raise _cannot_be_loaded(folder, error) from error
    check_runs(model, tokenizer, max_tokens=max_tokens)
    check_public_text(model, tokenizer, max_tokens=max_tokens)
    return ProxyModel(model=model, tokenizer=tokenizer, loaded_sha256=sha256)


def _load_stored(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """Load the model in the widest dtype that its files hold, which loses nothing, and its tokenizer."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    _check_classes(folder)
    with _alone():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=stored_dtype(folder),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        try:
            tokenizer = load_tokenizer(folder)
        except ModelError as error:  # it names the place on this machine
            raise _cannot_be_loaded(folder, error.__cause__ or error) from error
    model, report = loaded
    for what, names in (
        ("lacks", report["missing_keys"]),
        ("has, unused,", report["unexpected_keys"]),
        ("has in another shape", [name for name, *_ in report["mismatched_keys"]]),
        ("reports", report["error_msgs"]),
    ):
        if names:
            raise ModelError(
                f"proxy: {what} {quoted(min(map(str, names)))}; must have its configuration's tensors alone"
            )
    for part in (model, tokenizer):
        if not type(part).__module__.startswith("transformers."):
            raise ModelError(f"proxy: loads as {quoted(type(part).__module__)}; must be of transformers")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"proxy: its tokenizer is a {type(tokenizer).__name__}; must be a fast one")
    return cast(nn.Module, model).eval(), tokenizer


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the narrowest floating dtype that holds all weights in a folder's safetensors files exactly.

    Raises `ModelError` for weights in another format, such as quantised ones.
    """
    from safetensors import safe_open

    widest: torch.dtype | None = None
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                kind = tensors.get_slice(name).get_dtype()
                if kind in _PLAIN:
                    continue
                if kind not in _STORED:
                    raise ModelError(f"proxy: {quoted(name)} is {kind}; must be {', '.join(_STORED)}")
                widest = _STORED[kind] if widest is None else torch.promote_types(widest, _STORED[kind])
    if widest is None:
        raise ModelError("proxy: has no weights; must have some in floating point")
    return widest


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model on the CPU the dtypes that loading it under `dtype` gives it; in place, one by one.

    Rotary frequencies and the like, which follow from the configuration, keep their precision.
    """
    config = cast(Any, model).config
    if config.dtype == dtype:
        return
    saved = persistent_buffers(model)
    with torch.random.fork_rng(devices=[]):
        target = _without_weights(model, dtype)
    kept = cast(Any, model)._get_dtype_plan(dtype)  # pieces of names -> dtype, `*` for anything

    def wanted(name: str, built: torch.Tensor) -> torch.dtype:
        pinned = [kept[key] for key in kept if re.search(key.replace("*", ".*"), name)]
        return pinned[0] if pinned else built.dtype

    parameters = dict(target.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(wanted(name, parameters[name]))
    for name, built in target.named_buffers():
        if name in saved:
            _set(model, name, saved[name].to(wanted(name, built)))
        elif not built.is_meta:
            _set(model, name, built)
    config.dtype = dtype
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            inner.dtype = dtype


def _without_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Build the model under `dtype`, on the meta device except for unsaved buffers that change dtype."""
    untyped: Any = model
    with torch.device("meta"):
        built: Any = type(untyped)._from_config(copy.deepcopy(untyped.config), dtype=dtype)
    now = dict(model.named_buffers())
    saved = persistent_buffers(model)
    differing = [n for n, b in built.named_buffers() if n not in saved and b.dtype != now[n].dtype]
    for name in differing:
        _set(built, name, torch.empty(now[name].shape, dtype=built.get_buffer(name).dtype))
    if differing:
        for module in built.modules():
            module._is_hf_initialized = False
        built.initialize_weights()
    return cast(nn.Module, built)


def _set(model: nn.Module, name: str, buffer: torch.Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, buffer)


def _check_classes(folder: Path) -> None:
    """Raise `ModelError` unless the settings name classes of the library, and only settings of theirs.

    transformers sets whatever a configuration names as attributes, over its own methods too, and takes
    anything in its namespace as the tokenizer's class.
    """
    from transformers import PretrainedConfig, PreTrainedTokenizerFast
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"proxy: its model_type is {quoted(kind)}; must be a causal LM")
    settings = CONFIG_MAPPING[kind]
    keys = [(key, settings) for key in config] + [(key, PretrainedConfig) for key in _keys(config)]
    for key, base in keys:
        if _is_the_library_s_own(key, base):
            raise ModelError(f"proxy file {CONFIG}: {quoted(key)} is not a setting; must be one")
    file = folder / TOKENIZER_CONFIG
    for named in (config, read_json(file) if file.exists() else {}):
        name = named.get("tokenizer_class")
        if name is None:
            continue
        kind = tokenizer_class_from_name(name) if isinstance(name, str) else None
        if not isinstance(kind, type) or not issubclass(kind, PreTrainedTokenizerFast):
            raise ModelError(f"proxy: its tokenizer_class is {quoted(name)}; must be a fast tokenizer")


def _is_the_library_s_own(key: str, settings: Any) -> bool:
    """Return whether a configuration's key would hide a method, or what a class fixes for all models."""
    from transformers import PretrainedConfig

    if key == "model_type" or key in {field.name for field in fields(settings)}:
        return False
    nothing = object()
    attribute = getattr_static(settings, key, nothing)
    if attribute is nothing or isinstance(attribute, property):
        return False
    method = callable(attribute) or isinstance(attribute, classmethod | staticmethod)
    return method or hasattr(PretrainedConfig, key)


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys of nested objects, without the outermost."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict):
            yield from inner
        if isinstance(inner, dict | list):
            yield from _keys(inner)


@contextmanager
def _alone() -> Iterator[None]:
    """Keep the libraries off the network and the terminal; one load at a time, as both are global."""
    from huggingface_hub import constants
    from transformers.utils import logging as library

    with _offline, without_library_bars():
        offline, level = constants.HF_HUB_OFFLINE, library.get_verbosity()
        constants.HF_HUB_OFFLINE = True
        library.set_verbosity(_SILENT)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            library.set_verbosity(level)


def _cannot_be_loaded(folder: Path, error: BaseException) -> ModelError:
    reason = reason_of(error).replace(str(folder.resolve()), "its folder")
    return ModelError(f"proxy: cannot be loaded: {one_line(reason)}")
