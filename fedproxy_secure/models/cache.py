"""The folder of results that are computed once for an LLM, and the bytes of tensors for hashes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def cache_folder(kind: str) -> Path:
    """Return the cache folder of one kind, such as `llms`, which need not exist.

    It is below `$FEDPROXY_CACHE`, or below `fedproxy-secure` in the user's cache: `$XDG_CACHE_HOME` if that
    is an absolute path, otherwise `~/.cache`.
    """
    chosen, shared = os.environ.get("FEDPROXY_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen:
        return Path(chosen) / kind
    user = shared if shared.is_absolute() else Path.home() / ".cache"
    return user / "fedproxy-secure" / kind


def raw_bytes(tensor: torch.Tensor) -> Any:
    """Return a tensor's numbers as a buffer of bytes for a hash, without a copy if it is on the CPU.

    The buffer does not include shape and dtype.
    """
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
