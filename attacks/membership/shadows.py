"""LiRA's shadows for A6: adapters that train on random halves of an exam's documents.

A shadow should know its records as well as the run does. It therefore passes over each of them as often as
clients passed over theirs, if that fits into `SHARE` of the attack's seconds; with fewer passes it is
**short**, and the score's name says so. A shadow trains from round 0 on in one go, with the run's local
settings: it leaves out rounds, averaging over clients, and noise.

Carlini et al. use up to 256 shadows; 8 leave four losses for each side of a document.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.base import Budget
from attacks.membership.references import halves, lira
from attacks.membership.scores import likelihoods
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.training import train
from fedproxy_secure.record.view import PublicSettings

SHADOWS = 8
SHARE = 0.3  # of the attack's seconds that all shadows together may train
WHOLE = 0.9  # share of the run's passes with which a shadow is not short
TIMED = 3  # steps that show how long one takes


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """What shadows told.

    Args:
        scores: LiRA's scores, float64 [n].
        run: passes over a record in the run.
        shadow: passes over a record in a shadow.
        steps: steps of a shadow.
    """

    scores: np.ndarray
    run: float
    shadow: float
    steps: int

    @property
    def name(self) -> str:
        """The score's name."""
        short = "short " if self.shadow < WHOLE * self.run else ""
        return f"LiRA, {SHADOWS} {short}shadows"


def passes_of(settings: PublicSettings, records: float) -> float:
    """Return how often a run passes over a record that it reads at all, with so many records a client."""
    rounds = settings.federate.rounds * settings.federate.participation
    return max(1.0, rounds * settings.local.steps * settings.local.batch_size / records)


def shadowed(
    box: WhiteBox,
    settings: PublicSettings,
    start: np.ndarray,
    documents: Sequence[Encoded],
    observed: np.ndarray,
    *,
    records: float,
    budget: Budget,
    rng: np.random.Generator,
) -> Shadows:
    """Train the shadows and return LiRA's scores of documents.

    Args:
        box: the proxy.
        settings: the run's.
        start: the adapter of round 0, float32 [d].
        documents: the exam's; each is in half of the shadows.
        observed: the mean loss of each document under the last adapter, [n].
        records: training records of a client, the mean over clients.
        budget: the attack's limits.
        rng: randomness.
    """

    def trained(items: Sequence[Encoded], steps: int, who: str) -> None:
        box.set(start)
        train(
            box.tuned,
            items,
            steps=steps,
            local=settings.local,
            pad_id=box.tokenizer.pad_token_id,
            rng=np.random.default_rng(int(rng.integers(2**31))),
            subject=who,
            on_step=lambda _: budget.check(),
        )

    local, passes, half = settings.local, passes_of(settings, records), len(documents) / 2
    wanted = max(1, round(passes * half / local.batch_size))
    seconds = (budget.until(SHARE) - budget.used) * budget.seconds
    began = time.monotonic()
    trained(documents, TIMED, "shadow, timed")
    step_s = (time.monotonic() - began) / TIMED
    steps = min(wanted, max(1, int(seconds / SHADOWS / step_s)))
    with_it = halves(SHADOWS, len(documents), rng)
    seen = np.zeros(with_it.shape)
    for s, inside in enumerate(with_it):
        trained([d for d, there in zip(documents, inside, strict=True) if there], steps, f"shadow {s}")
        seen[s] = [f.nll.mean() for f in likelihoods(box.tuned, documents, budget=budget)]
    return Shadows(
        scores=lira(observed, seen, with_it),
        run=passes,
        shadow=steps * local.batch_size / half,
        steps=steps,
    )
