"""Seconds by stage and the most memory held: what a run costs."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class StageClock:
    """Wall seconds by stage, of this process: a stage that a kill cut in two counts from the resume on."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def stop(self, stage: str) -> None:
        """Count what went by since the last stop to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.began
        self.began = now


def peak_memory_bytes() -> int:
    """The most memory this process has held at once, as the system counts it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
