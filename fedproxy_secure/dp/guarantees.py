"""Sentences that state what a run's differential privacy guarantees, and what it does not."""

from __future__ import annotations

import math
from typing import Literal

MECHANISMS = {"skellam": "Skellam", "discrete_gaussian": "discrete Gaussian"}
NONE = "Differential privacy: none. What clients send, or their sum, may reveal records."
RECORD = (
    "Differential privacy: each client's updates of all rounds together are ({epsilon}, {delta})-DP "
    "in that client's records (unit: one record; neighbours: one record present or absent, which equals "
    "replacing it by an empty one without gradient, with the same number of records after rounding up to a "
    "power of two: that number is public, the exact one is not). Where settings choose records by their "
    "place (audit.holdout, train_records, a split), absent means replaced by an empty one in its place; no "
    "other moves. Replacing a record by another one with a gradient is two such changes and costs more. "
    "A person with k records is k changes: about k times epsilon, and a delta that grows with e^epsilon.",
    "Mechanism: DP-SGD, record gradients clipped to {clip_norm:g} and rounded to a grid, Gaussian noise on "
    "that grid, divided by the batch size. Sampling: Poisson, each record in each step independently, "
    "secret, at the rate batch size / that public number. Composition: over all local steps and rounds, "
    "the tighter of the PRV and RDP accountants; PRV bounds the direction in which the record is present; "
    "that the other costs no more is tested, not proved.",
    "Post-processing, so free: AdamW, PCR, H-TIES' trimming, weights and conflict, the secure sum, the "
    "plug-back, what an attack makes of the released models; but not its scores in this report, which "
    "compare that with the records themselves.",
)
CLIENT = (
    "Differential privacy: the sums of all rounds together are ({epsilon}, {delta})-DP in whole "
    "clients (unit: one client; neighbours: its vector in the sum or zero in its place).",
    "Mechanism: updates clipped to {clip_norm:g}, {mechanism} noise added before masking by the fewest "
    "clients that can be left, without one who may be the onlooker; training that fails sends zeros with "
    "noise, like any other. No sampling. Composition: RDP over rounds.",
)
DIGITS = 4  # of epsilon and delta in sentences
ROUNDING = 1e-9  # relative: of adding up in floating point, far below what the accountants leave room for
NOT_COVERED = (
    "Not covered: accuracies measured on clients' test records; scores of attacks, and their n, which are "
    "computed from the records themselves; settings chosen after looking at results; that a client takes "
    "part, how many records it has up to a power of two, how long it takes; other runs on the same "
    "records, which add up; public calibration text, taken as public."
)
SCORED = (
    "This report holds scores of attacks (AUC, rates, recall and their n), which were computed from the "
    "clients' records without noise. They are outside the epsilon above: a report on records that are "
    "private is itself private, unless the attacks are taken out."
)
SIMULATED = (
    "unsafe_simulated randomness: the noise follows from the seed. NOTHING of the above holds for this "
    "run; it shows the utility of one that draws from the operating system."
)

# the stamp of such a run, by which a gate knows it
SIMULATED_NOISE = "unsafe_simulated: the noise follows from the seed, so nothing is private."


def guarantees(
    unit: Literal["none", "record", "client"],
    *,
    epsilon: float,
    delta: float,
    clip_norm: float,
    mechanism: str,
    simulated: bool,
) -> tuple[str, ...]:
    """Return the sentences of the report's section on privacy.

    `epsilon`: the largest that any client spent; before a run, the target.
    """
    if unit == "none":
        return (NONE,)
    told = {"epsilon": rounded_up(epsilon), "delta": rounded_up(delta)}
    named = MECHANISMS[mechanism]
    lines = [
        line.format(**told, clip_norm=clip_norm, mechanism=named)
        for line in (RECORD if unit == "record" else CLIENT)
    ]
    return (*lines, NOT_COVERED, *((SIMULATED,) if simulated else ()))


def rounded_up(value: float) -> str:
    """Return a number rounded up to `DIGITS` significant digits, so that a guarantee still holds.

    >>> rounded_up(8.0), rounded_up(14.3401), rounded_up(1e-5)
    ('8', '14.35', '1e-05')
    """
    text = f"{value:.{DIGITS}g}"
    if not math.isfinite(value) or float(text) >= value * (1 - ROUNDING):
        return text
    step = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return f"{float(text) + step:.{DIGITS}g}"
