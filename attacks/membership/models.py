"""A6: was this record trained on, by the model alone?

Whoever has taken part holds the **round-0 proxy** for free: the best reference there is, since it differs
from the tuned proxy by the records alone. The headline is how much a record's loss fell against it. With
the API alone there is no reference, and the headline is Min-K%++.

Besides: loss, loss/zlib, Min-K%, the gradient's norm, the slope over rounds, RMIA (offline, the round-0
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
from attacks.base import Attack, AttackInfo, Budget, Exam, Inconclusive, NotApplicable, Truth, attack
from attacks.membership.overfit import overfitted
from attacks.membership.scores import likelihoods, membership_scores
from attacks.membership.updates import MEMBERSHIP
from attacks.statistics import auc_estimate, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.adapters import get_vector
from fedproxy_secure.federate.training import train
from fedproxy_secure.llm import load_llm
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate

MOST = 1200  # documents of an exam, half of them members
BLIND_FOLDS = 5
RMIA_GAMMA = 1.0
SHADOW_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Documents, and records that were certainly not trained on (for reference)."""

    documents: tuple[Encoded, ...]
    population: tuple[Encoded, ...]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores by name, float64 [n] of the first n documents; `headline` names the one that counts."""

    scores: dict[str, np.ndarray]
    headline: str
    blind: np.ndarray  # bag-of-words counts [n, V], for the scorer's blind baseline


@attack(
    AttackInfo(
        id="A6",
        name="model_membership",
        title="which records a model was trained on",
        paper="arXiv 2112.03570, 2312.03262, 2404.02936",
        needs=(frozenset({"MOD"}), frozenset({"API"})),
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
        if view.proxy is not None and view.settings is not None and view.adapters:
            scores = self._white_box(view, documents, question.population, budget, rng)
            headline = "fall of loss since round 0"
        elif view.api is not None:
            model, tokenizer = load_llm(view.api, device="cpu", dtype="float32")
            found = likelihoods(model, documents, pad_id=tokenizer.pad_token_id, budget=budget)
            scores = membership_scores(found, documents, tokenizer)
            headline = "Min-K%++"
        else:
            raise NotApplicable("this view holds no model")
        return Scored(scores=scores, headline=headline, blind=bag_of_words(documents))

    def _white_box(
        self,
        view: View,
        documents: Sequence[Encoded],
        population: Sequence[Encoded],
        budget: Budget,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        box = white_box.load(view)
        pad = box.tokenizer.pad_token_id
        numbers = sorted(view.adapters)
        if budget.profile == "smoke":
            numbers = [numbers[0], numbers[-1]]

        def losses(adapter: np.ndarray, items: Sequence[Encoded]) -> np.ndarray:
            box.set(adapter)
            return np.array(
                [f.nll.mean() for f in likelihoods(box.tuned, items, pad_id=pad, budget=budget)]
            )

        series = [losses(view.adapters[n], documents) for n in numbers]
        box.set(view.adapters[numbers[-1]])
        found = likelihoods(box.tuned, documents, pad_id=pad, budget=budget)
        scores = membership_scores(found, documents, box.tokenizer)
        scores["fall of loss since round 0"] = series[0] - series[-1]
        if len(series) > 2:
            time = np.arange(len(series)) - (len(series) - 1) / 2
            scores["slope over rounds"] = -(time[:, None] * np.stack(series)).sum(axis=0)
        if len(population) >= 8:
            ratio = series[0] - series[-1]
            among = losses(view.adapters[numbers[0]], population) - losses(
                view.adapters[numbers[-1]], population
            )
            beaten = ratio[:, None] - among[None, :] >= np.log(RMIA_GAMMA)
            scores["RMIA, offline"] = beaten.mean(axis=1) + 1e-6 * ratio
        if budget.profile != "smoke":
            box.set(view.adapters[numbers[-1]])
            norms = []
            for item in documents[:400]:
                budget.check()
                norms.append(-float(np.linalg.norm(box.gradient([item]))))
            scores["gradient norm"] = np.array(norms)
        if budget.profile == "full":
            scores["LiRA, 8 shadows"] = self._lira(box, view, documents, series[-1], 8, budget, rng)
        return scores

    def _lira(
        self,
        box: WhiteBox,
        view: View,
        documents: Sequence[Encoded],
        observed: np.ndarray,
        shadows: int,
        budget: Budget,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Log-likelihood ratio of the observed loss under shadows trained with and without the record."""
        assert view.settings is not None
        start = view.adapters[min(view.adapters)]
        with_it = np.zeros((shadows, len(documents)), dtype=bool)
        seen = np.zeros((shadows, len(documents)))
        for s in range(shadows):
            with_it[s] = rng.random(len(documents)) < 0.5
            box.set(start)
            local = view.settings.local
            train(
                box.tuned,
                [d for d, inside in zip(documents, with_it[s], strict=True) if inside],
                steps=SHADOW_STEPS,
                local=local,
                pad_id=box.tokenizer.pad_token_id,
                rng=np.random.default_rng(int(rng.integers(2**31))),
                who=f"shadow {s}",
                on_step=lambda _: budget.check(),
            )
            get_vector(box.tuned)
            found = likelihoods(box.tuned, documents, pad_id=box.tokenizer.pad_token_id, budget=budget)
            seen[s] = [f.nll.mean() for f in found]
        value, observed = np.log(seen + 1e-6), np.log(observed + 1e-6)
        inside = np.where(with_it, value, np.nan)
        outside = np.where(~with_it, value, np.nan)
        spread = float(np.nanstd(value - np.nanmean(value, axis=0))) + 1e-6
        a, b = np.nanmean(inside, axis=0), np.nanmean(outside, axis=0)
        ratio = np.square(observed - b) - np.square(observed - a)
        return np.asarray(np.nan_to_num(ratio / (2 * spread**2)))

    def score(self, guess: Scored, answer: np.ndarray) -> tuple[Estimate, ...]:
        """The headline's AUC and TPR at fixed FPR, all other AUCs, the blind baseline's."""
        n = len(guess.scores[guess.headline])
        labels = answer[:n]
        blind = blind_auc(guess.blind, labels)
        if blind.low is not None and blind.low > 0.5:
            raise Inconclusive(f"a blind baseline reaches AUC {blind.value:.3g}: the split itself tells")
        values = guess.scores[guess.headline]
        made = [
            auc_estimate(values, labels, metric="auc", seed=0),
            *tpr_estimates(values, labels, seed=0),
            blind,
        ]
        for name, scores in guess.scores.items():
            made.append(auc_estimate(scores, labels[: len(scores)], metric=f"auc, {name}", seed=0))
        return tuple(made)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Models that know 32 records by heart."""
        return overfitted(view, truth, canaries=False)

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Labels that have nothing to do with training."""
        return view, Exam(question=exam.question, answer=rng.permutation(exam.answer))


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
    """Cross-validated AUC of a classifier that sees texts alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    model = LogisticRegression(C=0.05, max_iter=500)
    odds = cross_val_predict(model, counts, labels, cv=BLIND_FOLDS, method="decision_function")
    return auc_estimate(np.asarray(odds), labels, metric="auc, blind baseline", seed=0)
