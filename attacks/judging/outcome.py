"""Decide the outcome of an attack from its headline and both controls."""

from __future__ import annotations

from collections.abc import Sequence

from attacks.base import AttackInfo
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Outcome


def judge(
    info: AttackInfo,
    headline: Estimate,
    positive: Estimate | None,
    negative: Estimate | None,
    detectable: Sequence[Detectable] = (),
) -> tuple[Outcome, str]:
    """Return the outcome of a headline and its controls, and one sentence that says why.

    The bar is chance plus the margin. SUCCEEDED: the interval begins above the bar and above the negative
    control. RESISTED: the value does not exceed the bar, the positive control's interval begins above the
    bar, the headline's interval ends below the positive control's, and the headline could have shown some
    value as high as the positive control's, or `detectable` has none of it. INCONCLUSIVE: everything else;
    in particular a headline whose negative control begins above the bar, and an AUC whose interval ends
    below chance by more than the margin, because inverted scores would then separate the targets. The
    reason for RESISTED states the smallest effect that would have been seen, if that is known.
    """
    bar, inverted = info.chance + info.margin, info.chance - info.margin
    text = f"{headline.metric} {headline.value:.3g}"
    if negative is not None and negative.above(bar):
        return (
            Outcome.INCONCLUSIVE,
            f"negative control at {negative.value:.3g}: the attack succeeds where nothing is to be found",
        )
    if headline.above(bar):
        if negative is not None and not headline.above(negative.value):
            return (
                Outcome.INCONCLUSIVE,
                f"{text}: its interval must begin above the negative control, {negative.value:.3g}",
            )
        return Outcome.SUCCEEDED, f"{text}, chance {info.chance:g}"
    if headline.interval is None:
        return Outcome.INCONCLUSIVE, f"{text}: there is no interval"
    if positive is None or not positive.above(bar):
        control = "none" if positive is None else f"{positive.value:.3g}"
        if positive is not None and positive.interval is None:
            return Outcome.INCONCLUSIVE, f"{text}; positive control {control}: there is no interval"
        return (
            Outcome.INCONCLUSIVE,
            f"{text}; positive control {control}: its interval must be above {bar:g}",
        )
    if headline.value > bar:
        return Outcome.INCONCLUSIVE, f"{text}: above {bar:g}, but its interval begins below"
    if not headline.below(low_end(positive)):
        return Outcome.INCONCLUSIVE, f"{text}: its interval reaches the positive control's"
    if headline.unit == "AUC" and headline.below(inverted):
        return (
            Outcome.INCONCLUSIVE,
            f"{text}: its interval ends below {inverted:g}: its scores are informative, but with inverted "
            "sign",
        )
    could = next((d for d in detectable if d.metric == headline.metric), None)
    if could is not None and (why := _too_little_power(could, positive)):
        return Outcome.INCONCLUSIVE, f"{text}: {why}"
    power_note = "" if could is None else f"; {could.sentence}"
    return Outcome.RESISTED, f"{text}; positive control {positive.value:.3g}{power_note}"


def _too_little_power(could: Detectable, positive: Estimate) -> str:
    """Return why no value as high as the positive control's would have been seen; empty if one would."""
    if could.smallest is None:
        return f"{could.sentence} ({could.how})"
    if could.smallest > positive.value:
        return f"only {could.sentence} ({could.how}), above the positive control, {positive.value:.3g}"
    return ""


def low_end(estimate: Estimate) -> float:
    """Return the interval's low end; minus infinity without an interval, which proves nothing."""
    return float("-inf") if estimate.interval is None else estimate.interval[0]
