"""A4: gradient matching, a baseline for more tokens than spans can hold, and for dropout.

The embeddings z of one sequence are optimised until their adapter gradient points where the update points:

    min_z  1 - cos(grad loss(z, y), -update) + norm penalty,    then each z becomes its nearest token,
    then discrete edits (swaps, moves) that lower  1 - cos + weight x LM loss  are kept

The nearest tokens are sought among those that A2 names, or among its highest-scoring ones if it names fewer
than two. The response is guessed too: its tokens are the last of the sequence. The method works at best on
one individual update of few steps; on sums its result is noise. Gradients are those at the adapter that the
round began with, which an update of several steps is only roughly; A5 reads other points as well.

After DLG (Zhu et al. 2019), TAG (Deng et al. 2021) and LAMP (Balunovic et al. 2022, arXiv 2202.08827).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, Inconclusive, Truth
from attacks.reconstruction.candidates import Candidates
from attacks.reconstruction.objective import Lengths, Objective
from attacks.reconstruction.one_step import as_in_the_run, one_step_control
from attacks.reconstruction.rouge import best_rouge
from attacks.reconstruction.row_spaces import spaces_of
from attacks.reconstruction.spans import PRIVACY_OF_GRADIENTS, attack_one
from attacks.reconstruction.vectors import vectors
from attacks.registry import attack
from attacks.statistics import over_targets
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import View

RATE, NORM_PENALTY = 0.05, 0.01
CANDIDATES = 80
CONTROLS = 3  # rounds of the positive control; fewer would leave its interval too wide


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One reconstructed sequence for one vector; `cosine` is that of its gradient with the update."""

    round: int
    clients: tuple[str, ...]
    ids: tuple[int, ...]
    cosine: float


def match(
    aim: Objective, *, steps: int, edits: int, budget: Budget, rng: np.random.Generator
) -> tuple[tuple[int, ...], float]:
    """Return the best sequence over the objective's tokens, and the cosine of its gradient."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # twice differentiable
        ids = descended(aim, steps=steps, budget=budget, rng=rng)
        ids, cosine = refined(aim, ids, edits=edits, budget=budget, rng=rng)
    return tuple(ids.tolist()), cosine


def descended(aim: Objective, *, steps: int, budget: Budget, rng: np.random.Generator) -> torch.Tensor:
    """Return the tokens, int64 [n], nearest to embeddings that were optimised from random ones."""
    words = aim.words
    shape = (aim.lengths.tokens, words.shape[1])
    z = torch.from_numpy(rng.standard_normal(shape)).float() * words.std()
    z.requires_grad_(True)
    usual = words.norm(dim=1).mean()
    optimizer = torch.optim.Adam([z], lr=RATE)
    for _ in range(steps):
        budget.check()
        optimizer.zero_grad()
        value = aim.distance(z, aim.nearest(z.detach()), create=True)
        penalty = NORM_PENALTY * (z.norm(dim=1).mean() / usual - 1).square()
        (value + penalty).backward(inputs=[z])
        optimizer.step()
    return aim.nearest(z.detach())


def refined(
    aim: Objective, ids: torch.Tensor, *, edits: int, budget: Budget, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Return the sequence after edits that lower its cost, and the cosine of its gradient."""
    best, cosine = aim.cost(ids)
    for _ in range(edits):
        budget.check()
        tried = _edited(ids, aim.pool, aim.box.vocabulary, rng, keep_first=aim.start is not None)
        cost, cosine_of_it = aim.cost(tried)
        if cost < best:
            ids, best, cosine = tried, cost, cosine_of_it
    return ids, cosine


def _edited(
    ids: torch.Tensor, pool: torch.Tensor, vocabulary: int, rng: np.random.Generator, *, keep_first: bool
) -> torch.Tensor:
    """Return the sequence with two tokens swapped, one moved, or one replaced by another of the pool.

    The last token, which is predicted and never read, may be replaced by any token of the vocabulary.
    """
    edited, low = ids.clone(), int(keep_first)
    i, j = rng.integers(low, len(ids), size=2)
    kind = rng.integers(3)
    if kind == 0:
        edited[[i, j]] = ids[[j, i]]
    elif kind == 1:
        remainder = torch.cat([ids[:i], ids[i + 1 :]])
        at = int(min(j, len(remainder)))
        edited = torch.cat([remainder[:at], ids[i : i + 1], remainder[at:]])
    else:
        last = int(i) == len(ids) - 1
        edited[i] = int(rng.integers(vocabulary)) if last else pool[int(rng.integers(len(pool)))]
    return edited


@attack(
    AttackInfo(
        id="A4",
        name="gradient_matching",
        title="a record of the round, by matching its gradient",
        paper="arXiv 2202.08827 (LAMP)",
        needs=(frozenset({"IND", "MOD"}), frozenset({"AGG", "MOD"})),
        headline="ROUGE-1 above shuffled updates",
        chance=0.0,
        margin=0.05,
        mapping=PRIVACY_OF_GRADIENTS,
        smoke=False,
        long=2,
    )
)
class GradientMatching(Attack):
    """The attack that reconstructs one sequence per vector; the records' lengths are taken as known."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the median shape of the records, which templates make public; the truth is the answer."""
        items = [i for s in truth.clients.values() for i in s.train]
        shape = Lengths(
            tokens=int(np.median([len(i.ids) for i in items])),
            response_start=int(np.median([i.response_start for i in items])),
        )
        return Exam(question=shape, answer=truth)

    def guess(
        self, view: View, question: Lengths, budget: Budget, rng: np.random.Generator
    ) -> tuple[tuple[Matched, Matched], ...]:
        """Return for each vector a reconstruction, and another one from the same vector shuffled."""
        settings = view.settings
        steps, edits = (
            budget.pick(smoke=8, standard=80, full=400),
            budget.pick(smoke=12, standard=120, full=800),
        )
        pairs = []
        with white_box.opened(view) as box:
            assert settings is not None
            candidates = Candidates.of(view)
            for r, clients, vector in vectors(view, most=budget.pick(smoke=3, standard=3, full=8)):
                if r not in view.adapters or not np.any(vector):
                    continue
                pair = []
                for update in (vector, rng.permutation(vector)):
                    spaces = spaces_of(box, update, box.adapted[0], settings.adapter.kind)
                    summed = not view.updates
                    target = attack_one(candidates, spaces, settings, r, clients, rng, summed=summed)
                    named = np.flatnonzero(target.chosen)
                    if len(named) < 2:
                        named = np.argsort(-target.scores)[:CANDIDATES]
                    aim = Objective.of(box, view.adapters[r], update, named, question)
                    ids, cosine = match(aim, steps=steps, edits=edits, budget=budget, rng=rng)
                    pair.append(Matched(round=r, clients=clients, ids=ids, cosine=cosine))
                pairs.append((pair[0], pair[1]))
        if not pairs:
            raise Inconclusive("every update is zero")
        return tuple(pairs)

    def score(self, guess: tuple[tuple[Matched, Matched], ...], answer: Truth) -> tuple[Estimate, ...]:
        """Return ROUGE of the best match among the round's records, the headline first.

        The headline is the lead in ROUGE-1 over the reconstruction from the shuffled vector.
        """
        real, null = [], []
        for matched, shuffled in guess:
            true = list({i.ids for i in answer.used(matched.round, matched.clients)})
            if not true:
                continue
            real.append(max(best_rouge([t], [matched.ids])[0] for t in true))
            null.append(max(best_rouge([t], [shuffled.ids])[0] for t in true))
        if not real:
            raise Inconclusive("no vector is of clients whose records are known: nothing to compare with")
        gains = [a[0] - b[0] for a, b in zip(real, null, strict=True)]
        return (
            over_targets(gains, metric=self.info.headline, unit="share"),
            *(
                over_targets([x[i] for x in real], metric=name, unit="share", within=(0, 1))
                for i, name in enumerate(("ROUGE-1", "ROUGE-2", "ROUGE-L"))
            ),
            over_targets([m.cosine for m, _ in guess], metric="cosine reached", unit="cosine"),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return one round on one record, seen in the clear, for up to three clients."""
        updates: dict[tuple[int, str], np.ndarray] = {}
        clients: dict[str, PrivateState] = {}
        changed: View | None = None
        for name, state in sorted(truth.clients.items()):
            client_control = as_in_the_run(
                one_step_control(view, Truth(clients={name: state}), records=1), view.settings
            )
            if client_control is None:  # a client that trained in no round that the view has
                continue
            changed, single = client_control
            control = next(iter(single.clients.values()))
            label = f"{control.client}{len(clients)}"
            clients[label] = replace(control, client=label)
            updates.update({(r, label): u for (r, _), u in changed.updates.items()})
            if len(clients) == CONTROLS:
                break
        return None if changed is None else (replace(changed, updates=updates), Truth(clients=clients))
