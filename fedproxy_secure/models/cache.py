"""The folder of what is computed once for an LLM and read again by later runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return where things of one kind, such as `llms`, are kept, whether or not it is there.

    It is below `$FEDPROXY_CACHE`, or below `fedproxy-secure` in the user's cache: `$XDG_CACHE_HOME` if that
    is an absolute path, otherwise `~/.cache`.
    """
    chosen, shared = os.environ.get("FEDPROXY_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen:
        return Path(chosen) / kind
    user = shared if shared.is_absolute() else Path.home() / ".cache"
    return user / "fedproxy-secure" / kind
