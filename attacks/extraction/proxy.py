"""A12: from the proxy and K queries back to the LLM.

A client holds the tuned proxy, which is made of the fused LLM, and it may query the fused LLM. From the
proxy it makes starts (`attacks.extraction.starts`), and trains the best of them on the API's answers to K
texts (distillation): only the fillers of the proxy's gaps, or all weights. **R** is the share of the
proxy's KL to the LLM that is removed (see `attacks.extraction.behaviour`). The attack succeeds if it
removes more than half of that KL.

Extraction R is that of the **strongest** attack: the model nearest to the LLM among those of every K, the
closed form and healing, which is the worst case for the owner. The **KL that is left** is the KL of that
model, or of the proxy if no model is nearer. Unlike R, it can be compared between proxies.

    healing     the same without a query: the best start, trained as long on texts only, by next-token
                loss on them
    closed form the best start and a linear map after the last block, from queries and no training step
    API gain    R of the strongest attack with queries, minus the larger of healing's R and 0 (the proxy's)
    proxy gain  by how many nats KL is lower than that of the same attack from random weights; their R is
                far below 0
    top k, text the same attack on weaker APIs: one returns the 20 likeliest tokens, one only the likeliest

What is compared was trained equally long: the start is healed, then trained for each number of queries in
turn, from the model before. Healing gets as many further trainings on texts in place of queries, and random
weights and weaker APIs the same trainings as the attack. `steps in turn` counts the steps of them all.

A training reads `steps of each training` batches, which may be fewer than the texts. `texts asked about`
counts every text that was queried, by trainings, trials, checks and the closed form.

The adversary has texts (`attacks.extraction.texts`) and knows the LLM's depth and sizes, which are assumed
to be public. It also knows how proxies are made: it fills gaps where blocks are missing, widens blocks that
are narrower than the LLM's, and simply trains blocks that are of low rank, rounded or rotated. Fillers are
spread evenly, or placed next to the first block if they learn more from public text there (the first
blocks were withheld). The places of missing blocks are also guessed, by KL on held-out texts, but only for
the record: on the demo LLM the guess is no better than chance, and R does not depend on it.
An eighth of the queries is held out. The start, recipe and learning rate with the lowest loss on it are
used, and the model with the lowest loss is submitted, trained or not. Models made with fewer queries are
starts for more queries. With an API that answers fewer than 16 texts, only healing runs. The number
`extraction R by ...` names the strongest attack. Its interval is over held-out texts; it covers neither the
variation between trainings nor the choice of the strongest attack on the same texts.

Controls: a training with the same API must succeed if the LLM's own blocks are among the starts, and must
fail if the answers belong to other queries. It is one training, on the most queries. Even from shuffled
answers a model learns the LLM's average answer, which gives an R above 0 if the proxy is far from that
average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

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
from attacks.extraction.api import EXTRACTION, Api
from attacks.extraction.behaviour import Behaviour, ExtractionQuestion, behaviour
from attacks.extraction.questions import held_model, prepared, questions
from attacks.extraction.scored import (
    CLOSED,
    HEALED,
    KL_LEFT,
    NOTHING,
    PROXY,
    TOLD,
    Original,
    Stolen,
    estimates_of,
    queries,
)
from attacks.extraction.starts.fillers import Gaps, gaps_of
from attacks.extraction.starts.offered import Offer, Recipe, Won, leaked, offers
from attacks.extraction.starts.widened import sizes_in
from attacks.extraction.thief import FROM_RANDOM, TEXT_TOKENS, Thief
from attacks.extraction.verbatim import held, read_tensors
from attacks.registry import attack
from fedproxy_secure.config import ANSWERS, Answers
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.record.view import View

RECORDS = 160  # of an exam
Answer = Callable[[nn.Module], Behaviour]  # returns a model's answers to the exam's questions


@attack(
    AttackInfo(
        id="A12",
        name="proxy_extraction",
        title="the fused LLM, from the proxy and queries",
        paper="Offsite-Tuning, arXiv 2302.04870; distillation, arXiv 1503.02531; fillers, arXiv 2605.15491",
        needs=(frozenset({"MOD", "API"}),),
        headline="extraction R",
        chance=0.0,
        margin=0.5,
        measures=(
            Feeds(measure="extraction_R", metric="extraction R"),
            Feeds(measure="kl_left_nats", metric=KL_LEFT),
            Feeds(measure="api_gain", metric="API gain"),
            Feeds(measure="proxy_gain", metric="proxy gain"),
            Feeds(measure="healing_R", metric="healing R"),
        ),
        mapping=EXTRACTION,
        long=2,
    )
)
class ProxyExtraction(Attack):
    """The attack that fills the proxy's gaps: with queries, without queries, and without the proxy."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the questions: held-out texts (stories or samples of the LLM), honest clients' records."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        if view.llm is not None and view.threat_model != KNOWN_BAD:
            raise NotApplicable("the adversary includes the server, which owns the LLM")
        records = [item for s in truth.clients.values() for item in (s.holdout or s.train)]
        chosen = rng.permutation(len(records))[:RECORDS]
        posed_records, seed = tuple(records[i] for i in chosen), int(rng.integers(2**31))
        question = replace(questions(view.api, posed_records, seed=seed), sizes=sizes_in(view.api))
        proxy, _ = held_model(view)
        held_weights = held(proxy.state_dict(), read_tensors(view.api))
        whole = len(held_weights.kept) == len(blocks_of(proxy))
        gaps = gaps_of(held_weights.kept, held_weights.depth) if whole else None
        return Exam(
            question=question,
            answer=Original(llm=view.api, asked=question, gaps=gaps, share=held_weights.share),
        )

    def guess(
        self, view: View, question: ExtractionQuestion, budget: Budget, rng: np.random.Generator
    ) -> Stolen:
        """Return the behaviour of one model for each K of the profile's grid, and of the controls."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        policy = view.api_policy
        allowed = policy.texts_of(TEXT_TOKENS)
        if allowed is not None:
            budget = replace(budget, queries=min(budget.queries, allowed))
        proxy, tokenizer = held_model(view)
        missing = max(0, question.depth - len(blocks_of(proxy)))
        ready = prepared(view, proxy, tokenizer, question, budget, seed=int(rng.integers(2**31)))
        spent, shuffled = ready.spent, view.threat_model == NOBODY
        last = max(spent.grid, default=0)
        if shuffled and not last:
            raise NotApplicable(f"queries={budget.queries}: no answer belongs to another query")
        api = Api(view.api, limit=last, policy=policy, mode="shuffled" if shuffled else "true")
        thief = Thief(proxy, api, ready.texts, spent, budget, int(rng.integers(2**31)))
        answer = partial(behaviour, asked=question.first(spent.texts, spent.records), budget=budget)
        models: dict[str, Behaviour] = {PROXY: ready.proxy}
        how: dict[str, str] = {}
        gaps: Gaps | None = None
        if view.threat_model == KNOWN_BAD and view.llm is not None:
            models |= _from_a_copy(thief, proxy, Path(view.llm), last, answer)
        else:
            starts = offers(
                proxy,
                missing,
                sizes=question.sizes,
                texts=thief.public,
                loss=thief.next_token_loss,
                seed=thief.seed,
                gaps=thief.shapes(missing),
            )
            if shuffled:
                models[queries(last)] = answer(thief.distilled(last, starts).model)
            else:
                healed = thief.healed(starts)
                for name, won in _from_starts(thief, starts, healed):
                    models[name], how[name] = answer(won.model), won.name
                if spent.all_controls and last:
                    models |= _with_less(thief, starts, healed, question.depth, policy.answers, answer)
                    gaps = thief.where(missing) if missing else None
        return Stolen(
            models=models, grid=spent.grid, gaps=gaps, asked=api.asked, steps=spent.steps, how=how
        )

    def score(self, guess: Stolen, answer: Original) -> tuple[Estimate, ...]:
        """Return R of the strongest attack, then R of each attack, the gains and other scores."""
        return estimates_of(guess, answer, headline=self.info.headline)

    def effort(self, guess: Stolen) -> Mapping[str, int]:
        """Return the steps of a training, the size of the grid, the queries and the held-out texts."""
        return {
            "steps of each training": guess.steps,
            "numbers of queries": len(guess.grid),
            "texts asked about": guess.asked,
            "held-out texts": len(guess.models[PROXY].logs),
        }

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return a view whose attacker starts from a noisy copy of the LLM and queries the same API.

        The copy is worse than the proxy, and R counts from it: an attack that learns nothing has R 0.
        """
        return replace_view(view, threat_model=KNOWN_BAD, llm=view.api), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return a view in which every query gets the answer to another query."""
        return replace_view(view, threat_model=NOBODY), exam


def _from_a_copy(
    thief: Thief, proxy: nn.Module, llm: Path, last: int, answer: Answer
) -> dict[str, Behaviour]:
    """Return a noisy copy of the LLM, from which R counts, and the copy after training."""
    copy = leaked(proxy, llm, loss=thief.next_token_loss, seed=thief.seed)
    before = answer(copy.make()[0])
    won = thief.distilled(last, [copy]) if last else thief.healed([copy])
    return {PROXY: before, queries(last) if last else HEALED: answer(won.model)}


def _from_starts(thief: Thief, starts: Sequence[Offer], healed: Won) -> Iterator[tuple[str, Won]]:
    """Yield the best model by the closed form, for each K from the one before, and healed as long as these.

    Args:
        thief: the adversary.
        starts: the models to start from.
        healed: the best of them after one training without queries.
    """
    grid = thief.spent.grid
    if grid:
        yield CLOSED, thief.closed_form(max(grid), starts)
    yield from _in_turn(thief, starts, healed)
    for _ in grid:
        healed = thief.healed([*starts, healed.offer])
    yield HEALED, healed


def _with_less(
    thief: Thief, starts: Sequence[Offer], healed: Won, depth: int, kind_told: Answers, answer: Answer
) -> dict[str, Behaviour]:
    """Return the models of the same attack on APIs that tell less, and without the proxy."""
    models: dict[str, Behaviour] = {}
    for kind, name in TOLD.items():
        if ANSWERS.index(kind) < ANSWERS.index(kind_told):
            for _, won in _in_turn(thief, starts, healed, answers=kind):
                last = won
            models[name] = answer(last.model)
    born = thief.random(depth)
    healed = thief.healed([born], recipes=FROM_RANDOM)
    for _, won in _in_turn(thief, [born], healed, recipes=FROM_RANDOM):
        last = won
    return models | {NOTHING: answer(last.model)}


def _in_turn(
    thief: Thief,
    starts: Sequence[Offer],
    healed: Won,
    *,
    answers: Answers | None = None,
    recipes: Sequence[Recipe] | None = None,
) -> Iterator[tuple[str, Won]]:
    """Yield the best model for each number of queries, each from the one before, first from `healed`."""
    best = healed
    for count in thief.spent.grid:
        best = thief.distilled(count, [*starts, best.offer], answers=answers, recipes=recipes)
        yield queries(count), best
