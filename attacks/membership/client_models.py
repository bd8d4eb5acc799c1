"""A15: was this record trained on, judged by the proxy that a client's update makes?

The broadcast adapter plus the client's update is the proxy as that client tuned it, before the other
clients' updates dilute the effect of its records. For every record the adversary compares
the losses under that proxy and under the round-0 proxy, by window votes (`references.window_votes`).

Under protection it does the same with the mean that the sum reveals. The exam has the same records, so the
two results can be paired: their difference is the effect of masking. The last round reveals most, since the
broadcast adapter already holds what earlier rounds taught.

Guarantees: none of safety. Several updates of one client, or a fitted length of the step, may reveal more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, Feeds, NotApplicable, Truth, replace_view
from attacks.membership.blind import check_blind
from attacks.membership.models import VOTERS, control_records, learned_tokens, mean_losses
from attacks.membership.overfit import overfitted
from attacks.membership.references import window_votes
from attacks.membership.scores import Likelihoods, likelihoods
from attacks.membership.updates import MEMBERSHIP, deviations
from attacks.reconstruction.vectors import with_round_0, without_own
from attacks.registry import attack
from attacks.statistics import auc_estimate, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View

MOST_DOCUMENTS = 400  # of one client, half of them members
AT_ONCE = 32  # documents read under both adapters before the time is checked
SHARE = 0.4  # of its seconds that the attack spends on reading; the controls as much, if time remains


@dataclass(frozen=True, kw_only=True)
class ClientQuestion:
    """The documents of one client, some of which it drew in `round`."""

    round: int
    client: str
    documents: tuple[Encoded, ...]


@attack(
    AttackInfo(
        id="A15",
        name="client_model_membership",
        title="which records a client trained on, from the proxy that its update makes",
        paper="arXiv 2601.02751, applied to the update of one client",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        measures=(
            Feeds(measure="membership_auc", metric="auc"),
            Feeds(measure="tpr_at_1pct_fpr", metric="TPR at 1.0% FPR*"),
        ),
        mapping=MEMBERSHIP,
        shares="overfitted on records",
    )
)
class ClientModelMembership(Attack):
    """The attack that reads every client's update as a model of its own."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return, for each client, equally many records of its last round and set-aside records, shuffled.

        It is the last round of which the view has the client's update or the mean.
        """
        questions, labels = [], []
        names = sorted(truth.clients)
        last_seen = {name: last for name in names if (last := _last_seen(truth, view, name)) is not None}
        if not last_seen:
            raise NotApplicable("this view has no update and no sum of a round that a client trained in")
        for name, last in last_seen.items():
            state, aside = truth.clients[name], truth.nonmembers(name)
            drawn = state.own_drawn(last)
            count = min(len(drawn), len(aside), MOST_DOCUMENTS // 2)
            if count < 2:
                continue
            members = [state.train[i] for i in rng.permutation(drawn)[:count]]
            nonmembers = [aside[i] for i in rng.permutation(len(aside))[:count]]
            order = rng.permutation(2 * count)
            documents = [*members, *nonmembers]
            questions.append(
                ClientQuestion(round=last, client=name, documents=tuple(documents[i] for i in order))
            )
            labels.append(order < count)
        if not questions:
            raise NotApplicable(truth.no_nonmembers())
        check_blind([d for part in questions for d in part.documents], np.concatenate(labels))
        return Exam(question=tuple(questions), answer=tuple(labels))

    def guess(
        self, view: View, question: Sequence[ClientQuestion], budget: Budget, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return a score for each of the first documents of each client, as many as are read in time."""
        most = budget.pick(smoke=100, standard=MOST_DOCUMENTS, full=MOST_DOCUMENTS)
        by_client = []
        untils = [budget.until(SHARE * (number + 1) / len(question)) for number in range(len(question))]
        with white_box.opened(view) as box:
            for part, until in zip(question, untils, strict=True):
                by_client.append(_scores(box, view, part, most, budget, until))
        return tuple(by_client)

    def score(self, guess: tuple[np.ndarray, ...], answer: tuple[np.ndarray, ...]) -> tuple[Estimate, ...]:
        """Return the AUC over all clients' documents, and TPR at fixed FPR."""
        labels = np.concatenate([a[: len(g)] for a, g in zip(answer, guess, strict=True)])
        values = np.concatenate([deviations(g) for g in guess])
        auc = auc_estimate(values, labels, metric="auc", parts=[len(g) for g in guess])
        return (auc, *tpr_estimates(values, labels))

    def effort(self, guess: tuple[np.ndarray, ...]) -> Mapping[str, int]:
        """Return how many documents were read."""
        return {"documents": sum(map(len, guess))}

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return one client's update that was trained until it knew a dozen records by heart."""
        control = overfitted(replace_view(view, api=None), truth, what=control_records(truth))
        if control is None:
            return None
        known, memory = control
        first = min(known.adapters)
        name, state = next(iter(memory.clients.items()))
        update = known.adapters[max(known.adapters)] - known.adapters[first]
        (done,) = state.rounds.values()
        alone = replace(state, rounds={first: done})
        return (
            replace_view(
                view, adapters={first: known.adapters[first]}, updates={(first, name): update}, sums={}
            ),
            Truth(clients={name: alone}),
        )

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the view with updates, sums' updates and the adapters' steps since round 0 shuffled."""
        return super().negative(with_round_0(view), exam, rng)


def _scores(
    box: WhiteBox, view: View, question: ClientQuestion, most: int, budget: Budget, until: float
) -> np.ndarray:
    """Return the scores of a question's first documents, float64 [n]."""
    update = _update(view, question)
    adapters = (with_round_0(view).adapters[0], view.adapters[question.round] + update)
    documents = question.documents[:most]
    read: tuple[list[Likelihoods], list[Likelihoods]] = ([], [])
    while len(read[0]) < len(documents) and (not read[0] or budget.used < until):
        at = len(read[0])
        for adapter, results in zip(adapters, read, strict=True):
            box.set(adapter)
            results += likelihoods(box.tuned, documents[at : at + AT_ONCE], budget=budget)
    before, after = read
    if learned_tokens(documents) >= VOTERS:
        return window_votes([f.nll for f in before], [f.nll for f in after])
    fall: np.ndarray = mean_losses(before) - mean_losses(after)
    return fall


def _last_seen(truth: Truth, view: View, name: str) -> int | None:
    """Return the last round of which the view has the client's update, or a mean that holds it."""
    for r in sorted(set(truth.clients[name].rounds) & set(view.adapters), reverse=True):
        if (r, name) in view.updates or (name in view.cohort_of(r) and view.aggregate(r) is not None):
            return r
    return None


def _update(view: View, question: ClientQuestion) -> np.ndarray:
    """Return the client's update if the view has it, else the mean without the adversary's part."""
    update = view.updates.get((question.round, question.client))
    if update is not None:
        return update
    mean = view.aggregate(question.round)
    if mean is None:
        raise NotApplicable(f"this view has neither updates nor a sum of round {question.round}")
    return without_own(view, question.round, view.cohort_of(question.round), mean)
