"""A14: does the round hold records with a property? The norms of an update's tensors reveal it.

The adversary has records of its own that resemble the clients' (records set aside stand for them). It
trains shadow rounds with and without the property. A logistic regression on the logarithms of the tensors'
norms learns to tell them apart, and then classifies rounds that the examiner trained on the clients' own
records. The property is that all records of a round have the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, NotApplicable, Truth
from attacks.integrity.rehearsal import client_of, with_steps
from attacks.membership.updates import MEMBERSHIP
from attacks.registry import attack
from attacks.statistics import auc_estimate, p_by_chance
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import PublicSettings, View

SHADOWS = 56  # rounds for training the regression, half with the property
TARGETS = 32  # rounds to classify
STEPS = 1  # local steps of a shadow round; as many as the run takes would need minutes
RECORDS = 16
PARTS = 6  # different updates of each other client
PERMUTATIONS = 199
MOST_P = 0.01  # an AUC with a larger permutation p-value gets an interval that includes chance


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Updates of shadow and target rounds, float32 [n, d].

    Args:
        shadows: rounds to learn from.
        labels: which shadows have the property, bool [n].
        targets: rounds to classify.
        without: rounds in which no record was chosen for the property, for the negative control only.
    """

    shadows: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    without: np.ndarray


def features(box: WhiteBox, updates: np.ndarray) -> np.ndarray:
    """Return the log norms of an update's tensors, float64 [n, tensors]."""
    ends = np.cumsum([int(np.prod(s)) for s in box.shapes])[:-1]
    parts = np.split(updates.astype(np.float64), ends, axis=1)
    return np.stack([np.log(np.linalg.norm(p, axis=1) + 1e-12) for p in parts], axis=1)


@attack(
    AttackInfo(
        id="A14",
        name="property_inference",
        title="a property of a round's records, from tensors' norms",
        paper="Melis et al. 2019, arXiv 1805.04049",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        mapping=MEMBERSHIP,
        smoke=False,
        long=1,
    )
)
class PropertyInference(Attack):
    """The attack on rounds of one client, alone or within a sum where the view has sums."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return shadow rounds on set-aside records, and target rounds on training records."""
        settings = view.settings
        if settings is not None and settings.privacy.unit != "none":
            raise NotApplicable("rounds would be trained anew, without the run's differential privacy")
        usable = {
            n: peer_state
            for n, peer_state in truth.clients.items()
            if len(peer_state.holdout) >= 2 * RECORDS
        }
        if settings is None or not usable:
            raise NotApplicable(
                f"no client set {2 * RECORDS} records aside; run with larger audit.holdout or more records"
            )
        name = sorted(usable)[0]
        state = usable[name]
        start = view.adapters[min(view.adapters)]
        common = Counter(_answer(i) for i in state.holdout).most_common(1)[0][0]
        if not any(_answer(i) == common for i in state.train):
            raise NotApplicable("records share no answer: it would be the property, and texts have none")
        settings = with_steps(settings, STEPS, round=min(view.adapters))
        with white_box.opened(view) as box:
            train_rounds = partial(_train, box, settings, start, name=name, common=common, rng=rng)
            shadows, labels = train_rounds(state.holdout, count=SHADOWS)
            targets, answer = train_rounds(state.train, count=TARGETS)
            without, _ = train_rounds(state.train, count=TARGETS, chosen=False)
            if not view.updates:  # a sum holds the other clients' parts, which the adversary does not know
                for peer, peer_state in truth.clients.items():
                    if peer != name:
                        # a client that set none aside is imitated by the records that this one did
                        aside = peer_state.holdout or state.holdout
                        shadows += _parts(box, settings, start, peer, aside, len(shadows), rng)
                        targets += _parts(box, settings, start, peer, peer_state.train, len(targets), rng)
                        without += _parts(box, settings, start, peer, peer_state.train, len(without), rng)
        question = Rounds(shadows=shadows, labels=labels, targets=targets, without=without)
        return Exam(question=question, answer=answer)

    def guess(self, view: View, question: Rounds, budget: Budget, rng: np.random.Generator) -> np.ndarray:
        """Return the property's log-odds for each target round, float64 [n]."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        with white_box.opened(view) as box:
            shadows, targets = features(box, question.shadows), features(box, question.targets)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(shadows, question.labels)
        return np.asarray(model.decision_function(targets))

    def score(self, guess: np.ndarray, answer: np.ndarray) -> tuple[Estimate, ...]:
        """Return the AUC over target rounds, and the p-value of permuted labels.

        Rounds draw from the same records, so DeLong's interval is too narrow. It is extended down to chance
        unless permuted labels hardly ever reach the AUC.
        """
        auc = auc_estimate(guess, answer, metric="auc")
        p = Estimate(
            metric="p-value",
            value=p_by_chance(guess, answer, permutations=PERMUTATIONS),
            low=None,
            high=None,
            n=len(answer),
            unit="probability",
            seeds=(0,),
            how=f"{PERMUTATIONS} permutations of the labels",
            nature="sampled",
        )
        if p.value > MOST_P and auc.low is not None:
            auc = replace(auc, low=min(auc.low, self.info.chance))
        return (auc, p)

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return rounds trained like the target rounds but without the property, with the targets' labels.

        The shadows' labels are not permuted. A rule learned from labels without information still points in
        some direction, and two kinds of rounds that lie far apart would fall on its two sides, all right or
        all wrong.
        """
        question = replace(exam.question, targets=exam.question.without)
        return view, Exam(question=question, answer=exam.answer)


def _parts(
    box: WhiteBox,
    settings: PublicSettings,
    start: np.ndarray,
    name: str,
    items: Sequence[Encoded],
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return another client's updates in `count` rounds, float32 [count, d]: each is one of `PARTS`."""
    drawn = []
    for index in range(PARTS):
        chosen = [items[i] for i in rng.choice(len(items), size=RECORDS)]
        client = client_of(box, settings, name, chosen)
        drawn.append(client.train(round=index, start=start).update)
    return np.stack(drawn)[rng.integers(PARTS, size=count)]


def _answer(item: Encoded) -> tuple[int, ...]:
    return item.ids[item.response_start :]


def _train(
    box: WhiteBox,
    settings: PublicSettings,
    start: np.ndarray,
    items: Sequence[Encoded],
    *,
    count: int,
    name: str,
    common: tuple[int, ...],
    rng: np.random.Generator,
    chosen: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Train rounds on random records; by default every second one has the property.

    A round with the property draws only records with the answer `common`; with `chosen=False` none has it.
    All rounds draw, with replacement, from equally many records, so that repeated records reveal nothing.
    """
    same = [i for i, item in enumerate(items) if _answer(item) == common]
    updates, labels = [], []
    for index in range(count):
        pool = same if chosen and index % 2 else rng.permutation(len(items))[: len(same)]
        drawn = [items[i] for i in rng.choice(np.array(pool), size=RECORDS)]
        client = client_of(box, settings, name, drawn)
        updates.append(client.train(round=index, start=start).update)
        labels.append(bool(index % 2))
    return np.stack(updates), np.array(labels)
