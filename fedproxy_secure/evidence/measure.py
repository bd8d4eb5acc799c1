"""The kinds of numbers of the trilemma: axis, unit, better direction, and the words for them.

The table of measures, the page, its charts, policies and the gate depend only on this description of a
measure, and on no attack. An attack names the measure of each of its estimates (`attacks.base.Feeds`), and
a finding has the keys.

    MeasureKind(
        key="token_auc",
        title="vocabulary AUC",
        axis="privacy",
        better="lower",
        unit="AUC",
        within=(0, 1),
    )

This project's measures are in `fedproxy_secure.evidence.measures`. Another project adds one by the entry
point group `fedproxy_secure.measures`, under the measure's key. It is then a column of the trilemma and a
rule of policies (`max_token_auc: 0.6`) like this project's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.registry import Registry

Axis = Literal["performance", "privacy", "ip", "cost"]
AXES: tuple[Axis, ...] = ("performance", "privacy", "ip", "cost")
Better = Literal["higher", "lower", "neither"]
MeasuredBy = Literal["attacks", "run"]


class BrokenMeasure(ConfigError):
    """A measure's description that breaks a rule of `MeasureKind`."""


@dataclass(frozen=True, kw_only=True)
class MeasureKind:
    """One kind of number on one axis of the trilemma.

    Args:
        key: name for programs, used by policies and `report.json`, such as `gap_closed`.
        title: name for people, short and without the unit.
        axis: the axis that it belongs to.
        better: which direction is better.
        unit: unit of its estimates, such as `share`, `AUC`, `bits`, `bytes`, `s`.
        by: `attacks` if it is the worst number of any attack, `run` if the run itself measures it. A gate
            trusts a number of attacks only if none of them was inconclusive.
        within: the lowest and the highest possible value. A policy's bound must lie in it, and intervals
            are cut to it.
        in_trilemma: whether it is a column of the trilemma; if not, it is only in the page's records.
        meaning: one sentence that explains the number.
        phrase: text that follows "it" or a configuration's name, with `{}` in place of the number.
        heading: heading of its column in Markdown and in a terminal; by default the title with the unit.
        metric: name of its estimates; by default the key with spaces.
        signed: whether it is a difference, shown with its sign; one of shares in percentage points.
        headline: rank among the measures of its axis; the highest one represents the axis if only one can
            be shown.
        relative: whether it is relative to each configuration's own proxy. If proxies differ, it cannot
            compare configurations, and represents its axis only if no other measure can.
        lower_bound: whether each number bounds the true value from below. The smallest of several such
            numbers is reported: their mean is not a bound, and the largest is too large too often. For a
            gate, such a number can prove that a limit is broken, but never that it is kept.
        counted: whether the run counts it, so that equal numbers of all seeds are exact.

    Raises `BrokenMeasure` for a key that is no identifier, an unknown axis or direction, an empty title,
    an empty range, a phrase without `{}`, and for a measure of attacks without a better direction.
    """

    key: str
    title: str
    axis: Axis
    better: Better
    unit: str
    by: MeasuredBy = "attacks"
    within: tuple[float, float] = (-math.inf, math.inf)
    in_trilemma: bool = True
    meaning: str = ""
    phrase: str = ""
    heading: str = ""
    metric: str = ""
    signed: bool = False
    headline: int = 0
    relative: bool = False
    lower_bound: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("key", self.key, re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.key), "letters, digits and _"),
            ("title", self.title, self.title, "a short name"),
            ("unit", self.unit, self.unit, "a unit, such as share"),
            ("axis", self.axis, self.axis in AXES, f"one of {', '.join(AXES)}"),
            (
                "better",
                self.better,
                self.better in get_args(Better),
                f"one of {', '.join(get_args(Better))}",
            ),
            ("by", self.by, self.by in get_args(MeasuredBy), "attacks or run"),
            ("better", self.better, self.by == "run" or self.better != "neither", "higher or lower"),
            ("within", self.within, self.within[0] < self.within[1], "(lowest, highest)"),
            ("phrase", self.phrase, not self.phrase or "{}" in self.phrase, "a phrase with {}"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise BrokenMeasure(f"measure {self.key!r}: {name}={value!r}: must be {rule}")

    @property
    def estimate_name(self) -> str:
        """The name of its estimates."""
        return self.metric or self.key.replace("_", " ")


# in reading order, which columns and rows of every table follow
_OWN: dict[Axis, tuple[str, ...]] = {
    "performance": (
        *("accuracy_zero_shot", "accuracy_tuned_proxy", "accuracy_fused", "accuracy_centralised"),
        *("gap_closed", "loss_zero_shot", "loss_zero_shot_proxy", "loss_tuned_proxy", "loss_fused"),
        *("loss_centralised", "loss_gap_closed", "perplexity_before", "perplexity_after"),
    ),
    "privacy": (
        *("epsilon_claimed", "epsilon_spent", "epsilon_spent_one_seed", "delta", "effective_cohort"),
        *("token_auc", "exact_sequence_recall", "tpr_at_1pct_fpr", "membership_auc"),
        *("canary_exposure_bits", "epsilon_audited", "audited_over_claimed"),
    ),
    "ip": (
        *(
            "verbatim_share",
            "owners_edge",
            "owners_edge_nats",
            "proxy_accuracy",
            "proxy_kl_nats",
            "proxy_cka",
        ),
        *("proxy_perplexity_ratio", "extraction_R", "kl_left_nats", "api_gain", "proxy_gain"),
        "healing_R",
    ),
    "cost": (
        *("upload_bytes", "download_bytes", "protocol_bytes", "seconds_federate", "seconds_total"),
        *("peak_memory_bytes", "upload_over_unprotected", "seconds_over_unprotected"),
    ),
}
MEASURES = Registry[MeasureKind](
    kind="measure",
    base="fedproxy_secure.evidence.measure:MeasureKind",
    texts=("key", "title"),
    named_by="key",
    group="fedproxy_secure.measures",
    own={
        key: f"fedproxy_secure.evidence.measures.{axis}:{key.upper()}"
        for axis, keys in _OWN.items()
        for key in keys
    },
)


def measure_kind(key: str, *, place: str = "") -> MeasureKind:
    """Return the measure called `key`.

    Args:
        key: the measure's key.
        place: the place that names it, for the error message.

    Raises `ConfigError` for a key that is unknown or registered under another name.
    """
    return MEASURES.get(key, setting=place)


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys without repeats: registered ones in the registry's order, then the others."""
    unique = dict.fromkeys(keys)
    return [
        *(k for k in MEASURES.names() if k in unique),
        *(k for k in unique if k not in MEASURES.names()),
    ]
