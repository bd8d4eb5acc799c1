"""A5: was this record drawn in that round? Its gradient is one of those that the update is made of.

The adversary computes each document's own gradient g at the broadcast adapter (downhill, so with a minus)
and compares it with what it saw of the round, u:

    share     a of the ridge regression  u ~ sum_i a_i g_i: which combination of documents explains it.
              Under AdamW, which divides by the gradients' size, the regression is on g over its spread.
    cosine    cos(g, u)

The headline is the share alone for SGD, and for AdamW the mean of both, each in deviations over documents.
Exact for one step of SGD; over several steps of AdamW gradients drift and are rescaled, and it fades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, NotApplicable, Truth, attack
from attacks.reconstruction.vectors import vectors
from attacks.statistics import auc_estimate, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate

MEMBERSHIP = (("MITRE ATLAS", "5", "AML.T0024.000"), ("NIST AI RMF", "1.0", "MEASURE 2.10"))
RIDGE = {"sgd": 1e-7, "adamw": 0.1}  # of the mean eigenvalue
MOST_DOCUMENTS = 400  # a question
QUESTIONS = KEPT = 2  # and gradients of as many are kept, for controls


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Documents of which some were drawn in `round` by one of `clients`."""

    round: int
    clients: tuple[str, ...]
    documents: tuple[Encoded, ...]


def scores(gradients: np.ndarray, update: np.ndarray, optimizer: str) -> dict[str, np.ndarray]:
    """Scores [n] of documents by their downhill gradients [n, d] against what the round moved, [d]."""
    g, u = gradients.astype(np.float64), update.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)
    cosine = ((g / lengths) @ u) / max(float(np.linalg.norm(u)), 1e-12)
    scaled = g if optimizer == "sgd" else g / (np.sqrt(np.square(g).mean(axis=0)) + 1e-12)
    gram = scaled @ scaled.T
    ridge = RIDGE[optimizer] * np.trace(gram) / len(gram) * np.eye(len(gram))
    shares = np.linalg.solve(gram + ridge, scaled @ u)
    best = shares if optimizer == "sgd" else deviations(cosine) + deviations(shares)
    return {"auc": best, "cosine": cosine, "share": shares}


def deviations(values: np.ndarray) -> np.ndarray:
    """Values in standard deviations from their mean."""
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))


@attack(
    AttackInfo(
        id="A5",
        name="update_membership",
        title="which records a round drew, from an update or a sum",
        paper="gradient alignment, as in arXiv 1812.00910 (Nasr et al.), for adapters and sums",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        mapping=MEMBERSHIP,
    )
)
class UpdateMembership(Attack):
    """Asks of drawn records and of records set aside."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], np.ndarray] = {}

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Per vector as many drawn records as set-aside ones; labels are the answer."""
        asked, labels = [], []
        for r, clients, _ in vectors(view, most=QUESTIONS):
            members, others = [], []
            for name in clients:
                state = truth.clients.get(name)
                if state is None or r not in state.rounds:
                    continue
                drawn = np.unique(state.rounds[r].used)
                canaries = sum(c.repeats for c in state.canaries)
                drawn = drawn[drawn < len(state.train) - canaries]
                count = min(len(drawn), len(state.holdout), MOST_DOCUMENTS // 2 // len(clients))
                members += [state.train[i] for i in rng.permutation(drawn)[:count]]
                others += [state.holdout[i] for i in rng.permutation(len(state.holdout))[:count]]
            order = rng.permutation(len(members) + len(others))
            documents = [*members, *others]
            if len(members) >= 4:
                chosen = tuple(documents[i] for i in order)
                asked.append(Asked(round=r, clients=clients, documents=chosen))
                labels.append(order < len(members))
        if not asked:
            raise NotApplicable("no records were set aside; run with --set audit.holdout=0.3")
        return Exam(question=tuple(asked), answer=tuple(labels))

    def guess(
        self, view: View, question: Sequence[Asked], budget: Budget, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], ...]:
        """Scores by name for each question: of its first documents, as many as the profile allows."""
        most = budget.pick(smoke=64, standard=MOST_DOCUMENTS, full=MOST_DOCUMENTS)
        assert view.settings is not None
        optimizer = view.settings.local.optimizer
        box = white_box.load(view)
        seen = {(r, clients): vector for r, clients, vector in vectors(view, most=1 << 30)}
        made = []
        for asked in question:
            gradients = self._gradients(box, view.adapters[asked.round], asked.documents[:most], budget)
            made.append(scores(gradients, seen[asked.round, asked.clients], optimizer))
        return tuple(made)

    def score(
        self, guess: tuple[dict[str, np.ndarray], ...], answer: tuple[np.ndarray, ...]
    ) -> tuple[Estimate, ...]:
        """AUC over all documents asked, the headline first; both scores alone; TPR at fixed FPR."""
        labels = np.concatenate([a[: len(g["auc"])] for a, g in zip(answer, guess, strict=True)])
        made = []
        for name in ("auc", "cosine", "share"):
            # in deviations within a question, so that questions can be put together
            values = np.concatenate([deviations(g[name]) for g in guess])
            metric = "auc" if name == "auc" else f"auc, {name} alone"
            made.append(auc_estimate(values, labels, metric=metric, seed=0))
            if name == "auc":
                made += tpr_estimates(values, labels, seed=0)
        return tuple(made)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """One round of one SGD step of 16 records, seen in the clear."""
        from attacks.reconstruction.sequences import one_step_control

        return one_step_control(view, truth, records=16)

    def _gradients(
        self, box: WhiteBox, adapter: np.ndarray, documents: Sequence[Encoded], budget: Budget
    ) -> np.ndarray:
        """Downhill gradients, float32 [n, d]; kept for the next call, which controls make."""
        key = (adapter.tobytes(), tuple(documents))
        if key not in self._kept:
            box.set(adapter)
            rows = -box.record_gradients(documents, budget=budget)
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = rows
        return self._kept[key]
