"""A2: which tokens do clients use? The gradient of an adapter lies in the span of its inputs.

For `y = W x + s B (A x)` the gradient of A is `s B^T D^T X`: its rows are combinations of the inputs x.
Block 0's inputs are normalised embeddings, which are frozen; everybody who holds the proxy has them. So

    e_v = normalised input of token v,   span = -|| e_v - Q Q^T e_v ||     Q: row space of the update

is 0 for the tokens that were present, whatever steps the client takes (SGD, momentum), *and for sums over
clients*. It is exact while there are fewer tokens than `capacity = min(k, r x maps that share the input)`.
Where updates are not combinations of gradients (AdamW, noise, trimmed sums), directions are also weighted:

    weighted = sum_i sigma_i (q_i . e_v)^2 / sum_i sigma_i

With A frozen (`ffa`, `core`) the row space of the update is that of A x, with r dimensions per map; scores
are averaged over maps. Public settings and the rank decide which scores are used, never the result.

A trained model's embeddings are far from isotropic: most of their length lies in one common direction. Raw
scores therefore rank tokens by how typical they are, even for a random update (measured on the demo LLM:
AUC from .2 to .7). Two steps correct this. First, inputs are whitened by the vocabulary's second
moments, which leaves spans unchanged. Second, a token's average score on updates in which nothing can be
found (shuffled updates, and the adversary's own updates on random text) is regressed out over the
vocabulary. On both kinds of update the residual carries no information (AUC .50, spread .02 to .05).

Embeddings do not move in a round, so an update of several steps may be read at any adapter: the first of
the round, the last, or a point between (a surrogate as in SME, Zhu et al. 2023). The candidates are the
same. The adapter matters only for updates of random text and for the part of A's outputs in B's update;
`tests/bench/midpoint.py` measures both.

If block 0 is not adapted, or only its MLP is, the inputs of the first adapted maps depend on the text
before. Tokens are then compared with an approximation of their input; A3 is the exact attack.

After Petrov et al. 2024 (DAGER, arXiv 2405.15586), here for adapters, many steps and sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta, rankdata

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, Feeds, Inconclusive, Truth
from attacks.reconstruction.candidates import Candidates, Scores, token_scores
from attacks.reconstruction.one_step import as_in_the_run, one_step_control
from attacks.reconstruction.row_spaces import Spaces, spaces_of
from attacks.reconstruction.vectors import shuffled, vectors
from attacks.registry import attack
from attacks.statistics import auc_value, mean_auc, over_targets, spread_by_chance, tpr_estimates
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import PublicSettings, View

EXACT = 0.1  # whitened residual below which a token lies in the span
BY_CHANCE = 1e-4  # share of absent tokens that may lie as close to a span with few free dimensions
STANDS_OUT = 3.0  # deviations above which a token is named if no span is exact
CONTROL_RECORDS = 4
FEWEST_TOKENS = 10  # of each kind, for an AUC of them
SHUFFLES = 10  # shuffled updates, beside those of random text: neither has anything to find

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
    scores: np.ndarray  # float64 [V], higher for tokens taken as present
    chosen: np.ndarray  # bool [V], the tokens named
    null: tuple[np.ndarray, ...]  # float32 [n, V] each: scores of shuffled updates and of random text
    rank: int
    capacity: int


def unexplained(values: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return the residual of values [V] on usual scores [n, V] and their squares, in deviations."""
    columns = [np.ones_like(values)]
    for row in usual:
        z = (row - row.mean()) / max(float(row.std()), 1e-12)
        columns += [z, np.square(z)]
    design = np.stack(columns, axis=1)
    residual: np.ndarray = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))  # robust to present tokens
    return residual / max(spread, 1e-12)


def adds_up(settings: PublicSettings, *, summed: bool) -> bool:
    """Return whether a vector combines gradients: nothing was rescaled, added, or trimmed by coordinate."""
    trimmed = summed and not settings.fusion.linear
    return (
        settings.local.optimizer == "sgd"
        and settings.privacy.unit == "none"
        and settings.local.weight_decay == settings.adapter.dropout == settings.fusion.pcr_lambda == 0
        and not trimmed
    )


def in_span(raw: Scores, *, positions: int) -> np.ndarray:
    """Return which tokens lie in the span, bool [V]; none if the span is full.

    A direction drawn evenly from `rank + free` dimensions lies at a distance from a span of `rank` of them
    whose square follows the Beta distribution of free / 2 and rank / 2. A token is taken as present if its
    residual is below `EXACT`, and so low that a share `BY_CHANCE` of absent tokens, each at as many
    positions, would reach it.
    """
    if raw.free == 0:
        return np.zeros(len(raw.span), dtype=bool)
    by_chance = np.sqrt(beta.ppf(BY_CHANCE / positions, raw.free / 2, max(raw.rank, 1) / 2))
    return np.asarray(-raw.span < min(EXACT, float(by_chance)))


def attack_one(
    candidates: Candidates,
    spaces: Spaces,
    settings: PublicSettings,
    round_number: int,
    clients: tuple[str, ...],
    rng: np.random.Generator,
    *,
    summed: bool = False,
) -> Target:
    """Return the scores and the named tokens of one vector; `summed`: it is an aggregate."""
    raw = token_scores(candidates, spaces)
    exact = candidates.exact and adds_up(settings, summed=summed) and raw.free > 0
    parts = ("span",) if exact else ("span", "weighted") if raw.free else ("weighted",)
    shuffled = [token_scores(candidates, shuffled_rows(spaces, rng)) for _ in range(SHUFFLES)]
    groups = [g for g in (shuffled, list(candidates.texts)) if g]
    scores, *null = (
        np.mean(
            [unexplained(getattr(part_scores, p), _usual(p, groups, excluded=part_scores)) for p in parts],
            axis=0,
        )
        for part_scores in (raw, *(part_scores for group in groups for part_scores in group))
    )
    chosen = scores > STANDS_OUT
    if exact:
        chosen = in_span(raw, positions=len(candidates.rows[0]) // candidates.tokens)
        # tokens in the span come before all others
        scores = np.where(chosen, scores + np.ptp(scores) + 1, scores)
    at = np.cumsum([len(g) for g in groups])[:-1]
    return Target(
        round=round_number,
        clients=clients,
        scores=scores,
        null=tuple(np.split(np.array(null, dtype=np.float32), at)),
        chosen=chosen,
        rank=raw.rank,
        capacity=spaces.capacity,
    )


def shuffled_rows(spaces: Spaces, rng: np.random.Generator) -> Spaces:
    """Return spaces with the same numbers in other places."""
    return replace(
        spaces, matrices=tuple(rng.permutation(m.ravel()).reshape(m.shape) for m in spaces.matrices)
    )


def _usual(part: str, groups: list[list[Scores]], *, excluded: Scores) -> np.ndarray:
    """Return the mean scores of each group, [groups, V], without the scores that are judged."""
    return np.array([np.mean([getattr(s, part) for s in g if s is not excluded], axis=0) for g in groups])


@attack(
    AttackInfo(
        id="A2",
        name="lora_span_tokens",
        title="words that clients use, from the span of an update or a sum",
        paper="arXiv 2405.15586, for adapters and sums",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        measures=(Feeds(measure="token_auc", metric="auc"),),
        mapping=PRIVACY_OF_GRADIENTS,
    )
)
class LoraSpanTokens(Attack):
    """The attack that scores every token of the vocabulary and names those that stand out."""

    def guess(
        self, view: View, question: object, budget: Budget, rng: np.random.Generator
    ) -> tuple[Target, ...]:
        """Return one `Target` for each vector attacked."""
        settings = view.settings
        targets: list[Target] = []
        candidates: Candidates | None = None
        with white_box.opened(view) as box:
            assert settings is not None
            for r, clients, vector in vectors(view, most=budget.pick(smoke=4, standard=16, full=64)):
                budget.check()
                if r in view.adapters:
                    box.set(view.adapters[r])
                spaces = spaces_of(box, vector, box.adapted[0], settings.adapter.kind)
                if not any(m.any() for m in spaces.matrices):
                    continue
                candidates = candidates or Candidates.of(view)
                summed = not view.updates
                targets.append(attack_one(candidates, spaces, settings, r, clients, rng, summed=summed))
        if not targets:
            raise Inconclusive("every update is zero")
        return tuple(targets)

    def score(self, guess: tuple[Target, ...], answer: Truth) -> tuple[Estimate, ...]:
        """Return AUC over the vocabulary, TPR at fixed FPR, recall and precision of the named tokens.

        The rates have no interval: tokens' scores depend on each other.

        The AUC over the vocabulary mostly reflects which words the clients use at all. A second AUC
        reflects only the vector's own records: it is over tokens that occur in exactly one record, of those
        that the vector's clients drew or set aside. Whether that record was drawn or set aside does not
        depend on the token, so words that are merely common, or common at these clients, give chance.
        """
        labelled = []
        for target in guess:
            present = np.zeros(len(target.scores), dtype=bool)
            present[list(answer.tokens(target.round, target.clients))] = True
            if 2 <= present.sum() <= len(present) - 2:
                labelled.append((target, present))
        if not labelled:
            raise Inconclusive("no vector has both tokens that it contains and tokens that it does not")
        pairs = [(t.scores, present) for t, present in labelled]
        # tokens' scores depend on each other: by chance AUCs spread further than DeLong assumes
        inflation = float(np.mean([_inflation(t.null, present) for t, present in labelled]))
        recalls = [float(t.chosen[present].mean()) for t, present in labelled]
        precisions = [float(present[t.chosen].mean()) if t.chosen.any() else 0.0 for t, present in labelled]
        # scores are comparable within a target only, so rates over all targets are taken on ranks
        ranks = np.concatenate([rankdata(s) / len(s) for s, _ in pairs])
        labels = np.concatenate([present for _, present in pairs])
        rates = [
            replace(
                rate, low=None, high=None, how="share of tokens; they depend on each other: no interval"
            )
            for rate in tpr_estimates(ranks, labels)
        ]
        return (
            mean_auc(pairs, metric="auc", inflation=inflation),
            *rates,
            *_of_these_records([t for t, _ in labelled], answer),
            over_targets(recalls, metric="recall of named tokens", unit="share", within=(0, 1)),
            over_targets(precisions, metric="precision of named tokens", unit="share", within=(0, 1)),
            over_targets(
                [float(present.sum()) / max(t.capacity, 1) for t, present in labelled],
                metric="tokens over capacity",
                unit="ratio",
            ),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return one round on a few records of an honest client, in the clear and without noise."""
        return as_in_the_run(one_step_control(view, truth, records=CONTROL_RECORDS), view.settings)

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the view with the numbers of every vector shuffled."""
        return shuffled(view, rng), exam


def _of_these_records(targets: Sequence[Target], answer: Truth) -> list[Estimate]:
    """Return the AUC over tokens of one record only, the vector's against those set aside; [] if few."""
    pairs, inflations = [], []
    for target in targets:
        read = answer.tokens(target.round, target.clients)
        counts = Counter(
            t for record in answer.drawn_or_set_aside(target.round, target.clients) for t in record
        )
        once = sorted(token for token, count in counts.items() if count == 1)
        present = np.array([token in read for token in once], dtype=bool)
        if FEWEST_TOKENS <= present.sum() <= len(once) - FEWEST_TOKENS:
            pairs.append((target.scores[once], present))
            inflations.append(_inflation([n[:, once] for n in target.null], present))
    if not pairs:
        return []
    return [mean_auc(pairs, metric="auc, these records", inflation=float(np.mean(inflations)))]


def _inflation(null: Sequence[np.ndarray], present: np.ndarray) -> float:
    """Return the spread of AUCs without information, relative to that of independent scores; at least 1."""
    count = int(present.sum())
    spreads = [float(np.std([auc_value(n, present) for n in group], ddof=1)) for group in null]
    return max(1.0, max(spreads) / spread_by_chance(count, len(present) - count))
