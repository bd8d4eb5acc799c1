"""Sentences that state what a run's differential privacy guarantees, and what it does not."""

from __future__ import annotations

from typing import Literal

MECHANISMS = {"skellam": "Skellam", "discrete_gaussian": "discrete Gaussian"}
NONE = "Differential privacy: none. What clients send, or their sum, may reveal records."
RECORD = (
    "Differential privacy: each client's updates of all rounds together are ({epsilon:.3g}, {delta:g})-DP "
    "in that client's records (unit: one record; neighbours: one record there or not, which is the same as "
    "there or replaced by one without gradient, with the same number of records after rounding up to a "
    "power of two: that number is public, the exact one is not).",
    "Mechanism: DP-SGD, record gradients clipped to {clip_norm:g} and rounded to a grid, Gaussian noise on "
    "that grid, divided by the batch size. Sampling: Poisson, each record in each step independently, "
    "secret, at the rate batch size / that public number. Composition: over all local steps and rounds, "
    "the tighter of the PRV and RDP accountants.",
    "Post-processing, so free: AdamW, PCR, H-TIES' trimming, weights and conflict, the secure sum, the "
    "plug-back, any attack on the released models.",
)
CLIENT = (
    "Differential privacy: the sums of all rounds together are ({epsilon:.3g}, {delta:g})-DP in whole "
    "clients (unit: one client; neighbours: its vector in the sum or zero in its place).",
    "Mechanism: updates clipped to {clip_norm:g}, {mechanism} noise of the clients that are left, added "
    "before masking. No sampling. Composition: RDP over rounds.",
)
NOT_COVERED = (
    "Not covered: accuracies measured on clients' test records; settings chosen after looking at results; "
    "that a client takes part, how many records it has up to a power of two, how long it takes; other runs "
    "on the same records, which add up; public calibration text, taken as public."
)
SIMULATED = (
    "unsafe_simulated randomness: the noise follows from the seed. NOTHING of the above holds for this "
    "run; it shows the utility of one that draws from the operating system."
)


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
    named = MECHANISMS[mechanism]
    lines = [
        line.format(epsilon=epsilon, delta=delta, clip_norm=clip_norm, mechanism=named)
        for line in (RECORD if unit == "record" else CLIENT)
    ]
    return (*lines, NOT_COVERED, *((SIMULATED,) if simulated else ()))
