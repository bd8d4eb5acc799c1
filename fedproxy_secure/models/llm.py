"""Causal language models: load them, find their blocks, pick their device.

A **block** is one decoder layer. Everything before the first block (embeddings) and after the last (norm,
LM head) belongs to no block.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.errors import ModelError, reason_of
from fedproxy_secure.models import gguf
from fedproxy_secure.models.cache import cache_folder
from fedproxy_secure.models.mixed import mix_products
from fedproxy_secure.models.packaged import PACKAGED, packaged_file

Tokenizer = Any  # transformers' tokenizers share no typed base
# weights, configuration, tokenizer, chat template
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_BLOCK_LISTS = ("layers", "h", "blocks", "decoder.layers")


def demo_llm_folder() -> Path:
    """Return the folder of the embedded demo LLM."""
    return Path(str(resources.files("fedproxy_secure.world") / "demo_llm"))


def pick_device(wish: str = "auto") -> torch.device:
    """Return the device; `auto` is CUDA if available; raises `ModelError` for `cuda` without CUDA."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device=cuda: this machine has no CUDA device; use auto or cpu")
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wish)


def pick_dtype(wish: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a model's numbers; `auto` is bfloat16 on CUDA and float32 on the CPU.

    Raises `ModelError` for `mixed` on CUDA.
    """
    if wish == "mixed":
        if device.type != "cpu":
            raise ModelError(f"model.dtype=mixed: device is {device.type}; must be cpu, or use bfloat16")
        return torch.float32
    if wish == "auto":
        wish = "bfloat16" if device.type == "cuda" else "float32"
    return cast(torch.dtype, getattr(torch, wish))


def load_llm(path: str | Path, *, device: str = "auto", dtype: str = "auto") -> tuple[nn.Module, Tokenizer]:
    """Load a causal LM, in eval mode, and its tokenizer.

    Args:
        path: `demo` (embedded), a name in `PACKAGED`, a `.gguf` file, a local folder or a hub id.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto` (see `pick_dtype`), `float32`, `bfloat16`, or on the CPU `mixed` (see `models.mixed`).

    Safetensors only: weights that need pickle are refused; a model's own code is never run. A GGUF file is
    converted on first use and kept as safetensors (see `fedproxy_secure.models.gguf`).

    Memory: on the CPU, weights that a folder has in this dtype are not copied. They are a private mapping
    of its files, so that processes share them until they write; writing changes no file. So files of a
    folder in use may be replaced, as `save_pretrained` does, but must not be overwritten in place.

    Raises `ModelError` in one line if the model cannot be loaded or has no decoder blocks.
    """
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    source = _source(path)
    _check_folder(source, path)
    try:
        with without_library_bars():
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=pick_dtype(dtype, place),
                use_safetensors=True,
                trust_remote_code=False,
            )
    except Exception as error:  # damaged files may raise any error of the library that reads them
        raise _cannot_be_loaded(path, error, source) from error
    blocks_of(model)
    tokenizer = load_tokenizer(path)
    cast(nn.Module, model).to(place)
    if dtype == "mixed":
        mix_products(model)
    return model.eval(), tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of an LLM, without its weights; raises `ModelError` if it cannot be loaded.

    A tokenizer in a local folder or a GGUF file is loaded without contacting a model hub.
    """
    from transformers import AutoTokenizer

    source = _source(path, weights=False)
    _check_folder(source, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=Path(source).is_dir()
        )
    except Exception as error:  # damaged files may raise any error of the library that reads them
        raise _cannot_be_loaded(path, error, source) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_weights(path: str | Path) -> None:
    """Raise `ModelError` for a local folder of an LLM without weights that `load_llm` reads."""
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise ModelError(f"model.path={path}: has no *.safetensors; must hold the model's weights")


def weights_written_ns(folder: Path) -> int:
    """Return when a folder's weights were last written, ns, so that caches notice another model."""
    return max((f.stat().st_mtime_ns for f in folder.glob("*.safetensors")), default=0)


def llm_sha256(path: str | Path) -> str:
    """Return a SHA-256, hex, of the model that `load_llm` loads from this path.

    For a GGUF file it is the file's own; for a folder, that of the names and digests of the files with
    weights, configuration and tokenizer (all that `MODEL_FILES` matches, such as any `*.txt`); for a hub
    id, that of the id and the revision.

    Raises `ModelError` in one line for a model that does not exist.
    """
    name = str(path)
    try:
        if name in PACKAGED:
            return gguf.remembered_sha256(packaged_file(PACKAGED[name]))
        if name.lower().endswith(gguf.SUFFIX):
            return gguf.remembered_sha256(Path(name))
        folder = Path(_source(name))
        if not folder.is_dir():
            from transformers import AutoConfig

            revision = getattr(
                AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", ""
            )
            return hashlib.sha256(f"{name}@{revision}".encode()).hexdigest()
        files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
        lines = "".join(f"{gguf.remembered_sha256(file)}  {file.name}\n" for file in files)
    except Exception as error:  # damaged files may raise any error of the library that reads them
        raise _cannot_be_loaded(path, error) from error
    return hashlib.sha256(lines.encode()).hexdigest()


def llm_folder(path: str | Path) -> Path:
    """Return the folder of a path as for `load_llm`; GGUF files are converted into one.

    For a hub id it is a folder of that name, which need not exist.

    Raises `ModelError` in one line for a GGUF file that cannot be converted.
    """
    return Path(_source(path))


def _source(path: str | Path, *, weights: bool = True) -> str:
    """Return the folder or the hub id that the libraries load from; GGUF files are converted first."""
    name = str(path)
    if name == "demo":
        return str(demo_llm_folder())
    packaged = PACKAGED.get(name)
    if packaged is None and not name.lower().endswith(gguf.SUFFIX):
        # ids of a hub have one slash at most
        if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).exists():
            raise ModelError(f"model.path={name}: no such folder; give a model's folder, or a hub id")
        return name
    try:
        if packaged is None:
            return str(gguf.converted(Path(name), weights=weights))
        file = packaged_file(packaged)
        return str(gguf.converted(file, weights=weights, sha256=packaged.sha256))
    except Exception as error:  # damaged files may raise any error of the library that reads them
        raise _cannot_be_loaded(path, error) from error


def _check_folder(source: str, path: str | Path) -> None:
    """Raise `ModelError` if a folder of the user's has no model; the libraries do not say that.

    An adapter's folder names the model that it belongs to.
    """
    own = source == str(path) and Path(source).is_dir()
    if own and not any((Path(source) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"model.path={path}: has no config.json; must be a folder with a model in it")


def _cannot_be_loaded(path: str | Path, error: Exception, source: str | None = None) -> ModelError:
    made_here = source is not None and Path(source).parent == cache_folder("llms")
    remedy = f"; remove {source}, which is then made anew" if made_here else ""
    return ModelError(f"model.path={path}: cannot be loaded: {reason_of(error)}{remedy}")


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Disable transformers' own progress bars, one per file, in a `with` block."""
    from transformers.utils import logging as library

    enabled = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            library.enable_progress_bar()


def block_list_name(model: nn.Module) -> str:
    """Return the dotted name of the model's list of decoder blocks, such as `model.layers`.

    Raises `ModelError` for a model without one (an encoder, a state-space model ...).
    """
    base = getattr(model, "base_model_prefix", "")
    for prefix in (base, ""):
        for name in _BLOCK_LISTS:
            full = f"{prefix}.{name}" if prefix else name
            blocks = _get(model, full)
            if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
                return full
    raise ModelError(
        f"{type(model).__name__}: has no list of decoder blocks "
        f"(looked for {', '.join(_BLOCK_LISTS)}); only decoder-only causal LMs can be compressed"
    )


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the model's decoder blocks, in order."""
    return cast(nn.ModuleList, _get(model, block_list_name(model)))


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with new modules and parameters that share the values' memory.

    Before changing values of either in place, give the parameter memory of its own.
    """
    memo: dict[int, Any] = {id(b): b for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def with_blocks(model: nn.Module, kept: list[int], *, share: bool = False) -> nn.Module:
    """Return an exact copy of `model` that has only the blocks at `kept`, in that order.

    With `share` it shares `model`'s memory (see `sharing_copy`), so that weights are in memory once.
    """
    everything = blocks_of(model)
    name = block_list_name(model)
    parent, _, last = name.rpartition(".")
    owner = _get(model, parent) if parent else model
    try:
        setattr(owner, last, nn.ModuleList(everything[i] for i in kept))
        small = sharing_copy(model) if share else copy.deepcopy(model)
    finally:
        setattr(owner, last, everything)
    _renumber(small, len(kept), kept)
    return small


def _renumber(model: nn.Module, count: int, indices: list[int]) -> None:
    """Make config and key-value cache indices agree with the new number of blocks."""
    config = cast(Any, model).config
    config.num_hidden_layers = count
    for attribute in ("layer_types", "no_rope_layers"):
        per_block = getattr(config, attribute, None)
        if isinstance(per_block, list) and len(per_block) > count:
            setattr(config, attribute, [per_block[i] for i in indices])
    for index, block in enumerate(blocks_of(model)):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                cast(Any, module).layer_idx = index


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, counting tied ones once."""
    return sum(p.numel() for p in model.parameters())


def _get(model: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        model = getattr(model, part, None)
        if model is None:
            return None
    return model
