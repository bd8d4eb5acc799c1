"""A12: from the proxy and K queries back to the LLM.

A client holds the tuned proxy, whose blocks, embeddings and head are the fused LLM's own, and may query
the fused LLM. It fills the gaps with blocks that do nothing yet and trains them alone, on the API's answers
to K texts (distillation). **R** is the share of the proxy's KL to the LLM that is gone (see
`attacks.extraction.behaviour`); the attack succeeds if it takes more than half.

    healing     the same compute on texts alone, without a query: what the proxy gives away by itself
    API gain    R with the largest K, minus healing's or 0, whichever is more: the proxy as it is has R = 0
    proxy gain  by how many nats KL is lower than that of random weights that get the same queries and as
                many steps; their R is far below 0
    top k, text what an API gives away that tells `TOP` tokens, or only the likeliest

What it has: texts (`attacks.extraction.texts`) and, as public, the LLM's depth. Fillers are spread evenly.
Where blocks are missing is guessed by held-out KL, too, but for the record alone: on the demo LLM the guess
is no better than chance, and R does not need it. An eighth of the queries is held out; what is best there
(identity, copies, averages, healed, distilled) is handed in. The interval is over held-out texts; how
another training would have ended it does not say.

Controls: the same training from the LLM's own dropped blocks must succeed; answers that belong to other
queries must not. From those a model still learns the LLM's average answer, which is worth an R above 0
where the proxy is far from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from attacks.base import (
    KNOWN_BAD,
    NOBODY,
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
from attacks.extraction.api import EXTRACTION, Api
from attacks.extraction.behaviour import AGREEMENT, KL, Asked, Behaviour, Scale, behaviour, scales, scores
from attacks.extraction.fillers import Gaps, gaps_of, grown, spread
from attacks.extraction.lessons import TOP, Answers
from attacks.extraction.lineage import held, read_tensors
from attacks.extraction.texts import texts_for
from attacks.extraction.thief import Thief, effort, held_model, leaked
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.llm import blocks_of, load_llm, weights_written_ns
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate, counted, proportion_interval

TEXT_TOKENS = 64  # of a query, and of a held-out text
HELD_OUT, RECORDS = 64, 160  # texts and records of an exam
NUMBERS = 2**24  # log-probabilities that a model hands in, at most
PROXY, LLM, HEALED, NOTHING = "proxy", "LLM", "healed", "no proxy"
TOLD: Mapping[Answers, str] = {"top_k": f"top {TOP} tokens told", "text": "likeliest token told"}


@dataclass(frozen=True, kw_only=True)
class Stolen:
    """Behaviour of each model by its name, the gaps that were guessed (None: none), queries asked."""

    models: Mapping[str, Behaviour]
    grid: tuple[int, ...]
    gaps: Gaps | None
    asked: int


@dataclass(frozen=True, kw_only=True)
class Original:
    """The answer: the LLM's behaviour, the question, the true gaps (None where the proxy's blocks are not
    the LLM's), the share of weights held."""

    llm: Behaviour
    asked: Asked
    gaps: Gaps | None
    share: float


def queries(count: int) -> str:
    """The name of the model made with so many queries."""
    return f"{count} queries"


def posed(folder: Path, records: tuple[Encoded, ...], *, seed: int) -> tuple[Asked, Behaviour]:
    """Held-out texts of a seed with these records, and what the LLM in a folder answers."""
    return _posed(folder, weights_written_ns(folder), records, seed)


@lru_cache(maxsize=2)
def _posed(folder: Path, _written: int, records: tuple[Encoded, ...], seed: int) -> tuple[Asked, Behaviour]:
    rng = np.random.default_rng(seed)
    llm, tokenizer = load_llm(folder, dtype="float32")
    texts = texts_for(llm, tokenizer, count=HELD_OUT, tokens=TEXT_TOKENS, rng=rng)
    vocabulary = int(llm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    count = min(TEXT_TOKENS - 1, max(1, NUMBERS // (HELD_OUT * vocabulary)))
    drawn = [np.sort(rng.choice(TEXT_TOKENS - 1, count, replace=False)) for _ in range(HELD_OUT)]
    asked = Asked(depth=len(blocks_of(llm)), texts=texts.numpy(), places=np.stack(drawn), records=records)
    return asked, behaviour(llm, asked, pad_id=tokenizer.pad_token_id)


@attack(
    AttackInfo(
        id="A12",
        name="proxy_extraction",
        title="the fused LLM, from the proxy and queries",
        paper="Offsite-Tuning, arXiv 2302.04870; distillation, arXiv 1503.02531",
        needs=(frozenset({"MOD", "API"}),),
        headline="extraction R",
        chance=0.0,
        margin=0.5,
        mapping=EXTRACTION,
        long=2,
    )
)
class ProxyExtraction(Attack):
    """Fills the proxy's gaps, with queries, without, and with queries alone."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Held-out texts (stories, or samples of the LLM) and honest clients' records."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        if view.llm is not None and view.threat_model != KNOWN_BAD:
            raise NotApplicable("the server is among the adversary: it owns the LLM")
        records = [item for s in truth.clients.values() for item in (s.holdout or s.train)]
        chosen = rng.permutation(len(records))[:RECORDS]
        asked, llm = posed(view.api, tuple(records[i] for i in chosen), seed=int(rng.integers(2**31)))
        proxy, _ = held_model(view)
        mine = held(proxy.state_dict(), read_tensors(view.api))
        whole = len(mine.kept) == len(blocks_of(proxy))
        gaps = gaps_of(mine.kept, mine.depth) if whole else None
        return Exam(question=asked, answer=Original(llm=llm, asked=asked, gaps=gaps, share=mine.share))

    def guess(self, view: View, question: Asked, budget: Budget, rng: np.random.Generator) -> Stolen:
        """One model for each K of the profile's grid, and the controls' models."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        spent = effort(budget)
        if not spent.grid:
            raise NotApplicable(f"queries={budget.queries}: must be >= 16")
        proxy, tokenizer = held_model(view)
        missing = question.depth - len(blocks_of(proxy))
        if missing <= 0:
            raise NotApplicable("the proxy lacks no block of the LLM")
        last, even = spent.grid[-1], spread(len(blocks_of(proxy)), missing)
        shuffled = view.threat_model == NOBODY
        api = Api(view.api, limit=last, mode="shuffled" if shuffled else "true")
        texts = texts_for(proxy, tokenizer, count=last, tokens=TEXT_TOKENS, rng=rng)
        thief = Thief(proxy, api, texts, spent, budget, int(rng.integers(2**31)))
        answer = partial(
            behaviour,
            asked=question.first(
                budget.pick(smoke=32, standard=HELD_OUT, full=HELD_OUT),
                budget.pick(smoke=48, standard=RECORDS, full=RECORDS),
            ),
            pad_id=tokenizer.pad_token_id,
            budget=budget,
        )
        models = {PROXY: answer(proxy)}
        gaps: Gaps | None = None
        if shuffled:
            models[queries(last)] = answer(thief.distilled(last, thief.empty(missing)))
        elif view.threat_model == KNOWN_BAD and view.llm is not None:
            models[queries(last)] = answer(thief.distilled(last, leaked(proxy, Path(view.llm))))
        else:
            healed = thief.healed(thief.empty(missing))
            models[HEALED] = answer(healed)
            others = (healed, *(grown(proxy, even, kind)[0] for kind in ("copy", "average")))
            for count in spent.grid:
                models[queries(count)] = answer(thief.distilled(count, thief.empty(missing), others=others))
            if spent.all_controls:
                for told, name in TOLD.items():
                    models[name] = answer(thief.distilled(last, thief.empty(missing), answers=told))
                models[NOTHING] = answer(thief.without_proxy(last, question.depth))
                gaps = thief.where(missing)
        return Stolen(models=models, grid=spent.grid, gaps=gaps, asked=api.asked)

    def score(self, guess: Stolen, answer: Original) -> tuple[Estimate, ...]:
        """R of KL with the most queries, then the controls', the gains, and R of the other scores."""
        asked = answer.asked.first(len(guess.models[PROXY].logs), len(guess.models[PROXY].said))
        llm = Behaviour(
            logs=answer.llm.logs[: len(asked.texts)], said=answer.llm.said[: len(asked.records)]
        )
        found = {name: scores(b, llm, asked) for name, b in guess.models.items()}
        found[LLM] = scores(llm, llm, asked)
        scale = scales(found, PROXY, LLM)
        if not scale[KL].usable:
            raise Inconclusive("the proxy already answers as the LLM does: nothing is left to extract")
        r = {name: s[KL] for name, s in found.items()}
        best = queries(guess.grid[-1])
        of = scale[KL].estimate
        made = [of(r[best], self.info.headline)]
        made += [of(r[queries(k)], f"extraction R, {k} queries") for k in guess.grid if queries(k) in r]
        if HEALED in r:
            made.append(of(r[HEALED], "healing R"))
            without = r[HEALED] if scale[KL].ratio(r[HEALED]) > 0 else r[PROXY]
            made.append(of(r[best], "API gain", against=without))
        if NOTHING in r:
            made.append(of(r[NOTHING], "R without the proxy"))
            made.append(scale[KL].difference(r[best], r[NOTHING], "proxy gain", unit="nats"))
        if TOLD["text"] in r:
            made += [of(r[name], f"extraction R, {name}") for name in TOLD.values()]
            if scale[AGREEMENT].usable:
                told = found[TOLD["text"]][AGREEMENT]
                made.append(scale[AGREEMENT].estimate(told, f"R of agreement, {TOLD['text']}"))
        made += _half(scale[KL], r, guess)
        made.append(scale[KL].difference(r[LLM], r[PROXY], "KL of the proxy", unit="nats"))
        made.append(scale[KL].difference(r[LLM], r[best], "KL of the attack", unit="nats"))
        for name, other in scale.items():
            if name != KL:
                made.append(Estimate(**{**vars(other.gap), "metric": f"LLM minus proxy, {name}"}))
                if other.usable:
                    made.append(other.estimate(found[best][name], f"R of {name}"))
        made.append(counted(answer.share, metric="weights held verbatim", unit="share", seeds=(0,)))
        if guess.gaps is not None and answer.gaps is not None:
            made += _gaps_found(guess.gaps, answer.gaps)
        return tuple(made)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The dropped blocks were not kept back: training starts from them."""
        return replace_view(view, threat_model=KNOWN_BAD, llm=view.api), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Every query is answered with the answer to another one."""
        return replace_view(view, threat_model=NOBODY), exam


def _half(scale: Scale, r: Mapping[str, np.ndarray], guess: Stolen) -> list[Estimate]:
    """The fewest queries of the grid with R of one half; nothing if none has."""
    enough = [k for k in guess.grid if queries(k) in r and scale.ratio(r[queries(k)]) >= 0.5]
    return [counted(min(enough), metric="queries to R = .5", unit="queries", seeds=(0,))] if enough else []


def _gaps_found(guessed: Gaps, true: Gaps) -> list[Estimate]:
    """How many missing blocks were put into the right gap, and how many even spreading would have."""
    missing = sum(true)

    def hits(gaps: Gaps) -> int:
        return sum(min(a, b) for a, b in zip(gaps, true, strict=True))

    even = hits(spread(len(true) - 1, missing))
    return [
        proportion_interval(hits(guessed), missing, metric="missing blocks put right", seeds=(0,)),
        counted(
            even / missing, metric="missing blocks put right by even spreading", unit="share", seeds=(0,)
        ),
    ]
