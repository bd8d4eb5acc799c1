"""A number for display: text, interval, unit, and a line on its origin."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedproxy_secure.dp.guarantees import rounded_down, rounded_up
from fedproxy_secure.evidence.estimate import Estimate

_SHARE_LIKE = {"AUC": 2, "probability": 3, "cosine": 2, "CKA": 2}  # unit -> decimals
_DECIMALS = {**_SHARE_LIKE, "share": 1, "nats": 3}  # a KL of 0.03 nats is large
# units that are not shown, because the measure's name implies them
_BARE = {*_SHARE_LIKE, "ratio", "epsilon", "delta", "count", "perplexity", "norm"}
_UPPER_BOUNDS = {"epsilon", "delta"}  # units of what privacy costs at most: rounded up if exact
_MOST_DECIMALS = 6  # of plain numbers
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
        """The value without interval and unit, such as `97.2`, or `at least 2.91` for a lower bound."""
        if self.estimate.nature == "lower bound":
            return f"at least {rounded_down(self.estimate.value * self._scale[0], digits=3)}"
        return self._written(self.estimate.value, signed=self.signed)

    @property
    def exact(self) -> bool:
        """Whether it was counted, not sampled."""
        return self.estimate.exact

    @property
    def spread(self) -> str:
        """The interval, such as `± 1.4`, or `[95.8, 98.0]` if it is not symmetric.

        It has as many decimals as it takes to show its width. It is empty for an exact number, for a lower
        bound, and for a number without an interval.
        """
        e = self.estimate
        if e.interval is None or e.nature != "sampled":
            return ""
        low, high = e.interval
        rounding = 0.51 * 10.0**-self._decimals / self._scale[0]
        if abs((low + high) / 2 - e.value) < rounding:
            return f"± {self._written((high - low) / 2)}"
        return f"[{self._written(low, signed=self.signed)}, {self._written(high, signed=self.signed)}]"

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
        if self.exact:
            interval = "exact"
        elif e.nature == "lower bound":
            interval = "the truth is at least this, with 95 % confidence"
        elif e.interval is None:
            interval = "no interval"
        else:
            interval = "95 % interval {} to {}".format(*map(self._written, e.interval))
        return f"{e.metric}: {interval}; n = {e.n}; {named_seeds(e.seeds)}; {e.how}; from {self.source}"

    @cached_property
    def _decimals(self) -> int:
        """Decimals of value and interval: those of the unit, or more if half the interval needs them."""
        interval, decimals = self.estimate.interval, self._decimals_of_unit
        if interval is None or self.estimate.nature != "sampled" or self._tiny:
            return decimals
        half = (interval[1] - interval[0]) / 2 * self._scale[0]
        while decimals < _MOST_DECIMALS and float(f"{half:.{decimals}f}") == 0:
            decimals += 1
        return decimals

    @cached_property
    def _decimals_of_unit(self) -> int:
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
        if self.exact and self.estimate.unit in _UPPER_BOUNDS and not self.signed:
            return rounded_up(scaled).replace("e-0", "e-")
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
        return (
            self.estimate.unit != "share"
            and not self.signed
            and 0 < size < 0.5 * 10.0**-self._decimals_of_unit
        )


def unit_text(unit: str, *, signed: bool = False) -> str:
    """Return a unit for display, such as `%`, `nats`, or for a difference of shares `points`.

    It is empty if the measure's name implies it.
    """
    if unit == "share":
        return "points" if signed else "%"
    return "" if unit in _BARE else unit


def interval_overlaps(a: Estimate, b: Estimate) -> bool | None:
    """Return whether the intervals of two estimates share a point; None if one has no interval."""
    if a.interval is None or b.interval is None:
        return None
    return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]


def named_seeds(seeds: Collection[int]) -> str:
    """Return seeds in words: `seed 0`, `seeds 1, 2`."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
