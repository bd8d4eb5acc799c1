"""Sentences that state what a run's differential privacy guarantees, and what it does not."""

from __future__ import annotations

import math
from typing import Literal

MECHANISMS = {"skellam": "Skellam", "discrete_gaussian": "discrete Gaussian"}
NONE = "Differential privacy: none. What clients send, or their sum, may reveal records."
RECORD = (
    "Differential privacy: each client's updates of all rounds together are ({epsilon}, {delta})-DP "
    "in that client's records. Unit: one record. Neighbours: one record is present or absent (which equals "
    "replacing it by an empty record without gradient), and the number of records, rounded up to a power "
    "of two, is the same; the rounded number is public, the exact one is not. If settings select records "
    "by position (audit.holdout, train_records, a split), absent means replaced by an empty record in the "
    "same position. Replacing a record by another record counts as two changes and costs more. A person "
    "with k records counts as k changes: about k times epsilon, and a delta that grows with e^epsilon.",
    "Mechanism: DP-SGD. Each record's gradient is clipped to {clip_norm:g} and rounded to a grid; Gaussian "
    "noise on that grid is added to their sum, which is divided by the batch size. Sampling: Poisson; each "
    "record is drawn in each step independently and secretly, at the rate batch size / public number of "
    "records. Composition: over all local steps and rounds, by the tighter of the PRV and RDP accountants. "
    "PRV bounds the direction in which the record is present; that the other direction costs no more is "
    "tested, not proved.",
    "Post-processing, at no cost in epsilon: AdamW, PCR, H-TIES' trimming, weights and conflict, the "
    "secure sum, the plug-back, and whatever an attack computes from the released models. Not covered: the "
    "attacks' scores in this report, which compare those results with the records themselves.",
)
CLIENT = (
    "Differential privacy: the sums of all rounds together are ({epsilon}, {delta})-DP in whole "
    "clients (unit: one client; neighbours: its vector in the sum or zero in its place).",
    "Mechanism: updates are clipped to {clip_norm:g}, and each client adds {mechanism} noise before "
    "masking. Only the noise of the fewest honest clients that a sum can have is counted, minus one who "
    "may be the observer. A client whose training fails sends zeros with noise. No sampling. Composition: "
    "RDP over rounds.",
)
DIGITS = 4  # of epsilon and delta in sentences
ROUNDING = 1e-9  # relative error of floating-point sums, far below the accountants' margins
NOT_COVERED = (
    "Not covered: accuracies on clients' test records; scores of attacks and their n, which are computed "
    "from the records themselves; settings chosen after looking at results; the fact that a client takes "
    "part, its number of records rounded up to a power of two, and its running time; other runs on the "
    "same records, whose costs add up; the calibration text, which is assumed to be public."
)
SCORED = (
    "This report holds scores of attacks (AUC, rates, recall and their n), which were computed from the "
    "clients' records without noise. The epsilon above does not cover them: treat a report on private "
    "records as private, or remove the attacks' results before publishing it."
)
SIMULATED = (
    "unsafe_simulated randomness: the noise follows from the seed. NOTHING of the above holds for this "
    "run; it only shows the utility of a run whose noise comes from the operating system."
)

# the stamp of a run with simulated noise, by which a gate recognises it
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
    numbers = {"epsilon": rounded_up(epsilon), "delta": rounded_up(delta)}
    named = MECHANISMS[mechanism]
    lines = [
        line.format(**numbers, clip_norm=clip_norm, mechanism=named)
        for line in (RECORD if unit == "record" else CLIENT)
    ]
    return (*lines, NOT_COVERED, *((SIMULATED,) if simulated else ()))


def rounded_up(value: float, *, digits: int = DIGITS) -> str:
    """Return a number rounded up to so many significant digits, so that a guarantee still holds.

    >>> rounded_up(8.0), rounded_up(14.3401), rounded_up(1e-5), rounded_up(0.6081, digits=3)
    ('8', '14.35', '1e-05', '0.609')
    """
    text = f"{value:.{digits}g}"
    if not math.isfinite(value) or float(text) >= value * (1 - ROUNDING):
        return text
    return f"{float(text) + _step(value, digits):.{digits}g}"


def rounded_down(value: float, *, digits: int = DIGITS) -> str:
    """Return a number rounded down to so many significant digits, so that a lower bound still holds.

    >>> rounded_down(8.0), rounded_down(14.3499), rounded_down(0.0)
    ('8', '14.34', '0')
    """
    text = f"{value:.{digits}g}"
    if not math.isfinite(value) or float(text) <= value * (1 + ROUNDING):
        return text
    return f"{float(text) - _step(value, digits):.{digits}g}"


def _step(value: float, digits: int) -> float:
    """Return the last of so many significant digits of a number > 0."""
    return 10.0 ** (math.floor(math.log10(value)) - digits + 1)
