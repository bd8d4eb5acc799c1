"""A6: was this record trained on, by the model alone?

Whoever has taken part holds the **round-0 proxy** for free: the best reference there is, since it differs
from the tuned proxy by the records alone. The headline is how much a record's loss fell against it. With
the API alone there is no reference, and the headline is Min-K%++.

Besides: loss, loss/zlib, Min-K%, the slope over rounds, the gradient's norm, RMIA (offline: the round-0
proxy as reference, set-aside records as population), and LiRA with few shadow adapters. Only the headline
was fixed beforehand; the others are uncorrected for being many.

A **blind** baseline, which sees the text and no model, must be at chance, or the split itself tells.

Carlini et al. 2022 (LiRA, arXiv 2112.03570), Zarifzadeh et al. 2024 (RMIA, 2312.03262).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Inconclusive,
    NotApplicable,
    Truth,
    attack,
    replace_view,
)
from attacks.membership.overfit import overfitted
from attacks.membership.scores import Likelihoods, likelihoods, membership_scores
from attacks.membership.updates import MEMBERSHIP
from attacks.statistics import auc_estimate, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.training import train
from fedproxy_secure.llm import load_llm
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate

MOST = 1200  # documents of an exam, half of them members
TELLS = 1.5  # lower half-widths of its interval above chance at which a blind baseline is no accident
RMIA_A = 0.3  # how far the chance of a record is taken to lie between its reference's and 1
SHADOWS, SHADOW_STEPS = 8, 40


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Documents, and records that were certainly not trained on (for reference)."""

    documents: tuple[Encoded, ...]
    population: tuple[Encoded, ...]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores by name, float64 [n], of all documents or the first; `headline` names the one that counts."""

    scores: dict[str, np.ndarray]
    headline: str
    blind: np.ndarray  # bag-of-words counts of all documents, [n, V], for the scorer's blind baseline


@attack(
    AttackInfo(
        id="A6",
        name="model_membership",
        title="which records a model was trained on",
        paper="arXiv 2112.03570, 2312.03262, 2404.02936",
        needs=(frozenset({"MOD"}), frozenset({"API"})),
        long=1,
        mapping=MEMBERSHIP,
    )
)
class ModelMembership(Attack):
    """Asks of records that some round drew, and of records set aside."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """As many members as others, mixed; what is left of the others is the population."""
        members: list[Encoded] = []
        others: list[Encoded] = []
        for state in truth.clients.values():
            planted = sum(c.repeats for c in state.canaries)
            drawn = np.unique(np.concatenate([[], *(r.used for r in state.rounds.values())])).astype(int)
            members += [state.train[i] for i in drawn if i < len(state.train) - planted]
            others += state.holdout
        if len(others) < 8 or len(members) < 4:
            raise NotApplicable("no records were set aside; run with --set audit.holdout=0.3")
        reserve = len(others) // 4
        count = min(len(members), len(others) - reserve, MOST // 2)
        chosen = [members[i] for i in rng.permutation(len(members))[:count]]
        order = rng.permutation(len(others))
        chosen += [others[i] for i in order[:count]]
        mixed = rng.permutation(2 * count)
        asked = Asked(
            documents=tuple(chosen[i] for i in mixed),
            population=tuple(others[i] for i in order[count : count + 200]),
        )
        return Exam(question=asked, answer=mixed < count)

    def guess(self, view: View, question: Asked, budget: Budget, rng: np.random.Generator) -> Scored:
        """All scores that the view allows."""
        most = budget.pick(smoke=240, standard=MOST, full=MOST)
        documents = question.documents[:most]
        if _white_box_of(view):
            scores = self._white_box(view, documents, question.population, budget, rng)
            headline = "fall of loss since round 0"
        elif view.api is not None:
            model, tokenizer = load_llm(view.api, device="cpu", dtype="float32")
            found = likelihoods(model, documents, pad_id=tokenizer.pad_token_id, budget=budget)
            scores = membership_scores(found, documents, tokenizer)
            headline = "Min-K%++"
        else:
            raise NotApplicable("this view holds no model")
        return Scored(scores=scores, headline=headline, blind=bag_of_words(question.documents))

    def _white_box(
        self,
        view: View,
        documents: Sequence[Encoded],
        population: Sequence[Encoded],
        budget: Budget,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        box = white_box.load(view)
        numbers = sorted(view.adapters)
        if budget.profile == "smoke":
            numbers = [numbers[0], numbers[-1]]

        def under(adapter: np.ndarray, items: Sequence[Encoded]) -> list[Likelihoods]:
            box.set(adapter)
            return likelihoods(box.tuned, items, pad_id=box.tokenizer.pad_token_id, budget=budget)

        found = {n: under(view.adapters[n], documents) for n in numbers}
        losses = {n: mean_losses(f) for n, f in found.items()}
        first, last = losses[numbers[0]], losses[numbers[-1]]
        scores = membership_scores(found[numbers[-1]], documents, box.tokenizer)
        scores["fall of loss since round 0"] = first - last
        if budget.profile == "smoke":
            return scores
        scores["slope over rounds"] = -slopes(np.stack(list(losses.values())))
        if len(population) >= 8:
            before, after = (mean_losses(under(view.adapters[numbers[i]], population)) for i in (0, -1))
            scores["RMIA, offline"] = rmia(first, last, before, after)
        norms = []  # at the last adapter; some gradients at a time, as all of them are large
        for at in range(0, min(len(documents), 400), 16):
            part = documents[at : min(at + 16, 400)]
            norms.append(-np.linalg.norm(box.record_gradients(part, budget=budget), axis=1))
        scores["gradient norm"] = np.concatenate(norms)
        if budget.profile == "full":
            scores["LiRA, 8 shadows"] = self._lira(box, view, documents, last, budget, rng)
        return scores

    def _lira(
        self,
        box: WhiteBox,
        view: View,
        documents: Sequence[Encoded],
        observed: np.ndarray,
        budget: Budget,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Shadow adapters, each trained from round 0 on a random half of the documents."""
        assert view.settings is not None
        with_it = halves(SHADOWS, len(documents), rng)
        seen = np.zeros(with_it.shape)
        for s, inside in enumerate(with_it):
            box.set(view.adapters[min(view.adapters)])
            train(
                box.tuned,
                [d for d, there in zip(documents, inside, strict=True) if there],
                steps=SHADOW_STEPS,
                local=view.settings.local,
                pad_id=box.tokenizer.pad_token_id,
                rng=np.random.default_rng(int(rng.integers(2**31))),
                who=f"shadow {s}",
                on_step=lambda _: budget.check(),
            )
            found = likelihoods(box.tuned, documents, pad_id=box.tokenizer.pad_token_id, budget=budget)
            seen[s] = mean_losses(found)
        return lira(observed, seen, with_it)

    def score(self, guess: Scored, answer: np.ndarray) -> tuple[Estimate, ...]:
        """The headline's AUC and TPR at fixed FPR, all other AUCs, the blind baseline's."""
        values = guess.scores[guess.headline]
        labels = answer[: len(values)]
        blind = blind_auc(guess.blind, answer)
        if blind.low is not None and blind.value - 0.5 > TELLS * (blind.value - blind.low):
            raise Inconclusive(f"a blind baseline reaches AUC {blind.value:.3g}: the split itself tells")
        made = [
            auc_estimate(values, labels, metric="auc", seed=0),
            *tpr_estimates(values, labels, seed=0),
            blind,
        ]
        for name, scores in guess.scores.items():
            made.append(auc_estimate(scores, labels[: len(scores)], metric=f"auc, {name}", seed=0))
        return tuple(made)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Models that know a dozen records by heart."""
        asked = view if not _white_box_of(view) else replace_view(view, api=None)
        return overfitted(asked, truth, canaries=False)

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Labels that have nothing to do with training."""
        return view, Exam(question=exam.question, answer=rng.permutation(exam.answer))


def _white_box_of(view: View) -> bool:
    return view.proxy is not None and view.settings is not None and bool(view.adapters)


def mean_losses(found: Sequence[Likelihoods]) -> np.ndarray:
    """Nats a token, float64 [n]."""
    return np.array([f.nll.mean() for f in found])


def slopes(series: np.ndarray) -> np.ndarray:
    """Least-squares slope over rounds of each column of losses, [rounds, n]; [n]."""
    time = np.arange(len(series)) - (len(series) - 1) / 2
    return np.asarray(time @ series / max(float(time @ time), 1e-12))


def rmia(
    first: np.ndarray, last: np.ndarray, first_others: np.ndarray, last_others: np.ndarray
) -> np.ndarray:
    """RMIA's offline score from losses [n] and the population's [m]: how many of it a record beats, [n].

    A record's chance without training is its reference's, drawn towards 1, so that a fall in
    loss counts for little in a record that stays unlikely.
    """

    def ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        alone = ((1 + RMIA_A) * np.exp(-before) + (1 - RMIA_A)) / 2
        return np.asarray(-after - np.log(alone))

    own, others = ratio(first, last), ratio(first_others, last_others)
    # a fraction of the ratio itself, so that records which beat equally many are told apart
    return np.asarray((own[:, None] >= others[None, :]).mean(axis=1) + 1e-6 * own)


def halves(shadows: int, documents: int, rng: np.random.Generator) -> np.ndarray:
    """Which shadow trains on which document, bool [shadows, documents]: each is in half of them."""
    ranks = rng.permuted(np.tile(np.arange(shadows)[:, None], (1, documents)), axis=0)
    return np.asarray(ranks < shadows // 2)


def lira(observed: np.ndarray, seen: np.ndarray, with_it: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of observed losses [n] under shadows' [s, n], by `with_it`, bool [s, n].

    Logarithms of losses are taken as normal around a mean a document and side, with one spread for all, as
    few shadows allow.
    """
    values, at = np.log(seen + 1e-6), np.log(observed + 1e-6)
    inside = (values * with_it).sum(axis=0) / with_it.sum(axis=0)
    outside = (values * ~with_it).sum(axis=0) / (~with_it).sum(axis=0)
    spread = float(np.std(values - np.where(with_it, inside, outside))) + 1e-6
    return np.asarray((np.square(at - outside) - np.square(at - inside)) / (2 * spread**2))


def bag_of_words(documents: Sequence[Encoded]) -> np.ndarray:
    """Token counts of documents, float32 [n, tokens that occur twice or more]."""
    tokens = sorted({t for d in documents for t in d.ids})
    index = {t: i for i, t in enumerate(tokens)}
    counts = np.zeros((len(documents), len(tokens)), dtype=np.float32)
    for row, d in enumerate(documents):
        for t in d.ids:
            counts[row, index[t]] += 1
    return counts[:, (counts > 0).sum(axis=0) >= 2]


def blind_auc(counts: np.ndarray, labels: np.ndarray) -> Estimate:
    """AUC of a classifier that sees texts alone, fitted on half of the documents, on the other half.

    Cross-validation would use all of them, but its folds' errors depend on each other: at 240 documents the
    interval was above chance in 18 % of splits that told nothing.
    """
    from sklearn.linear_model import LogisticRegression

    test = np.zeros(len(labels), dtype=bool)
    for kind in (True, False):
        test[np.flatnonzero(labels == kind)[::2]] = True
    model = LogisticRegression(C=0.05, max_iter=500).fit(counts[~test], labels[~test])
    odds = model.decision_function(counts[test])
    return auc_estimate(np.asarray(odds), labels[test], metric="auc, blind baseline", seed=0)
