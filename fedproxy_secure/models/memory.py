"""The peak memory of this process, and releasing memory to the system."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress


def peak_memory_bytes() -> int:
    """Return the peak memory of this process in bytes, as the system counts it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Return unused memory to the system, as far as possible.

    Models have reference cycles, so that Python frees them late, and glibc keeps freed memory.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
