"""A3: whole sequences, token by token. Which prefixes have hidden states in the span of block 1?

A2 names tokens; A3 extends a prefix by each of them. The input of block 1 at the last position, computed
through block 0 with the broadcast adapter, must lie in the row space of block 1's update. Attention is
causal, so a prefix is right or wrong whatever follows it, and the search never has to take a step back.

The attack is exact for one step of SGD within capacity: all positions of all sequences together must be
fewer than `min(k, r x maps)`. Over several steps block 0's adapter moves, and hidden states move with it,
so the tolerance is wider. Beyond capacity every prefix fits, and nothing is named. Such a vector does not
count, and without any other the attack cannot tell.

It does not apply to updates of AdamW: they are no combinations of gradients, and span no inputs.

If block 0 is not adapted, or only its MLP is, the first adapted maps take the place of block 1, and the
whole vocabulary takes the place of A2's tokens. Everything below those maps is then frozen: the search
takes longer, and it stays exact over many steps.

The last token of a record is predicted but never read, so it is no part of what can be found. Each found
sequence is matched to at most one record, and each record to at most one sequence. A found sequence that is
the beginning of another one is dropped.

After DAGER (Petrov et al. 2024, arXiv 2405.15586), here for adapters and sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attacks import white_box
from attacks.base import (
    KNOWN_BAD,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Feeds,
    Inconclusive,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.reconstruction.candidates import Candidates, usual_inputs
from attacks.reconstruction.one_step import one_step_controls
from attacks.reconstruction.rouge import best_rouge
from attacks.reconstruction.row_spaces import (
    Spaces,
    row_space,
    spaces_of,
    span_residual,
    unit,
    whitening,
)
from attacks.reconstruction.spans import PRIVACY_OF_GRADIENTS, attack_one
from attacks.reconstruction.vectors import shuffled, vectors
from attacks.registry import attack
from attacks.statistics import SEEDS, matched, over_targets, share
from attacks.white_box import WhiteBox
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.record.view import View

BEAM = 64
ONE_STEP, SEVERAL_STEPS = 0.1, 0.2  # residual below which a prefix is taken as present
MOST = {"smoke": 1, "standard": 4, "full": 20}  # vectors; the first may hold nothing, as B is zero there
MOST_TOKENS = 160  # extensions tried at each position
CONTROL_UPDATES = 16  # of 16 found the interval begins at .806; of one that is not found it ends at .793
SHARE = 0.2  # of its seconds that the control spends on its updates, but for the last one
NOT_COUNTED = "vectors beyond capacity, not counted"
Prefix = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The sequences named in one vector; `evaluations` counts the prefixes run through block 0."""

    round: int
    clients: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    evaluations: int
    full: bool  # the span is full: every prefix would fit


def search(
    box: WhiteBox,
    spaces: Spaces,
    block: int,
    tokens: Sequence[int],
    *,
    tolerance: float,
    longest: int,
    budget: Budget,
) -> tuple[tuple[tuple[int, ...], ...], int, bool]:
    """Return the sequences that fit, the number of prefixes tried, and whether the span is full.

    A sequence fits if every position does; longer sequences come first. A start token, if the tokenizer has
    one, comes first in a sequence and nowhere else. Prefixes of one token repeated are dropped: a block
    that knows only relative positions cannot tell them from the token alone. Of the prefixes that fit only
    the best are kept, as many as the span has dimensions, because each true prefix contributed one
    dimension.

    Args:
        box: the proxy; its adapter decides what blocks read.
        spaces: what the vector holds of the block's inputs.
        block: the block whose inputs are compared.
        tokens: the tokens that sequences are made of.
        tolerance: residual below which a prefix is taken as present, in [0, 1].
        longest: tokens of the longest sequence.
        budget: the limits of the attack.
    """
    parts = _parts(box, spaces, block)
    if parts is None:
        return (), 0, True
    start = box.tokenizer.bos_token_id
    beams: list[Prefix] = [(start,)] if start is not None else [(t,) for t in tokens]
    tokens = [t for t in tokens if t != start]
    extensions = torch.tensor(tokens)
    worst_of: dict[Prefix, float] = dict.fromkeys(beams, 0.0)  # largest residual along a prefix that fits
    tried = 0
    for _ in range(1, longest):
        rows = box.next_inputs(torch.tensor(beams), extensions, block, budget=budget)
        by_beam = np.concatenate([_residuals(r.double().numpy(), parts) for r in rows])
        by_beam = by_beam.reshape(len(beams), len(tokens))
        tried += by_beam.size
        by_beam = np.maximum(by_beam, np.array([worst_of[b] for b in beams])[:, None])
        for i, beam in enumerate(beams):
            if len(set(beam)) == 1 and beam[0] in tokens:
                by_beam[i, tokens.index(beam[0])] = np.inf
        order = np.argsort(by_beam, axis=None)[: min(BEAM, int((by_beam < tolerance).sum()))]
        if not len(order):
            break
        longer = [(*beams[i // len(tokens)], tokens[i % len(tokens)]) for i in order]
        worst_of.update(zip(longer, by_beam.ravel()[order].tolist(), strict=True))
        beams = longer
    dimensions = max(len(part.right) for part in parts)
    return without_prefixes(sorted(worst_of, key=worst_of.__getitem__)[:dimensions]), tried, False


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One map's span: `change` maps a block's input to the map's input; `right` spans that, whitened."""

    change: np.ndarray | None
    whitening: np.ndarray
    right: np.ndarray


def _parts(box: WhiteBox, spaces: Spaces, block: int) -> list[_Part] | None:
    """Return the spans of the vector at a block, one per map, or None if one of them is full."""
    reference = usual_inputs(box, block)
    parts = []
    for matrix, change in zip(spaces.matrices, spaces.maps, strict=True):
        w = whitening(reference if change is None else reference @ change.T)
        _, right = row_space(matrix, w, noise=spaces.noise)
        if len(right) >= 0.95 * matrix.shape[1]:
            return None
        parts.append(_Part(change=change, whitening=w, right=right))
    return parts


def _residuals(states: np.ndarray, parts: Sequence[_Part]) -> np.ndarray:
    """Return the largest distance of each input of the block [n, d] from the spans: float64 [n]."""
    worst = np.zeros(len(states))
    for part in parts:
        seen = unit((states if part.change is None else states @ part.change.T) @ part.whitening)
        worst = np.maximum(worst, span_residual(seen, part.right))
    return worst


def telling_block(box: WhiteBox) -> int:
    """Return the first block in which the input of the adapted maps depends on the text before.

    Raises `NotApplicable` if there is none.
    """
    if not box.reads_tokens:
        return box.adapted[0]
    if len(box.adapted) < 2:
        raise NotApplicable("one block of the proxy is adapted, and it reads tokens alone; two are needed")
    return box.adapted[1]


def without_prefixes(sequences: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Return the sequences without repeats and without those that begin another one, longest first.

    Sequences of one or two tokens are dropped as well.
    """
    kept: list[tuple[int, ...]] = []
    for s in sorted(set(sequences), key=lambda s: (-len(s), s)):
        if len(s) > 2 and not any(k[: len(s)] == s for k in kept):
            kept.append(s)
    return tuple(kept)


@attack(
    AttackInfo(
        id="A3",
        name="lora_span_sequences",
        title="whole records of the round, from the spans of two blocks",
        paper="arXiv 2405.15586, for adapters and sums",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        headline="exact recall",
        chance=0.0,
        margin=0.01,
        measures=(Feeds(measure="exact_sequence_recall", metric="exact recall"),),
        mapping=PRIVACY_OF_GRADIENTS,
    )
)
class LoraSpanSequences(Attack):
    """The beam search over prefixes."""

    def guess(
        self, view: View, question: object, budget: Budget, rng: np.random.Generator
    ) -> tuple[Found, ...]:
        """Return one `Found` for each vector attacked; of a control, for as many as it has time for."""
        settings = view.settings
        if settings is not None and settings.local.optimizer != "sgd":
            raise NotApplicable(
                "clients use AdamW: an update is no combination of gradients, and its span holds no inputs"
            )
        candidates, control = None, view.threat_model == KNOWN_BAD
        most = CONTROL_UPDATES if control else budget.pick(**MOST)
        until, summed = budget.until(SHARE) if control else math.inf, not view.updates
        results: list[Found] = []
        with white_box.opened(view) as box:
            assert settings is not None
            block = telling_block(box)
            still = settings.local.steps == 1 or not box.reads_tokens  # hidden states did not move
            for r, clients, vector in vectors(view, most=most):
                budget.check()
                if results and budget.used > until:
                    break
                if r not in view.adapters or not np.any(vector):
                    continue
                named = np.arange(box.vocabulary)
                box.set(view.adapters[r])
                spaces = spaces_of(box, vector, box.adapted[0], settings.adapter.kind)
                if not any(m.any() for m in spaces.matrices):
                    continue
                if box.reads_tokens:
                    candidates = candidates or Candidates.of(view)
                    target = attack_one(candidates, spaces, settings, r, clients, rng, summed=summed)
                    named = np.flatnonzero(target.chosen)
                    named = named[np.argsort(-target.scores[named])][:MOST_TOKENS]
                sequences, tried, full = tuple[tuple[int, ...], ...](), 0, False
                if len(named):
                    kind = settings.adapter.kind
                    sequences, tried, full = search(
                        box,
                        spaces_of(box, vector, block, kind) if box.reads_tokens else spaces,
                        block,
                        named.tolist(),
                        tolerance=ONE_STEP if still else SEVERAL_STEPS,
                        longest=settings.max_tokens,
                        budget=budget,
                    )
                found = Found(round=r, clients=clients, sequences=sequences, evaluations=tried, full=full)
                results.append(found)
        if not results:
            raise Inconclusive("no update changes A of the first adapted block")
        if all(found.full for found in results):
            raise Inconclusive("beyond capacity: every update's span is full, and every prefix would fit")
        return tuple(results)

    def score(self, guess: tuple[Found, ...], answer: Truth) -> tuple[Estimate, ...]:
        """Return exact recall and precision over records, ROUGE of the best match, and the cost.

        Vectors beyond capacity (the last number) or of which no record is known are not counted.
        """
        hits = named = telling = 0
        rouge: list[tuple[float, float, float]] = []  # of each record
        for result in guess:
            true = list(dict.fromkeys(i.ids[:-1] for i in answer.used(result.round, result.clients)))
            if result.full or not true:
                continue
            telling, named = telling + 1, named + len(result.sequences)
            hits += matched(result.sequences, true)
            rouge += best_rouge(true, result.sequences)
        if not telling:
            raise Inconclusive("of no vector within capacity is a record known: nothing to compare with")
        counts = {"exact recall": (hits, len(rouge)), "exact precision": (hits, named)}
        shares = [share(*pair, metric=metric, groups=telling) for metric, pair in counts.items()]
        columns = zip(("ROUGE-1", "ROUGE-2", "ROUGE-L"), zip(*rouge, strict=True), strict=True)
        shares += [over_targets(v, metric=name, unit="share", within=(0, 1)) for name, v in columns]
        return (
            *(replace(estimate, how=f"{estimate.how}, of vectors within capacity") for estimate in shares),
            over_targets([float(f.evaluations) for f in guess], metric="prefixes tried", unit="count"),
            counted(sum(f.full for f in guess), metric=NOT_COUNTED, unit="count", seeds=SEEDS),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return steps of SGD on one record of an honest client each, seen in the clear."""
        control = one_step_controls(view, truth, updates=CONTROL_UPDATES)
        return control and (replace_view(control[0], threat_model=KNOWN_BAD), control[1])

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the view with the numbers of every vector shuffled."""
        return shuffled(view, rng), exam
