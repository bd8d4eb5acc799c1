"""The smallest effect that a number could have shown, so that a small sample is not taken for safety."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedproxy_secure.errors import DataError

PROBABILITY = 0.8  # of detecting the smallest effect


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """The smallest true value whose interval would lie above a bar with probability 0.8.

    Args:
        metric: name of the estimate that it belongs to.
        unit: the estimate's unit.
        bar: the value that the interval must lie above.
        smallest: the value, in `unit`; None if no value would have been detected with that probability.
        how: how it was computed, in words.

    Raises `DataError` if a number is not finite, or the smallest value does not exceed the bar.
    """

    metric: str
    unit: str
    bar: float
    smallest: float | None
    how: str

    def __post_init__(self) -> None:
        for number in (self.bar, self.smallest):
            if number is not None and not math.isfinite(number):
                raise DataError(f"{self.metric}: {number}: must be finite")
        if self.smallest is not None and not self.smallest > self.bar:
            raise DataError(f"{self.metric}: smallest={self.smallest:g}: must be above {self.bar:g}")

    @property
    def sentence(self) -> str:
        """A sentence such as `an AUC of 0.58 would have been seen with probability 0.8`."""
        often = f"with probability {PROBABILITY:g}"
        if self.smallest is None:
            return f"no {self.metric} would have been seen {often}"
        value = f"{self.smallest:.3g}"
        prefix = {"AUC": "an AUC of ", "share": "a share of ", "ratio": "a ratio of "}.get(self.unit)
        effect = f"{prefix}{value}" if prefix else f"{value} {self.unit}"
        return f"{effect} would have been seen {often}"
