"""LLMs from GGUF files: each is converted once into a Hugging Face folder, which is kept in a cache.

A GGUF file has weights, usually rounded to a few bits, and the tokenizer. Conversion turns the weights into
float32 without changing their values. The folder has plain safetensors, which every process maps into its
memory and shares with the others.

Guarantees: the folder's name contains the digest of the file, so files cannot be confused. A folder is
complete or absent, even if several processes convert at once. Files that the library would silently read
wrongly are refused: missing tensors, scaled rotary positions, an unknown splitting rule of the tokenizer.
Not guaranteed: that nobody changes the cache, which belongs to the user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.cache import cache_folder
from fedproxy_secure.runtime.files.digests import file_sha256

SUFFIX = ".gguf"
_FORMAT = 1  # version of the converted folders; a new number converts them anew
# Names under `tokenizer.ggml.pre` of vocabularies that split texts as GPT-2 does; the others also split
# between any two digits. Source: the table of splitting rules in llama.cpp's llama-vocab.cpp.
_AS_GPT2 = frozenset({"gpt-2"})
_AS_GPT2_BY_DIGITS = frozenset({"smollm", "starcoder"})
_SCALED_POSITIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def can_be_read() -> bool:
    """Return whether the library that reads GGUF files is installed."""
    return importlib.util.find_spec("gguf") is not None


def converted(file: Path, *, weights: bool = True, sha256: str | None = None) -> Path:
    """Return the Hugging Face folder of a GGUF file, from the cache or converted now.

    Args:
        file: a GGUF file of a type that transformers reads (llama, qwen2, gpt2 and others).
        weights: whether weights are needed; without them the folder may have only the tokenizer, which
            takes a few seconds.
        sha256: the digest that the file must have, in hex, or None for any.

    Raises `ModelError` in one line for a missing file, another digest, a missing reader and a file that
    cannot be converted faithfully; for damaged files, the errors of the reading library.
    """
    file = file.absolute()
    if not file.is_file():
        raise ModelError(f"there is no file {file}")
    digest = remembered_sha256(file)
    if sha256 not in (None, digest):
        raise ModelError(f"{file} hashes to {digest[:12]}; must be {str(sha256)[:12]}; install it anew")
    name = f"{digest}-{_FORMAT}-{metadata.version('transformers')}"
    model_folder, tokenizer_folder = cache_folder("llms") / name, cache_folder("llms") / f"{name}-tokenizer"
    if model_folder.is_dir():
        return model_folder
    folder = model_folder if weights else tokenizer_folder
    if not folder.is_dir():
        if not can_be_read():
            raise ModelError("GGUF files need the package gguf; run `make real`, or pip install gguf")
        _make(folder, file, weights=weights, digest=digest)
    return folder


def _make(folder: Path, file: Path, *, weights: bool, digest: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        # the library writes a progress bar to stderr, which none of its settings disables
        with contextlib.redirect_stderr(io.StringIO()), _apart(file) as alone:
            _check_positions(alone)
            _tokenizer(alone).save_pretrained(partial)
            if weights:
                _model(alone).save_pretrained(partial)
        if remembered_sha256(file) != digest:
            raise ModelError(f"{file} changed while it was read; try again")
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _apart(file: Path) -> Iterator[Path]:
    """Link the file into a temporary folder, because the library would also read other files beside it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"model{SUFFIX}"
        place.symlink_to(file)
        yield place


def _model(file: Path) -> Any:
    """Return the model of a GGUF file in float32, as if it had never been quantised."""
    from transformers import AutoModelForCausalLM, GgufConfig

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    missing = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if missing:  # the library fills them in at random
        raise ModelError(f"the file lacks the tensor {missing[0]}, or has it in another shape")
    # without these marks the library saves and loads it like any other model
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def _tokenizer(file: Path) -> Any:
    """Return the tokenizer of a GGUF file, with the splitting rule of its vocabulary.

    Raises `ModelError` for a splitting rule that neither the library nor this module knows, because its
    tokens would be valid but not those that the model was trained on.
    """
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )
    backend = tokenizer.backend_tokenizer
    split = json.loads(backend.to_str())["pre_tokenizer"]
    if split is None or split["type"] != "ByteLevel":  # not of this kind, or set by the library
        return tokenizer
    rule = read_gguf_metadata(str(file))[0].get("tokenizer.ggml.pre")
    if rule in _AS_GPT2_BY_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif rule not in _AS_GPT2:
        raise ModelError(
            f"its tokenizer splits texts by the rule {rule!r}; must be one that is known; "
            "use the model's Hugging Face folder"
        )
    return tokenizer


def _check_positions(file: Path) -> None:
    """Raise `ModelError` for scaled rotary positions, which the library reads only for gpt-oss."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    values, tensors = read_gguf_metadata(str(file))
    kind = values["general.architecture"]
    scaled = values.get(f"{kind}.rope.scaling.type", "none") != "none" or any(
        name in tensors for name in _SCALED_POSITIONS
    )
    if scaled and kind != "gpt-oss":
        raise ModelError(
            "its rotary positions are scaled; must not be; use the model's Hugging Face folder"
        )


def remembered_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, as hex; a process reads an unchanged file only once."""
    state = file.stat()
    return _hashed(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _hashed(file: Path, _size: int, _written_ns: int) -> str:
    return file_sha256(file)
