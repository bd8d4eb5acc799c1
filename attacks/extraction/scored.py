"""Score every model that A12's adversary submits: R, and all other numbers of its findings.

`attacks.extraction.proxy` says which model each name means, and which scores the report has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from attacks.base import Inconclusive
from attacks.extraction.behaviour import AGREEMENT, KL, Behaviour, ExtractionQuestion, Scale, scales, scores
from attacks.extraction.lessons import TOP
from attacks.extraction.questions import answers_of
from attacks.extraction.starts.fillers import Gaps, gaps_found
from fedproxy_secure.config import Answers
from fedproxy_secure.evidence.estimate import Estimate, counted

PROXY, LLM, HEALED, CLOSED, NOTHING = "proxy", "LLM", "healed", "closed form", "no proxy"
KL_LEFT = "KL that is left"
TOLD: Mapping[Answers, str] = {"top_k": f"top {TOP} tokens told", "text": "likeliest token told"}


@dataclass(frozen=True, kw_only=True)
class Stolen:
    """The models that an adversary submits, and the queries and steps they took.

    Args:
        models: the behaviour of each model by its name.
        how: how some of them were made, in words, by the same names.
        grid: numbers of queries.
        gaps: where blocks are missing; None: not guessed.
        asked: queries made.
        steps: steps of a training, without trials.
    """

    models: Mapping[str, Behaviour]
    grid: tuple[int, ...]
    gaps: Gaps | None
    asked: int
    steps: int
    how: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Original:
    """The exam's answer: the LLM, and the part of it that the proxy holds.

    Args:
        llm: the LLM's folder; it answers once the number of the adversary's questions is known.
        asked: the questions.
        gaps: the true gaps; None where the proxy's blocks are not the LLM's.
        share: share of the LLM's weights that the proxy holds.
    """

    llm: Path
    asked: ExtractionQuestion
    gaps: Gaps | None
    share: float


def queries(count: int) -> str:
    """Return the name of the model that was made with `count` queries."""
    return f"{count} queries"


def estimates_of(guess: Stolen, answer: Original, *, headline: str) -> tuple[Estimate, ...]:
    """Return R of the strongest model under the name `headline`, then all other scores.

    Raises `Inconclusive` if the proxy already answers as the LLM does.
    """
    question = answer.asked.first(len(guess.models[PROXY].logs), len(guess.models[PROXY].said))
    llm = answers_of(answer.llm, question)
    by_model = {name: scores(b, llm, question) for name, b in guess.models.items()}
    by_model[LLM] = scores(llm, llm, question)
    scale = scales(by_model, PROXY, LLM)
    if not scale[KL].usable:
        raise Inconclusive("the proxy already answers as the LLM does: nothing is left to extract")
    r = {name: by_score[KL] for name, by_score in by_model.items()}
    asking = [name for name in (*map(queries, guess.grid), CLOSED) if name in r]
    best = strongest(r, [name for name in (*asking, HEALED) if name in r])
    by_gaps = () if guess.gaps is None or answer.gaps is None else gaps_found(guess.gaps, answer.gaps)
    return (
        scale[KL].estimate(r[best], headline),
        *_extraction(scale[KL], r, guess, best),
        *_gains(scale[KL], r, asking),
        *_weaker_apis(scale, by_model),
        *_half(scale[KL], r, guess),
        scale[KL].difference(r[LLM], r[PROXY], "KL of the proxy", unit="nats"),
        # whoever holds the proxy may keep it
        _not_below_0(scale[KL].difference(r[LLM], r[strongest(r, [best, PROXY])], KL_LEFT, unit="nats")),
        *_other_scores(scale, by_model[best]),
        counted(guess.steps, metric="steps of each training", unit="steps", seeds=(0,)),
        # a training without queries, then one for each number of queries
        counted((1 + len(guess.grid)) * guess.steps, metric="steps in turn", unit="steps", seeds=(0,)),
        counted(guess.asked, metric="texts asked about", unit="queries", seeds=(0,)),
        counted(answer.share, metric="weights held verbatim", unit="share", seeds=(0,)),
        *by_gaps,
    )


def _not_below_0(left: Estimate) -> Estimate:
    """Return a KL divergence with its interval cut at 0, the least that there is."""
    return left if left.low is None else replace(left, low=min(left.value, max(0.0, left.low)))


def strongest(r: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Return the model that is nearest to the LLM by its mean score; the first of equal ones."""
    return max(names, key=lambda name: float(r[name].mean()))


def _extraction(scale: Scale, r: Mapping[str, np.ndarray], guess: Stolen, best: str) -> Iterator[Estimate]:
    """Yield R for each number of queries, and R of the submitted models by how they were made."""
    for count in guess.grid:
        if queries(count) in r:
            yield scale.estimate(r[queries(count)], f"extraction R, {count} queries")
    for name, title in ((best, "extraction"), (HEALED, "healing"), (CLOSED, "closed form")):
        if name in guess.how:
            yield scale.estimate(r[name], f"{title} R by {guess.how[name]}")


def _gains(scale: Scale, r: Mapping[str, np.ndarray], asking: Sequence[str]) -> Iterator[Estimate]:
    """Yield R without queries and without the proxy, and what each of the two adds.

    Args:
        asking: the models that were made with queries.
    """
    if CLOSED in r:
        yield scale.estimate(r[CLOSED], "closed form R")
    if HEALED in r:
        yield scale.estimate(r[HEALED], "healing R")
        if asking:
            without = strongest(r, [HEALED, PROXY])
            yield scale.estimate(r[strongest(r, asking)], "API gain", against=r[without])
    if NOTHING in r:
        yield scale.estimate(r[NOTHING], "R without the proxy")
        yield scale.difference(r[strongest(r, asking)], r[NOTHING], "proxy gain", unit="nats")


def _weaker_apis(
    scale: Mapping[str, Scale], by_model: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[Estimate]:
    """Yield R by APIs that tell less than the run's."""
    for name in TOLD.values():
        if name in by_model:
            yield scale[KL].estimate(by_model[name][KL], f"extraction R, {name}")
    text = TOLD["text"]
    if text in by_model and scale[AGREEMENT].usable:
        yield scale[AGREEMENT].estimate(by_model[text][AGREEMENT], f"R of agreement, {text}")


def _other_scores(scale: Mapping[str, Scale], best: Mapping[str, np.ndarray]) -> Iterator[Estimate]:
    """Yield, for each score but KL, the LLM's lead over the proxy and the strongest model's R."""
    for name, score_scale in scale.items():
        if name != KL:
            yield replace(score_scale.gap, metric=f"LLM minus proxy, {name}")
            if score_scale.usable:
                yield score_scale.estimate(best[name], f"R of {name}")


def _half(scale: Scale, r: Mapping[str, np.ndarray], guess: Stolen) -> list[Estimate]:
    """Return the fewest queries of the grid whose R lies above one half; nothing if none does."""
    tried = {k: scale.estimate(r[queries(k)], "R") for k in guess.grid if queries(k) in r}
    enough = [k for k, estimate in tried.items() if estimate.above(0.5)]
    return [counted(min(enough), metric="queries to R > .5", unit="queries", seeds=(0,))] if enough else []
