"""Checks of what a proxy's folder holds, and the hash of its files.

A proxy is a causal LM saved as safetensors with a fast tokenizer, as transformers' `save_pretrained` writes
them: flat, with fixed file names. Whatever else transformers would read or run (adapters that name another
base model, Python files, pickled weights, tokenizers in older formats) is refused by name, and so are
settings inside the allowed files that lead elsewhere.

Guarantees: in a folder that passes `check_folder` no file, and no setting that transformers 5.23 follows in
`load_proxy`, names weights, vocabulary or code outside of it. Not guaranteed: that what is loaded follows
from the files alone; the digest of `proxy_intake.digest` is taken after loading for that reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake.tokenizer import check_tokenizer
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.runtime.untrusted import read_json
from fedproxy_secure.tracing.marks import Marks, check_fits
from fedproxy_secure.tracing.tensor_file import find_matrix, with_rows

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NAMES = frozenset(
    {CONFIG, "generation_config.json", WEIGHTS, INDEX, TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja"}
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors\Z")
MOST_FILES = 1024
_SETTLED_NS = 2 * 10**9  # files changed later than this before a look may change again unseen

# settings of config.json, at any depth, that make transformers read other files, other code or hub kernels
_STEERING = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "attn_implementation",
        "base_model_name_or_path",
        "compression_config",
        "custom_generate",
        "distributed_config",
        "experts_implementation",
        "fusion_config",
        "kernel_config",
        "quantization_config",
        "transformers_weights",
        "use_kernels",
    }
)
# how positions enter attention. What `longrope` and `dynamic` make of a token depends on the longest row of
# the batch, so one record would change what becomes of the others
ROPE_TYPES = frozenset({"default", "linear", "llama3", "proportional", "yarn"})
_ROPE = frozenset({"rope_parameters", "rope_scaling"})
_BY_LENGTH = frozenset({"long_factor", "long_mscale", "short_factor", "short_mscale"})
# settings of tokenizer_config.json that name files or stand in for tokenizer.json
_TOKENIZER_STEERING = frozenset(
    {
        "fast_tokenizer_files",
        "gguf_file",
        "init_inputs",
        "merges",
        "tokenizer_object",
        "vocab",
    }
)

_Stamp: TypeAlias = "tuple[tuple[str, int, int, int, int, int], ...]"
_verified: dict[tuple[Path, Marks | None], tuple[_Stamp, str]] = {}


def check_name(name: str) -> None:
    """Raise `DataError` unless a proxy's folder may hold a file of that name."""
    if name not in _NAMES and not _SHARD.match(name):
        raise DataError(
            f"proxy file {quoted(name)}: must be one that a causal LM saved as safetensors has "
            f"({', '.join(sorted(_NAMES))}, or numbered shards)"
        )


def check_count(files: int) -> None:
    """Raise `DataError` for more files than any proxy has."""
    if files > MOST_FILES:
        raise DataError(f"proxy of {files} files: must have at most {MOST_FILES}")


def proxy_files(folder: Path) -> list[Path]:
    """Return a proxy's files, sorted by name.

    Raises `DataError` for a file that it may not hold, a link, a folder, or too many files.
    """
    files = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"proxy folder {folder.name}: cannot be read: {error.strerror}") from error
    check_count(len(entries))
    for entry in entries:
        check_name(entry.name)
        if not entry.is_file(follow_symlinks=False):
            raise DataError(
                f"proxy file {quoted(entry.name)}: must be a plain file, not a link or a folder"
            )
        files.append(folder / entry.name)
    return sorted(files)


def folder_sha256(folder: Path, marks: Marks | None = None) -> str:
    """Return the hex digest over sorted names and contents of a proxy's files.

    With `marks` the agreed rows count in place of what lies in the folder, so that all clients' copies have
    the hash of the unmarked proxy, or another one if they differ from it anywhere else.

    Raises what `proxy_files` raises, and `DataError` for marked rows that are not there or not as agreed.
    """
    matrix = None if marks is None else find_matrix(folder, marks.tensor)
    total = hashlib.sha256()
    for file in proxy_files(folder):
        if marks is not None and matrix is not None and file.name == matrix.file.name:
            check_fits(marks, matrix)
            unmarked = hashlib.sha256()
            for piece in with_rows(matrix, marks.agreed_rows):
                unmarked.update(piece)
            digest = unmarked.hexdigest()
        else:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name}\0{digest}\n".encode())
    return total.hexdigest()


def verified_sha256(folder: Path, marks: Marks | None = None) -> str:
    """Return the hash of a folder that passes `check_folder`, read again if its files may have changed.

    With `marks`, the hash that `folder_sha256` gives with them.
    """
    place, began = (folder.resolve(), marks), time.time_ns()
    stamp = _stamp(folder)
    known = _verified.get(place)
    if known is not None and known[0] == stamp:
        return known[1]
    check_folder(folder)
    sha256 = folder_sha256(folder, marks)
    _verified.pop(place, None)
    if _stamp(folder) == stamp and all(max(s[4:]) < began - _SETTLED_NS for s in stamp):
        _verified[place] = (stamp, sha256)
    return sha256


def _stamp(folder: Path) -> _Stamp:
    """Return name, device, inode, size and times of change, ns, of each file."""
    stats = [(file.name, file.lstat()) for file in proxy_files(folder)]
    return tuple((n, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in stats)


def check_folder(folder: Path) -> None:
    """Raise `DataError` unless the folder holds one complete proxy and its files refer to nothing else."""
    names = {file.name for file in proxy_files(folder)}
    for needed in (CONFIG, TOKENIZER):
        if needed not in names:
            raise DataError(f"proxy: has no {needed}; must be saved with its configuration and tokenizer")
    shards = {name for name in names if _SHARD.match(name)}
    if WEIGHTS in names and not shards and INDEX not in names:
        pass
    elif WEIGHTS not in names and shards and INDEX in names:
        _check_index(_object(folder / INDEX), shards)
    else:
        raise DataError(f"proxy: must have {WEIGHTS} alone, or {INDEX} with its shards")
    _check_config(_object(folder / CONFIG))
    check_tokenizer(_object(folder / TOKENIZER))
    if TOKENIZER_CONFIG in names:
        _check_tokenizer_config(_object(folder / TOKENIZER_CONFIG))


def _object(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"proxy file {file.name}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"proxy file {file.name}: must be a JSON object")
    return value


def _check_index(index: dict[str, Any], shards: set[str]) -> None:
    """Check the names of weights, which transformers joins to the folder as they are, even `../x`."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise DataError(f"proxy file {INDEX}: must have a weight_map from tensors to files")
    if set(places.values()) != shards:
        raise DataError(f"proxy file {INDEX}: must name the folder's shards and no other file")


def _check_config(config: dict[str, Any]) -> None:
    for key, value in _settings(config):
        if key in _STEERING and value is not None:
            raise DataError(f"proxy file {CONFIG}: {key!r} is not allowed; it leads outside of the folder")
        if key in _BY_LENGTH and value is not None:
            raise DataError(f"proxy file {CONFIG}: {key!r} is not allowed; rows of a batch would couple")
        if key == "rope_type":
            check_rope(value)
        elif key in _ROPE and isinstance(value, dict):
            for kind in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
                check_rope(kind.get("type"))


def check_rope(kind: object) -> None:
    """Raise `DataError` for positions that depend on the longest row of a batch; None is allowed."""
    if kind is not None and (not isinstance(kind, str) or kind not in ROPE_TYPES):
        raise DataError(
            f"proxy: its rope_type is {quoted(kind)}; must be one of {', '.join(sorted(ROPE_TYPES))}, "
            "which do not depend on the longest record of a batch"
        )


def _check_tokenizer_config(config: dict[str, Any]) -> None:
    for key, value in config.items():
        names_files = key.endswith(("_file", "_files"))
        if (key in _TOKENIZER_STEERING or names_files) and value is not None and value != []:
            raise DataError(
                f"proxy file {TOKENIZER_CONFIG}: {quoted(key)} is not allowed; tokens are {TOKENIZER}'s"
            )


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys and values of nested objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)
