"""A6: was this record trained on, judged only by the model?

Every participant holds the **round-0 proxy**. It is the best possible reference, because the tuned proxy
differs from it only by what was learned from the records. The headline is the share of a text's windows in
which the loss fell since round 0 (`window_votes`). If most texts have fewer than `VOTERS` learned tokens,
as with the answers of a classification, it is the fall of the mean loss instead. With only the API there is
no reference, and the headline is Min-K%++.

Other scores are reported beside it: the fall of the mean loss, the gain in probability of the hardest
tokens, loss, loss/zlib, Min-K%, the slope over rounds, the gradient's norm, RMIA (offline: the round-0
proxy as reference, set-aside records as population), and LiRA with few shadow adapters, which are called
short if they passed over their records less often than the run (`shadows`). Gradients, shadows and
population are of fewer records if time is short, and shadows are left out if there is too little. Only the
headline was fixed beforehand, and it alone decides the outcome. The measures take the worst of all scores
that are of as many documents as the headline, with an interval that counts how many there are.

A **blind** baseline sees the text and no model. It must be at chance; otherwise the split itself tells
members from others, and the attack is inconclusive.

Carlini et al. 2022 (LiRA, arXiv 2112.03570), Zarifzadeh et al. 2024 (RMIA, 2312.03262), Chen et al. 2026
(windows, 2601.02751), Jawad et al. 2026 (hard tokens, 2601.20885).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attacks import white_box
from attacks.base import (
    KNOWN_BAD,
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Feeds,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.membership.blind import bag_of_words, refuse_told
from attacks.membership.gradients import record_gradients
from attacks.membership.overfit import What, overfitted
from attacks.membership.references import hard_tokens, rmia, slopes, window_votes
from attacks.membership.scores import Likelihoods, likelihoods, membership_scores
from attacks.membership.shadows import Shadows, shadowed
from attacks.membership.updates import MEMBERSHIP
from attacks.reconstruction.vectors import with_round_0
from attacks.registry import attack
from attacks.statistics import auc_estimate, mean_difference, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.record.view import View

VOTES, FALL = "windows whose loss fell since round 0", "fall of loss since round 0"
# if this gap is 0, mean losses show no memorisation, and no membership attack can be expected to find much
GAP = "loss of set-aside records above that of members"
MOST = 2000  # documents of an exam, half of them members
FEWEST = 64  # documents that are read at once, under each adapter in turn; the first are always read
VOTERS = 8  # median of learned tokens of a text; with these or more, its windows vote
SHARE = 0.4  # of its seconds that the attack spends on reading; the controls as much, if time remains
OTHERS_SHARE = 0.05  # of its seconds for reading the population, and again for gradients
GRADIENTS = 400  # documents whose gradients are computed


@dataclass(frozen=True, kw_only=True)
class ModelQuestion:
    """The documents in question, and records that were certainly not trained on, for reference.

    `records`: training records of a client, the mean over clients.
    """

    documents: tuple[Encoded, ...]
    population: tuple[Encoded, ...]
    records: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores by name, float64 [n], of all documents or of the first ones.

    Args:
        scores: the scores.
        headline: name of the score that decides.
        blind: bag-of-words counts of all documents, [n, V], for the scorer's blind baseline.
        shadows: what LiRA's shadows told; None if none were trained, or not in time.
    """

    scores: dict[str, np.ndarray]
    headline: str
    blind: np.ndarray
    shadows: Shadows | None = None


@attack(
    AttackInfo(
        id="A6",
        name="model_membership",
        title="which records a model was trained on",
        paper="arXiv 2601.02751, 2112.03570, 2312.03262, 2404.02936",
        needs=(frozenset({"MOD"}), frozenset({"API"})),
        measures=(
            Feeds(measure="membership_auc", metric="auc*"),
            Feeds(measure="tpr_at_1pct_fpr", metric="TPR at 1.0% FPR*"),
        ),
        long=1,
        mapping=MEMBERSHIP,
        shares="overfitted on records",
    )
)
class ModelMembership(Attack):
    """The attack that compares records drawn in some round with records set aside."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return equally many members and nonmembers of each client, mixed, and a population of others.

        The numbers are equal for each client, because otherwise a client's style would be informative.
        """
        members: list[Encoded] = []
        nonmembers: list[Encoded] = []
        population: list[Encoded] = []
        for name, state in truth.clients.items():
            drawn, aside = state.own_drawn(), truth.nonmembers(name)
            count = min(len(drawn), len(aside) - len(aside) // 4, MOST // 2 // len(truth.clients))
            members += [state.train[i] for i in rng.permutation(drawn)[:count]]
            order = rng.permutation(len(aside))
            nonmembers += [aside[i] for i in order[:count]]
            population += [aside[i] for i in order[count : count + 200 // len(truth.clients)]]
        if len(members) < 4:
            raise NotApplicable(truth.no_nonmembers())
        chosen, count = [*members, *nonmembers], len(members)
        mixed = rng.permutation(2 * count)
        question = ModelQuestion(
            documents=tuple(chosen[i] for i in mixed),
            population=tuple(population),
            records=float(np.mean([len(state.train) for state in truth.clients.values()])),
        )
        return Exam(question=question, answer=mixed < count)

    def guess(
        self, view: View, question: ModelQuestion, budget: Budget, rng: np.random.Generator
    ) -> Scored:
        """Return all scores that the view allows, of as many documents as are read in time."""
        most = budget.pick(smoke=240, standard=MOST, full=MOST)
        documents = question.documents[:most]
        shadows = None
        if view.has_white_box:
            with white_box.opened(view) as box:
                scores, shadows = self._scores(box, view, documents, question, budget, rng)
            headline = VOTES if learned_tokens(documents) >= VOTERS else FALL
        elif view.open_api is not None:
            model, tokenizer = load_llm(view.open_api, device="cpu", dtype="float32")
            results: list[Likelihoods] = []
            until = budget.until(SHARE)
            while len(results) < len(documents) and (not results or budget.used < until):
                at = len(results)
                results += likelihoods(model, documents[at : at + FEWEST], budget=budget)
            scores = membership_scores(results, documents[: len(results)], tokenizer)
            headline = "Min-K%++"
        else:
            raise NotApplicable("this view holds no model, and no API that tells all logits as they are")
        blind = bag_of_words(question.documents)
        return Scored(scores=scores, headline=headline, blind=blind, shadows=shadows)

    def _scores(
        self,
        box: WhiteBox,
        view: View,
        documents: Sequence[Encoded],
        question: ModelQuestion,
        budget: Budget,
        rng: np.random.Generator,
    ) -> tuple[dict[str, np.ndarray], Shadows | None]:
        population = question.population
        view = with_round_0(view)
        numbers = sorted(view.adapters)
        # of a control it is enough
        headline = budget.profile == "smoke" or view.threat_model in (KNOWN_BAD, NOBODY)
        if headline:
            numbers = [numbers[0], numbers[-1]]

        def under(
            numbers: Sequence[int], items: Sequence[Encoded], share: float
        ) -> dict[int, list[Likelihoods]]:
            by_round: dict[int, list[Likelihoods]] = {n: [] for n in numbers}
            done, until = 0, budget.until(share)
            while done < len(items) and (not done or budget.used < until):
                for n, results in by_round.items():
                    box.set(view.adapters[n])
                    results += likelihoods(box.tuned, items[done : done + FEWEST], budget=budget)
                done += FEWEST
            return by_round

        by_round = under(numbers, documents, SHARE)
        documents = documents[: len(by_round[numbers[0]])]
        losses = {n: mean_losses(f) for n, f in by_round.items()}
        first, last = losses[numbers[0]], losses[numbers[-1]]
        scores = membership_scores(by_round[numbers[-1]], documents, box.tokenizer)
        scores[FALL] = first - last
        tokens = [[f.nll for f in by_round[numbers[i]]] for i in (0, -1)]
        scores[VOTES] = window_votes(*tokens)
        scores["gain of hard tokens"] = hard_tokens(*tokens)
        if headline:
            return scores, None
        scores["slope over rounds"] = -slopes(np.stack(list(losses.values())))
        if len(population) >= 8:
            others = under([numbers[0], numbers[-1]], population, OTHERS_SHARE)
            before, after = (mean_losses(others[numbers[i]]) for i in (0, -1))
            scores["RMIA, offline"] = rmia(first, last, before, after)
        norms: list[float] = []  # in parts: all gradients at once would need much memory
        box.set(view.adapters[numbers[-1]])
        most, until = min(len(documents), GRADIENTS), budget.until(OTHERS_SHARE)
        while len(norms) < most and (len(norms) < FEWEST or budget.used < until):
            part = documents[len(norms) : min(len(norms) + 16, most)]
            norms += (-np.linalg.norm(record_gradients(box, part, budget=budget), axis=1)).tolist()
        scores["gradient norm"] = np.array(norms)
        if budget.profile != "full":
            return scores, None
        assert view.settings is not None
        start, records = view.adapters[0], question.records
        shadows = shadowed(
            box, view.settings, start, documents, last, records=records, budget=budget, rng=rng
        )
        return scores if shadows is None else {**scores, shadows.name: shadows.scores}, shadows

    def score(self, guess: Scored, answer: np.ndarray) -> tuple[Estimate, ...]:
        """Return the headline's AUC and TPR at fixed FPR, the blind baseline, the gap, other scores."""
        values = guess.scores[guess.headline]
        labels = answer[: len(values)]
        blind = refuse_told(guess.blind, answer)
        auc = auc_estimate(values, labels, metric="auc")
        estimates: list[Estimate] = [
            replace(auc, how=f"{auc.how}; of {guess.headline}"),
            *tpr_estimates(values, labels),
            blind,
            mean_difference(guess.scores["loss"], labels, metric=GAP, unit="nats"),
        ]
        for name, scores in guess.scores.items():
            if name != guess.headline:
                judged, whole = labels[: len(scores)], len(scores) == len(values)
                metric = f"auc, {name}" if whole else f"{name} of {len(scores)} documents, AUC"
                estimates.append(auc_estimate(scores, judged, metric=metric))
                if whole:  # of fewer documents, the measures would be undecided however many there are
                    estimates += tpr_estimates(scores, judged, rates=(0.01,), of=name)
        if guess.shadows is not None:
            told = ((guess.shadows.run, "the run"), (guess.shadows.shadow, "a shadow"))
            estimates += [
                counted(n, metric=f"passes over a record in {where}", unit="passes", seeds=(0,))
                for n, where in told
            ]
        return tuple(estimates)

    def effort(self, guess: Any) -> Mapping[str, int]:
        """Return how many documents were read, how long LiRA's shadows trained, and on how many."""
        if not isinstance(guess, Scored):  # of an attack that has only the question and controls from here
            return {}
        effort, shadows = {"documents": len(guess.scores[guess.headline])}, guess.shadows
        if shadows is not None:
            effort |= {"steps of a shadow": shadows.steps, "documents of shadows": len(shadows.scores)}
        return effort

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return models that were trained until they know a dozen records by heart."""
        start = replace_view(view, api=None) if view.has_white_box else view
        control = overfitted(start, truth, what=control_records(truth))
        return control and (replace_view(control[0], threat_model=KNOWN_BAD), control[1])

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the view with the adapter's steps since round 0 shuffled: a proxy that learned nothing.

        Without the model, from an API only, there is no such control.
        """
        if not view.has_white_box:
            return view, exam
        taught = replace_view(with_round_0(view), threat_model=NOBODY)
        return super().negative(taught, exam, rng)


def control_records(truth: Truth) -> What:
    """Return the part of records that a positive control learns: the part that the headline judges."""
    records = [item for state in truth.clients.values() for item in state.train]
    return "texts" if records and learned_tokens(records) >= VOTERS else "answers"


def learned_tokens(documents: Sequence[Encoded]) -> float:
    """Return the median number of tokens whose loss training reads."""
    return float(np.median([len(d.ids) - d.response_start for d in documents]))


def mean_losses(results: Sequence[Likelihoods]) -> np.ndarray:
    """Return the mean loss of each document in nats per token, float64 [n]."""
    return np.array([f.nll.mean() for f in results])
