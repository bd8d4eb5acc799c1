"""LiRA's shadows for A6: adapters that train on random halves of an exam's documents.

A shadow should know its records as well as the run does. It therefore passes over each of them as often as
clients passed over theirs, if that fits into the attack's seconds; with fewer passes it is **short**, and
the score's name says so. A shadow trains from round 0 on in one go, with the run's local settings, whose
schedule of learning rates spans the shadow as it spans the run: it leaves out rounds, averaging over
clients, and noise.

All shadows together train and read for `SHARE` of the attack's seconds. If reading under every shadow
would take more than `READING` of that, the shadows are of the first documents only, and there are none if
these would be too few.

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
SHARE = 0.3  # of the attack's seconds that all shadows together may train and read
READING = 0.5  # of these, for reading
FEWEST = 64  # documents of shadows, unless the exam has fewer; so many are read to see how long one takes
WHOLE = 0.9  # share of the run's passes with which a shadow is not short
TIMED = 3  # steps that show how long one takes


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """What shadows told.

    Args:
        scores: LiRA's scores of the first documents, float64 [n].
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
) -> Shadows | None:
    """Train the shadows and return LiRA's scores of documents, or None if there is too little time.

    Args:
        box: the proxy.
        settings: the run's.
        start: the adapter of round 0, float32 [d].
        documents: the exam's; each that there is time for is in half of the shadows.
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

    seconds = (budget.until(SHARE) - budget.used) * budget.seconds
    fewest, began = min(FEWEST, len(documents)), time.monotonic()
    likelihoods(box.tuned, documents[:fewest], budget=budget)
    document_s = (time.monotonic() - began) / fewest
    most = int(READING * seconds / SHADOWS / document_s)
    if most < fewest:
        return None
    documents, observed = documents[:most], observed[:most]
    began = time.monotonic()
    trained(documents, TIMED, "shadow, timed")
    step_s = (time.monotonic() - began) / TIMED
    local, passes, half = settings.local, passes_of(settings, records), len(documents) / 2
    wanted = max(1, round(passes * half / local.batch_size))
    for_steps = seconds / SHADOWS - document_s * len(documents)
    steps = min(wanted, max(1, int(for_steps / step_s)))
    with_it = halves(SHADOWS, len(documents), rng)
    seen = np.zeros(with_it.shape)
    for s, inside in enumerate(with_it):
        if budget.used > budget.last:  # slower than it seemed: the other scores must not be lost
            return None
        trained([d for d, there in zip(documents, inside, strict=True) if there], steps, f"shadow {s}")
        seen[s] = [f.nll.mean() for f in likelihoods(box.tuned, documents, budget=budget)]
    return Shadows(
        scores=lira(observed, seen, with_it),
        run=passes,
        shadow=steps * local.batch_size / half,
        steps=steps,
    )
