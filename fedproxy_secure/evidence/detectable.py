"""The smallest effect that a number could have shown, so that a small sample is not read as safety."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedproxy_secure.errors import DataError

PROBABILITY = 0.8  # with which the smallest effect would have been seen


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """The smallest true value whose interval would lie above a bar with probability .8.

    Args:
        metric: name of the estimate that it belongs to.
        unit: the estimate's unit.
        bar: what the interval must lie above.
        smallest: the value, in `unit`; None if no value would have been seen that often.
        how: what it was computed from, in words.

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
        """What would have been seen, such as `an AUC of 0.58 would have been seen with probability 0.8`."""
        often = f"with probability {PROBABILITY:g}"
        if self.smallest is None:
            return f"no {self.metric} would have been seen {often}"
        value = f"{self.smallest:.3g}"
        named = {"AUC": "an AUC of ", "share": "a share of ", "ratio": "a ratio of "}.get(self.unit)
        what = f"{named}{value}" if named else f"{value} {self.unit}"
        return f"{what} would have been seen {often}"
