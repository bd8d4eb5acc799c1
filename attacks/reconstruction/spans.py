"""A2: which tokens did clients train on? The gradient of an adapter lies in the span of its inputs.

For `y = W x + s B (A x)` the gradient of A is `s B^T D^T X`: its rows are combinations of the inputs x.
Block 0's inputs are normalised embeddings, which are frozen and which everybody with the proxy has. So

    e_v = normalised input of token v,   score = -|| e_v - Q Q^T e_v ||     Q: row space of the update

is 0 for the tokens that were there, whatever the client's steps (SGD, momentum), *and for sums over
clients*. It stays exact while the tokens are fewer than `capacity = min(k, r x maps that share the input)`;
beyond it, and for AdamW, whose steps are no combinations of gradients, directions are weighted instead:

    score = sum_i sigma_i (q_i . e_v)^2

With A frozen (`ffa`, `core`) the row space of the update is that of A x, of r dimensions a map; scores of
the maps add up. Which of both scores is used follows from public settings, never from the result.

A trained model's embeddings are far from isotropic: most of their length is one common direction, and raw
scores rank tokens by how usual they are, in a random update too (measured on the demo LLM: AUC from .2 to
.7 under shuffled updates). So inputs are whitened by the vocabulary's second moments, which keeps spans
what they are, and every token's score is taken against its own under shuffled updates, in deviations.

After Petrov et al. 2024 (DAGER, arXiv 2405.15586), here for adapters, many steps and sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Inconclusive, Truth, attack
from attacks.statistics import auc_value, mean_auc, over_targets, tpr_estimates
from attacks.white_box import WhiteBox
from fedproxy_secure.record.view import PublicSettings, View
from fedproxy_secure.report.estimate import Estimate

FLOAT32_NOISE = 1e-7  # of the largest singular value
SMALL, GAP = 1e-2, 20.0  # among values this small, a fall by this factor is where noise begins
EXACT = 2e-2  # whitened residual below which a token lies in the span
STANDS_OUT = 3.0  # deviations above which a token is named, beyond capacity
SHUFFLES = 24

PRIVACY_OF_GRADIENTS = (
    ("MITRE ATLAS", "5", "AML.T0024.001"),
    ("OWASP LLM", "2025", "LLM02"),
    ("NIST AI RMF", "1.0", "MEASURE 2.10"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One vector that was attacked: a client's update, or the aggregate of `clients` in a round."""

    round: int
    clients: tuple[str, ...]
    scores: np.ndarray  # float64 [V], higher for tokens taken as there
    chosen: np.ndarray  # bool [V], the tokens named
    null: np.ndarray  # float32 [shuffles, V], scores of shuffled updates: how far chance alone reaches
    rank: int
    capacity: int


Vector = tuple[int, tuple[str, ...], np.ndarray]  # round, clients in it, the mean of their updates


def vectors(view: View, *, most: int) -> list[Vector]:
    """The first `most` vectors a view holds: individual updates where it has them, else aggregates."""
    if view.updates:
        found: list[Vector] = [(r, (name,), u) for (r, name), u in sorted(view.updates.items())]
    else:
        found = []
        everybody = view.settings.clients if view.settings is not None else ()
        for r in sorted({*view.sums, *view.adapters}):
            mean = view.aggregate(r)
            if mean is not None:
                seen = view.sums[r].clients if r in view.sums else everybody
                found.append((r, seen, without_own(view, r, seen, mean)))
    found.sort(key=lambda f: (f[0], f[1]))
    # rounds apart say more than neighbours: spread over what is there
    picks = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[i] for i in picks]


def without_own(view: View, round_number: int, clients: tuple[str, ...], mean: np.ndarray) -> np.ndarray:
    """The mean without the corrupted clients' own part, which they know."""
    own = [s.rounds[round_number].update for s in view.own.values() if round_number in s.rounds]
    rest: np.ndarray = (mean * len(clients) - np.sum(own, axis=0)).astype(np.float32) if own else mean
    return rest


def row_space(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values above the noise, [rank], and their right vectors, [rank, k].

    Inputs that hardly moved the loss leave small values, so the cut is where values fall off a cliff.
    """
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int((sigma > FLOAT32_NOISE * sigma[0]).sum()) if sigma.size and sigma[0] > 0 else 0
    small = np.flatnonzero(sigma[1:rank] < SMALL * sigma[0])
    falls = sigma[small] / sigma[small + 1] if len(small) else np.zeros(0)
    if len(falls) and falls.max() > GAP:
        rank = int(small[np.argmax(falls)]) + 1
    return sigma[:rank], right[:rank]


def span_residual(candidates: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distance of unit candidates [n, k] from the span of orthonormal rows [rank, k]; [n] in [0, 1]."""
    inside = np.square(candidates @ right.T).sum(axis=1)
    return np.asarray(np.sqrt(np.clip(1 - inside, 0, None)))


def whitening(inputs: np.ndarray) -> np.ndarray:
    """The symmetric W, [k, k], for which inputs [n, k] times W have second moments of one."""
    values, vectors_ = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    floor = 1e-6 * float(values[-1])
    made: np.ndarray = (vectors_ / np.sqrt(np.maximum(values, floor))) @ vectors_.T
    return made


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """Row spaces of one block's update: matrices [rows, k], and maps from inputs to their rows' space."""

    matrices: tuple[np.ndarray, ...]
    maps: tuple[np.ndarray | None, ...]  # None: the identity

    @property
    def capacity(self) -> int:
        """How many inputs the spaces can hold apart."""
        return max(int(min(m.shape)) for m in self.matrices)


def spaces_of(box: WhiteBox, update: np.ndarray, block: int, kind: str) -> Spaces:
    """The parts of an update whose rows lie in the span of a block's inputs."""
    pieces = box.pieces(update)
    group = box.shared_input(block)
    found: list[np.ndarray] = []
    maps: list[np.ndarray | None] = []
    wanted = {"lora": "lora_A.", "ffa": "lora_B.", "core": "lora_B.default.core."}[kind]
    for name, layer in zip(group.names, group.layers, strict=True):
        for parameter, piece in pieces.items():
            if f".{block}.{name}.{wanted}" in parameter:
                found.append(piece)
                maps.append(None if kind == "lora" else white_box.frozen_input_map(layer))
    if kind == "lora":  # one space: all maps see the same inputs
        return Spaces(matrices=(np.concatenate(found),), maps=(None,))
    return Spaces(matrices=tuple(found), maps=tuple(maps))


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Whitened unit inputs of all tokens for each matrix of the spaces, [V x positions, k], and how."""

    tokens: int
    rows: tuple[np.ndarray, ...]
    whiten: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, inputs: np.ndarray, maps: tuple[np.ndarray | None, ...]) -> Candidates:
        """From inputs [V, positions, k] as block 0 reads them."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        rows, whiten = [], []
        for change in maps:
            seen = flat if change is None else flat @ change.T
            w = whitening(seen)
            rows.append(unit(seen @ w))
            whiten.append(w)
        return cls(tokens=len(inputs), rows=tuple(rows), whiten=tuple(whiten))


def token_scores(
    candidates: Candidates, matrices: tuple[np.ndarray, ...], *, weighted: bool
) -> tuple[np.ndarray, int]:
    """Each token's score, [V], higher for tokens taken as there, and the rank; the best position counts."""
    total = np.zeros(len(candidates.rows[0]))
    rank = 0
    for matrix, rows, w in zip(matrices, candidates.rows, candidates.whiten, strict=True):
        sigma, right = row_space(matrix @ w)
        rank = max(rank, len(sigma))
        if not len(sigma):
            continue
        if weighted:
            total += np.square(rows @ right.T) @ sigma / sigma.sum()
        else:
            total -= span_residual(rows, right) / len(matrices)
    return total.reshape(candidates.tokens, -1).max(axis=1), rank


def calibrated_scores(
    candidates: Candidates,
    matrices: tuple[np.ndarray, ...],
    *,
    weighted: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in deviations from the token's own score under shuffled updates, [V]; the shuffled, [n, V]."""
    real, _ = token_scores(candidates, matrices, weighted=weighted)
    null = []
    for _ in range(SHUFFLES):
        mixed = tuple(rng.permutation(m.ravel()).reshape(m.shape) for m in matrices)
        null.append(token_scores(candidates, mixed, weighted=weighted)[0])
    deviation = np.std(null, axis=0)
    mean, scale = np.mean(null, axis=0), np.maximum(deviation, 1e-9)
    return (real - mean) / scale, ((np.array(null) - mean) / scale).astype(np.float32)


def weighted_rule(settings: PublicSettings, rank: int, width: int) -> bool:
    """Whether to weight directions: where the span is full, frozen, or not made of gradients."""
    plain = settings.local.optimizer == "sgd" and settings.privacy.unit == "none"
    return not (plain and settings.adapter.kind == "lora" and rank < width)


def attack_one(
    candidates: Candidates,
    spaces: Spaces,
    settings: PublicSettings,
    round_number: int,
    clients: tuple[str, ...],
    rng: np.random.Generator,
) -> Target:
    """Score and name the tokens of one vector."""
    apart, rank = token_scores(candidates, spaces.matrices, weighted=False)
    weighted = weighted_rule(settings, rank, spaces.matrices[0].shape[1])
    scores, null = calibrated_scores(candidates, spaces.matrices, weighted=weighted, rng=rng)
    return Target(
        round=round_number,
        clients=clients,
        scores=scores,
        null=null,
        chosen=scores > STANDS_OUT if weighted else -apart < EXACT,
        rank=rank,
        capacity=spaces.capacity,
    )


@attack(
    AttackInfo(
        id="A2",
        name="lora_span_tokens",
        title="tokens of the round's records, from the span of an update or a sum",
        paper="arXiv 2405.15586, for adapters and sums",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        mapping=PRIVACY_OF_GRADIENTS,
    )
)
class LoraSpanTokens(Attack):
    """Scores every token of the vocabulary; names those that stand out."""

    def guess(
        self, view: View, question: object, budget: Budget, rng: np.random.Generator
    ) -> tuple[Target, ...]:
        """One `Target` for each vector attacked."""
        box = white_box.load(view)
        assert view.settings is not None
        inputs = box.token_inputs()
        made: list[Target] = []
        candidates: Candidates | None = None
        for r, clients, vector in vectors(view, most=budget.pick(smoke=4, standard=16, full=64)):
            budget.check()
            if not np.any(vector):
                continue
            spaces = spaces_of(box, vector, 0, view.settings.adapter.kind)
            candidates = candidates or Candidates.of(inputs, spaces.maps)
            made.append(attack_one(candidates, spaces, view.settings, r, clients, rng))
        if not made:
            raise Inconclusive("every update is zero")
        return tuple(made)

    def score(self, guess: tuple[Target, ...], answer: Truth) -> tuple[Estimate, ...]:
        """AUC over the vocabulary, TPR at fixed FPR, exact recall and precision of the named tokens."""
        labelled = []
        for target in guess:
            there = np.zeros(len(target.scores), dtype=bool)
            there[list(answer.tokens(target.round, target.clients))] = True
            if 2 <= there.sum() <= len(there) - 2:
                labelled.append((target, there))
        if not labelled:
            raise Inconclusive("no target has tokens that it contains and others that it does not")
        pairs = [(t.scores, there) for t, there in labelled]
        # tokens' scores are not independent of each other: chance reaches further than DeLong thinks
        by_chance = [np.std([auc_value(n, there) for n in t.null], ddof=1) for t, there in labelled]
        recalls = [float(t.chosen[there].mean()) for t, there in labelled]
        precise = [float(there[t.chosen].mean()) if t.chosen.any() else 0.0 for t, there in labelled]
        # rates over all targets together: scores are comparable within a target only, so ranks
        ranks = np.concatenate([np.argsort(np.argsort(s)) / len(s) for s, _ in pairs])
        labels = np.concatenate([there for _, there in pairs])
        seed = 0
        return (
            mean_auc(pairs, metric="auc", seed=seed, spread_floor=float(np.mean(by_chance))),
            *tpr_estimates(ranks, labels, seed=seed),
            over_targets(recalls, metric="recall of named tokens", unit="share", seed=seed, within=(0, 1)),
            over_targets(
                precise, metric="precision of named tokens", unit="share", seed=seed, within=(0, 1)
            ),
            over_targets(
                [float(there.sum()) / max(t.capacity, 1) for t, there in labelled],
                metric="tokens over capacity",
                unit="ratio",
                seed=seed,
            ),
        )
