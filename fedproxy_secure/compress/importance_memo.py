"""Importance scores that take minutes, stored on disk under a hash of what they were computed from.

Every cell of a comparison builds its proxy anew, and all cells need the same scores of the same LLM.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.importance import DIVERGENCE_WINDOWS, TRIALS
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.models.cache import cache_folder, raw_bytes
from fedproxy_secure.runtime.artifacts import json_bytes
from fedproxy_secure.runtime.files.whole import replacing
from fedproxy_secure.runtime.untrusted import read_json

Importance = Callable[[nn.Module, torch.Tensor, int], list[float]]
WORTH_S = 5.0  # scores that took less are not stored
ELSEWHERE = ("_name_or_path", "transformers_version")  # model settings that change no number
VERSION = 2  # of the ways to compute importance; raise it, and that of prepared proxies, with any of them


def remembered(importance: Importance, llm: nn.Module, windows: torch.Tensor, keep: int) -> list[float]:
    """Return `importance(llm, windows, keep)`, one value per block, from disk if it was computed before.

    A file that cannot be read is ignored, and nothing is stored if the folder cannot be written.
    """
    file = cache_folder("importance") / f"{_key(importance, llm, windows, keep)}.json"
    try:
        stored = read_json(file)
        if isinstance(stored, list) and all(isinstance(x, float) for x in stored):
            return stored
    except (OSError, ValueError):
        pass
    began = time.perf_counter()
    values = importance(llm, windows, keep)
    if time.perf_counter() - began > WORTH_S:
        # a failed write costs only time
        with suppress(RunFolderError), replacing(file, private=True, at_once=True) as partial:
            partial.write_bytes(json_bytes(values))
    return values


def _key(importance: Importance, llm: nn.Module, windows: torch.Tensor, keep: int) -> str:
    how = f"{VERSION}|{importance.__name__}|{DIVERGENCE_WINDOWS}|{TRIALS}"
    digest = hashlib.sha256(f"{how}|{keep}|{tuple(windows.shape)}|{_settings(llm)}".encode())
    for tensor in (windows, *llm.parameters()):
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _settings(llm: nn.Module) -> str:
    """Return the settings that a model's outputs depend on, such as its norm's epsilon; not its path."""
    config: Any = getattr(llm, "config", None)
    values = {} if config is None else config.to_dict()
    return json.dumps({k: v for k, v in values.items() if k not in ELSEWHERE}, sort_keys=True, default=str)
