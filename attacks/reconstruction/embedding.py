"""A1: which tokens did clients train on, judged by the rows of a trained embedding's update?

A row of an embedding's gradient is zero unless its token was an input. If the embedding is tied to the
output layer, every row gets a gradient, but the rows of input tokens get a far larger one. This project's
adapters leave embeddings frozen, so the attack does not apply to its own runs, only to updates that hold an
embedding.
"""

from __future__ import annotations

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Feeds, NotApplicable, Truth
from attacks.reconstruction.spans import PRIVACY_OF_GRADIENTS
from attacks.reconstruction.vectors import vectors
from attacks.registry import attack
from attacks.statistics import mean_auc, over_targets
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View

UNTIED = 1e-9  # a row with a larger norm had its token among the inputs
TIED_DEVIATIONS = 1.5  # standard deviations of log norms above their mean

Guess = tuple[tuple[int, tuple[str, ...], np.ndarray, np.ndarray], ...]


def embedding_tokens(gradient: np.ndarray, *, tied: bool, bits: int | None = None) -> np.ndarray:
    """Return which rows of an embedding's update, float [V, k], belong to input tokens: bool [V].

    Args:
        gradient: the update, [V, k].
        tied: whether the embedding is tied to the output layer.
        bits: fractional bits of a fixed-point update, whose rounding leaves rows of norm up to `3 x 2^-bits
            x sqrt(k)`; None for floating point.
    """
    norms = np.linalg.norm(gradient.astype(np.float64), axis=1)
    if not tied:
        floor = UNTIED if bits is None else 3 * 2.0**-bits * np.sqrt(gradient.shape[1])
        return np.asarray(norms > floor)
    logs = np.log(np.maximum(norms, 1e-30))
    return np.asarray(logs > logs.mean() + TIED_DEVIATIONS * logs.std())


@attack(
    AttackInfo(
        id="A1",
        name="embedding_bow",
        title="tokens of the round's records, from the embedding's update",
        paper="Melis et al. 2019, arXiv 1805.04049",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        measures=(Feeds(measure="token_auc", metric="auc"),),
        mapping=PRIVACY_OF_GRADIENTS,
    )
)
class EmbeddingBow(Attack):
    """The attack that scores tokens by the norm of their row."""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> Guess:
        """Return (round, clients, norms [V], named tokens bool [V]) for each vector."""
        results = []
        with white_box.opened(view) as box:
            name = next((n for n in box.names if "embed" in n or "wte" in n), None)
            if name is None:
                raise NotApplicable("embeddings are frozen in this run; no update holds them")
            tied = bool(getattr(box.config, "tie_word_embeddings", False))
            for r, clients, vector in vectors(view, most=budget.pick(smoke=4, standard=16, full=64)):
                rows = box.pieces(vector)[name]
                results.append(
                    (r, clients, np.linalg.norm(rows, axis=1), embedding_tokens(rows, tied=tied))
                )
        return tuple(results)

    def score(self, guess: Guess, answer: Truth) -> tuple[Estimate, ...]:
        """Return the AUC over the vocabulary, and the exact recall of the named tokens."""
        pairs, recalls = [], []
        for r, clients, norms, chosen in guess:
            present = np.zeros(len(norms), dtype=bool)
            present[list(answer.tokens(r, clients))] = True
            pairs.append((norms, present))
            recalls.append(float(chosen[present].mean()))
        return (
            mean_auc(pairs, metric="auc"),
            over_targets(recalls, metric="recall of named tokens", unit="share", within=(0, 1)),
        )
