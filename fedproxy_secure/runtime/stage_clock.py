"""The cost of a run: seconds per stage, and the memory held at once."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class StageClock:
    """Wall-clock seconds per stage in this process; a stage that was killed counts from the resume on."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def stop(self, stage: str) -> None:
        """Add the seconds since the last stop to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.began
        self.began = now


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
