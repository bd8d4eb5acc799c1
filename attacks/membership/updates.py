"""A5: tell records that a round trained on from records that no round did, by their gradients.

An update is made of gradients of records.

The adversary computes the gradient g of each document (downhill, so with a minus sign) and compares it with
the update or sum u that it saw of the round:

    share     a of the ridge regression  u ~ sum_i a_i g_i: which combination of documents explains it.
              Under AdamW, which divides by the gradients' size, the regression is on g over its spread.
    cosine    cos(g, u)

The headline is the share alone for SGD; for AdamW it is the sum of both, each in standard deviations over
documents. The attack is exact for one step of SGD.

Gradients are taken at the broadcast adapter, `first`. Over many steps of AdamW gradients drift and are
rescaled, and no single point represents the round. With `MANY_STEPS` or more steps, gradients are therefore
taken at three points of a surrogate (SME, Zhu et al. 2023),

    first + beta u      for beta = 0, 1/2, 1

and the standardised scores are averaged. A likely reason why later points help: documents that were learned
have almost no gradient left along u, while u made others worse. For a sum, u is the mean over its clients,
so the points lie between the clients' own. `tests/bench/midpoint.py` measures the points alone and
together: for 5 steps from a fresh adapter, the later points add nothing to the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, Feeds, NotApplicable, Truth
from attacks.membership.blind import check_blind
from attacks.membership.gradients import Products, products, record_gradients
from attacks.reconstruction.one_step import as_in_the_run, one_step_control
from attacks.reconstruction.vectors import shuffled, vectors
from attacks.registry import attack
from attacks.statistics import auc_estimate, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View

MEMBERSHIP = (("MITRE ATLAS", "5", "AML.T0024.000"), ("NIST AI RMF", "1.0", "MEASURE 2.10"))
RIDGE = {"sgd": 1e-7, "adamw": 0.1}  # relative to the mean eigenvalue
MOST_DOCUMENTS = 400  # in one question
QUESTIONS = 2
FEWEST_DRAWN = 4  # records of a question
KEPT = 3  # questions whose gradients are kept for the negative control, with the positive control's
GRADIENTS = 2**26  # numbers of all gradients of one question: 256 MB
FEWEST = 16  # documents of a question, whatever memory their gradients take
MANY_STEPS = 10  # of AdamW; with these or more, gradients at later points help
BETAS = (0.0, 0.5, 1.0)
FEW_CONTROL_STEPS, MANY_CONTROL_STEPS = 1, 20  # of AdamW, in the positive control of runs with few and many
SHARE = 0.4  # of its seconds that the attack spends on gradients; the controls as much, if time remains


@dataclass(frozen=True, kw_only=True)
class RoundQuestion:
    """The documents of one question, some of which were drawn in `round` by one of `clients`."""

    round: int
    clients: tuple[str, ...]
    documents: tuple[Encoded, ...]


def scores(gradients: np.ndarray, update: np.ndarray, optimizer: str) -> dict[str, np.ndarray]:
    """Return scores of documents by name, [n], from their gradients and the round's movement.

    Args:
        gradients: downhill gradients, float [n, d].
        update: what the round moved, [d].
        optimizer: the clients' optimiser, `sgd` or `adamw`.
    """
    return scores_of(products(gradients, update, optimizer), optimizer)


def scores_of(p: Products, optimizer: str) -> dict[str, np.ndarray]:
    """Return scores of documents by name, [n], from their products."""
    n = len(p.squares)
    lengths = np.maximum(np.sqrt(p.squares), 1e-12)
    cosine = p.along / lengths / max(np.sqrt(p.moved), 1e-12)
    ridge = RIDGE[optimizer] * np.trace(p.gram) / n * np.eye(n)
    shares = np.linalg.solve(p.gram + ridge, p.against)
    best = shares if optimizer == "sgd" else deviations(cosine) + deviations(shares)
    return {"auc": best, "cosine": cosine, "share": shares}


def betas_of(local: LocalConfig) -> tuple[float, ...]:
    """Return where between the first adapter (0) and the last (1) gradients are compared with an update."""
    return BETAS if local.optimizer == "adamw" and local.steps >= MANY_STEPS else BETAS[:1]


def averaged(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of each score over points, standardised over documents if there are several."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.mean([deviations(p[name]) for p in parts], axis=0) for name in parts[0]}


def deviations(values: np.ndarray) -> np.ndarray:
    """Return values as standard deviations from their mean."""
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))


@attack(
    AttackInfo(
        id="A5",
        name="update_membership",
        title="drawn records told from ones never trained on, by an update or a sum",
        paper="gradient alignment, as in arXiv 1812.00910 (Nasr et al.), for adapters and sums",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        measures=(
            Feeds(measure="membership_auc", metric="auc*"),
            Feeds(measure="tpr_at_1pct_fpr", metric="TPR at 1.0% FPR*"),
        ),
        mapping=MEMBERSHIP,
    )
)
class UpdateMembership(Attack):
    """The attack that tells drawn records from records set aside."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], np.ndarray] = {}

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return a question for each vector, half drawn records and half set-aside ones, with labels.

        Each record is in one question only: the questions' documents are taken as independent.
        """
        questions, labels = [], []
        picked = vectors(view, most=QUESTIONS)
        times = Counter(name for _, clients, _ in picked for name in clients)
        used: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in times}
        for r, clients, _ in picked:
            members, nonmembers = [], []
            for name in clients:
                state = truth.clients.get(name)
                if state is None or r not in state.rounds:
                    continue
                pool = truth.nonmembers(name)
                drawn = np.setdiff1d(state.own_drawn(r), used[name][0])
                aside = np.setdiff1d(np.arange(len(pool)), used[name][1])
                share = len(pool) // times[name]
                count = min(len(drawn), len(aside), share, MOST_DOCUMENTS // 2 // len(clients))
                present, absent = rng.permutation(drawn)[:count], rng.permutation(aside)[:count]
                used[name][0].extend(present)
                used[name][1].extend(absent)
                members += [state.train[i] for i in present]
                nonmembers += [pool[i] for i in absent]
            order = rng.permutation(len(members) + len(nonmembers))
            documents = [*members, *nonmembers]
            if len(members) >= FEWEST_DRAWN:
                chosen = tuple(documents[i] for i in order)
                questions.append(RoundQuestion(round=r, clients=clients, documents=chosen))
                labels.append(order < len(members))
        if not questions:
            shares = [len(truth.nonmembers(n)) // times[n] for n in times if n in truth.clients]
            if max(shares, default=0) >= FEWEST_DRAWN:
                raise NotApplicable(
                    f"fewer than {FEWEST_DRAWN} records were drawn in the rounds asked about"
                )
            raise NotApplicable(truth.no_nonmembers())
        check_blind([d for part in questions for d in part.documents], np.concatenate(labels))
        return Exam(question=tuple(questions), answer=tuple(labels))

    def guess(
        self, view: View, question: Sequence[RoundQuestion], budget: Budget, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], ...]:
        """Return scores by name for each question.

        The first documents of each question are scored: as many as the profile, the memory for gradients
        and the share `SHARE` of the seconds allow. At later points all of these are read, so the negative
        control takes two thirds of the attack's seconds, whatever its `last`.
        """
        assert view.settings is not None
        most = budget.pick(smoke=64, standard=MOST_DOCUMENTS, full=MOST_DOCUMENTS)
        optimizer = view.settings.local.optimizer
        seen = {(r, clients): vector for r, clients, vector in vectors(view, most=1 << 30)}
        by_question: list[dict[str, np.ndarray]] = []
        betas = betas_of(view.settings.local)
        # gradients at each later point take as long as those at the first
        shares = [SHARE * (number + 1 / len(betas)) / len(question) for number in range(len(question))]
        untils = [budget.until(share) for share in shares]
        with white_box.opened(view) as box:
            for part, until in zip(question, untils, strict=True):
                start, update = view.adapters[part.round], seen[part.round, part.clients]
                documents = part.documents[: min(most, max(FEWEST, GRADIENTS // start.size))]
                parts = []
                for beta in betas:
                    if beta == 0:
                        gradients = self._gradients(box, start, documents, budget, until=until)
                    else:
                        box.set((start + beta * update).astype(np.float32))
                        gradients = -record_gradients(box, documents, budget=budget)
                    documents = documents[: len(gradients)]
                    parts.append(scores(gradients, update, optimizer))
                by_question.append(averaged(parts))
        return tuple(by_question)

    def score(
        self, guess: tuple[dict[str, np.ndarray], ...], answer: tuple[np.ndarray, ...]
    ) -> tuple[Estimate, ...]:
        """Return the AUC over all documents, the headline first, TPR at fixed FPR, each score alone."""
        labels = np.concatenate([a[: len(g["auc"])] for a, g in zip(answer, guess, strict=True)])
        estimates, parts = [], [len(g["auc"]) for g in guess]
        for name in ("auc", "cosine", "share"):
            # in deviations within each question, so that the questions can be joined
            values = np.concatenate([deviations(g[name]) for g in guess])
            metric = "auc" if name == "auc" else f"auc, {name} alone"
            estimates.append(auc_estimate(values, labels, metric=metric, parts=parts))
            if name == "auc":
                estimates += tpr_estimates(values, labels)
        return tuple(estimates)

    def effort(self, guess: tuple[dict[str, np.ndarray], ...]) -> Mapping[str, int]:
        """Return how many documents' gradients were computed."""
        return {"documents": sum(len(g["auc"]) for g in guess)}

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """One round on 16 records, seen in the clear: a step of SGD, or one or many of AdamW."""
        control = one_step_control(view, truth, records=16, drawn=True)
        many = view.settings is not None and view.settings.local.steps >= MANY_STEPS
        # so that it reads the same points as in the run
        return as_in_the_run(
            control, view.settings, steps=MANY_CONTROL_STEPS if many else FEW_CONTROL_STEPS
        )

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """The numbers of every vector are shuffled."""
        return shuffled(view, rng), exam

    def _gradients(
        self,
        box: WhiteBox,
        adapter: np.ndarray,
        documents: Sequence[Encoded],
        budget: Budget,
        *,
        until: float,
    ) -> np.ndarray:
        """Return downhill gradients, float32 [n, d], of the first documents, `FEWEST` at least.

        It stops once the share `until` of the budget's seconds is used up. The gradients are kept until the
        negative control reads them.
        """
        key = (adapter.tobytes(), tuple(documents))
        if key not in self._kept:
            box.set(adapter)
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            rows, done = np.empty((len(documents), len(adapter)), np.float32), 0
            while done < len(documents) and (not done or budget.used < until):
                part = documents[done : done + FEWEST]
                rows[done : done + len(part)] = -record_gradients(box, part, budget=budget)
                done += len(part)
            self._kept[key] = rows[:done]
            return rows[:done]
        return self._kept.pop(key)  # the negative control asks last
