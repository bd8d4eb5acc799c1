"""The cost of a run: seconds per stage, and the most memory held at once."""

from __future__ import annotations

import resource
import sys
import time
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
