"""How much memory this process has held at once, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held at once, as the system counts it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Give memory that nothing holds any more back to the system, as far as that is possible.

    Models hold themselves in circles, so that Python frees them late; and glibc keeps what was freed.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
