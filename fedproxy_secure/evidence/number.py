"""A number for display: text, interval, unit, and a line on its origin."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedproxy_secure.evidence.estimate import Estimate

_SHARE_LIKE = {"AUC": 2, "probability": 3, "cosine": 2, "CKA": 2}  # unit -> decimals
_DECIMALS = {**_SHARE_LIKE, "share": 1, "nats": 3}  # a KL of 0.03 nats is large
# units that are not shown, because the measure's name implies them
_BARE = {*_SHARE_LIKE, "ratio", "epsilon", "delta", "count", "perplexity", "norm"}
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


@dataclass(frozen=True)
class Number:
    """An estimate for display, and its source.

    Args:
        estimate: the estimate.
        source: path relative to the report's folder and, after `#`, the place in that file.
        signed: whether it is a difference, shown with its sign; one of shares in percentage points.
    """

    estimate: Estimate
    source: str
    signed: bool = False

    @cached_property
    def _scale(self) -> tuple[float, str]:
        """The factor for display, and the unit after it."""
        unit = self.estimate.unit
        if unit == "share":
            return 100.0, unit_text(unit, signed=self.signed)
        if unit == "bytes":
            size, name = next((b for b in _BYTES if abs(self.estimate.value) >= b[0]), _BYTES[-1])
            return 1 / size, name
        if unit in _BARE:
            return 1.0, ""
        return 1.0, unit.removesuffix("s") if self.estimate.value == 1 and len(unit) > 1 else unit

    @property
    def unit(self) -> str:
        """The unit, such as `%`, `points`, `MB` or `s`; empty if the measure's name implies it."""
        return self._scale[1]

    @property
    def text(self) -> str:
        """The value without interval and unit, such as `97.2`."""
        return self._written(self.estimate.value, signed=self.signed)

    @property
    def exact(self) -> bool:
        """Whether it was counted, not sampled."""
        return self.estimate.exact

    @property
    def spread(self) -> str:
        """The interval, such as `± 1.4`, or `[95.8, 98.0]` if it is not symmetric.

        It is empty for an exact number and for one without an interval.
        """
        e = self.estimate
        if self.exact or e.low is None or e.high is None:
            return ""
        low, high = self._written(e.low, signed=self.signed), self._written(e.high, signed=self.signed)
        half = (e.high - e.low) / 2
        rounding = 0.51 * 10.0**-self._decimals / self._scale[0]
        if abs((e.low + e.high) / 2 - e.value) < rounding:
            return f"± {self._written(half)}"
        return f"[{low}, {high}]"

    @property
    def short(self) -> str:
        """Value, interval and unit in one line, such as `97.2 ± 1.4 %`."""
        return " ".join(part for part in (self.text, self.spread, self.unit) if part)

    @property
    def seeds(self) -> str:
        """The seeds, separated by spaces."""
        return " ".join(map(str, self.estimate.seeds))

    @property
    def title(self) -> str:
        """The number's origin in words: interval, n, seeds, how, source."""
        e = self.estimate
        if e.low is None or e.high is None:
            interval = "no interval"
        elif self.exact:
            interval = "exact"
        else:
            interval = f"95 % interval {self._written(e.low)} to {self._written(e.high)}"
        return f"{e.metric}: {interval}; n = {e.n}; {named_seeds(e.seeds)}; {e.how}; from {self.source}"

    @cached_property
    def _decimals(self) -> int:
        unit = self.estimate.unit
        if unit in _DECIMALS:
            return _DECIMALS[unit]
        if unit in ("clients", "client", "count", "record") and float(self.estimate.value).is_integer():
            return 0
        size = abs(self.estimate.value * self._scale[0])
        if self._scale[1] == "B" or size >= 100:
            return 0
        return 1 if size >= 10 else 2

    def _written(self, value: float, *, signed: bool = False) -> str:
        scaled = value * self._scale[0]
        if self._tiny:
            return f"{scaled:.1e}".replace("e-0", "e-")
        text = f"{scaled:{'+' if signed else ''},.{self._decimals}f}"
        if self.exact and "." in text:
            text = text.rstrip("0").rstrip(".")
        if float(text.replace(",", "")) == 0:
            text = text.replace("-", "+" if signed else "")
        return text.replace("-", "−")

    @cached_property
    def _tiny(self) -> bool:
        """Whether plain decimals would wrongly show the number as 0; for a difference 0 is acceptable."""
        size = abs(self.estimate.value * self._scale[0])
        return self.estimate.unit != "share" and not self.signed and 0 < size < 0.5 * 10.0**-self._decimals


def unit_text(unit: str, *, signed: bool = False) -> str:
    """Return a unit for display, such as `%`, `nats`, or for a difference of shares `points`.

    It is empty if the measure's name implies it.
    """
    if unit == "share":
        return "points" if signed else "%"
    return "" if unit in _BARE else unit


def interval_overlaps(a: Estimate, b: Estimate) -> bool | None:
    """Return whether the intervals of two estimates share a point; None if one has no interval."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.low <= b.high and b.low <= a.high


def named_seeds(seeds: Collection[int]) -> str:
    """Return seeds in words: `seed 0`, `seeds 1, 2`."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
