"""All tokens as the first adapted block reads them, and how near each lies to the row spaces of an update.

Rows of the whole vocabulary are large (49,152 tokens x 576 numbers are 113 MB as float32), and updates of
random text are expensive. Both follow from the proxy and one adapter, so a process computes them once for
all vectors, controls and views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from attacks import white_box
from attacks.reconstruction.row_spaces import ROWS, Spaces, row_space, spaces_of, unit, whitening
from attacks.white_box import ROWS_A_PASS, HeldProxy, WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.record.view import View
from fedproxy_secure.runtime.randomness import stream

TEXTS = 10  # updates of random text
REFERENCE = 8192  # tokens of a large vocabulary whose inputs give the second moments of all
ALL_INSIDE = 1e-6  # if half of the tokens have a smaller squared distance, the span is uninformative
TEXT_RECORDS, RANDOM_TOKENS = 16, 24  # size of an update of random text


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Raw scores of all tokens, float64 [V], averaged over matrices.

    `span`: minus the distance from the span; `weighted`: squared cosines with the singular directions,
    weighted by singular values. `rank`: dimensions of the largest space; `free`: dimensions outside of it,
    the fewest of all matrices, and 0 if most tokens lie in a space.
    """

    span: np.ndarray
    weighted: np.ndarray
    rank: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All tokens as the first adapted block reads them, and the scores of absent tokens.

    `rows`, `whiten`: whitened unit inputs, float32 [V x positions, k], per matrix of the spaces, and the
    transforms, float64 [k, k]. `exact`: the block reads exactly these inputs after any text.
    `texts`: scores of random text.
    """

    tokens: int
    rows: tuple[np.ndarray, ...]
    whiten: tuple[np.ndarray, ...]
    exact: bool
    texts: tuple[Scores, ...] = ()

    @classmethod
    def of(cls, view: View) -> Candidates:
        """Return the candidates for all vectors of a view that holds a proxy and the run's settings.

        Scores of random text are those at the last adapter: in the first round, adapters' B is zero.
        """
        proxy = white_box.held_proxy(view)
        if not view.adapters:
            return _without_texts(proxy)
        assert view.settings is not None
        last = view.adapters[max(view.adapters)]
        texts = _random_texts(proxy, last.astype(np.float32).tobytes(), view.settings.seed)
        return replace(_without_texts(proxy), texts=texts)

    @classmethod
    def from_inputs(
        cls, inputs: np.ndarray, maps: tuple[np.ndarray | None, ...], *, exact: bool = True
    ) -> Candidates:
        """Return the candidates for inputs [V, positions, k], without scores of random text."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        rows, whiten = [], []
        for change in maps:
            mapped = flat if change is None else flat @ change.T.astype(flat.dtype)
            w = whitening(mapped)
            whitened = np.empty(mapped.shape, np.float32)
            for at in range(0, len(mapped), ROWS):  # in float64, but not all at once
                whitened[at : at + ROWS] = unit(mapped[at : at + ROWS].astype(np.float64) @ w)
            rows.append(whitened)
            whiten.append(w)
        return cls(tokens=len(inputs), rows=tuple(rows), whiten=tuple(whiten), exact=exact)


@lru_cache(maxsize=1)
def _without_texts(held: HeldProxy) -> Candidates:
    with white_box.lent(held) as box:
        nothing = np.zeros(sum(int(np.prod(s)) for s in box.shapes), dtype=np.float32)
        maps = spaces_of(box, nothing, box.adapted[0], held.adapter.kind).maps
        return Candidates.from_inputs(box.token_inputs(), maps, exact=box.reads_tokens)


@lru_cache(maxsize=4)  # the last adapters of two views, and of their controls
def _random_texts(held: HeldProxy, adapter: bytes, seed: int) -> tuple[Scores, ...]:
    """Return the scores of `TEXTS` updates of random text, made at this adapter, float32 bytes."""
    rng, bare, texts = stream(seed, "attack", "random text"), _without_texts(held), []
    with white_box.lent(held, np.frombuffer(adapter, np.float32).copy()) as box:
        for _ in range(TEXTS):
            update = -box.gradient(random_text(box, rng))
            texts.append(token_scores(bare, spaces_of(box, update, box.adapted[0], held.adapter.kind)))
    return tuple(texts)


def usual_inputs(box: WhiteBox, block: int) -> np.ndarray:
    """Return a block's inputs for single tokens, float32 [n, k]: for all tokens, or `REFERENCE` or more.

    They are used for second moments only, for which a sample of some thousand tokens is enough.
    """
    step = max(1, box.vocabulary // REFERENCE)
    tokens = torch.arange(0, box.vocabulary, step)[:, None]
    return torch.cat([box.block_inputs(part, block)[:, 0] for part in tokens.split(ROWS_A_PASS)]).numpy()


def random_text(box: WhiteBox, rng: np.random.Generator) -> list[Encoded]:
    """Return records of tokens drawn evenly from the vocabulary."""
    start = box.tokenizer.bos_token_id
    ids = rng.integers(box.vocabulary, size=(TEXT_RECORDS, RANDOM_TOKENS))
    if start is not None:
        ids[:, 0] = start
    return [Encoded(ids=tuple(row), response_start=RANDOM_TOKENS // 2) for row in ids.tolist()]


def token_scores(candidates: Candidates, spaces: Spaces) -> Scores:
    """Return raw scores; the best of a token's positions counts."""
    span = np.zeros(len(candidates.rows[0]))
    weighted = span.copy()
    rank, free, count = 0, spaces.matrices[0].shape[1], len(spaces.matrices)
    for matrix, rows, w in zip(spaces.matrices, candidates.rows, candidates.whiten, strict=True):
        sigma, right = row_space(matrix, w, noise=spaces.noise)
        rank, free = max(rank, len(sigma)), min(free, matrix.shape[1] - len(sigma))
        inside = np.square((rows @ right.T.astype(rows.dtype)).astype(np.float64))
        outside = np.clip(1 - inside.sum(axis=1), 0, None)
        if np.median(outside) < ALL_INSIDE:  # a norm may remove a dimension of the inputs
            free = 0
        span -= np.sqrt(outside) / count
        if len(sigma):
            weighted += inside @ sigma / sigma.sum() / count
    best = [x.reshape(candidates.tokens, -1).max(axis=1) for x in (span, weighted)]
    return Scores(span=best[0], weighted=best[1], rank=rank, free=free)
