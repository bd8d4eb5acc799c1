"""A11: what does a server that follows the protocol learn beyond one sum?

- `sign_counts`: H-TIES at granularity `coordinate` counts signs. If only one client has a sign, its value
  is revealed; if all clients have the same sign, the sign of each is revealed.
- `cohort_differencing`: cohorts differ from round to round. Least squares over the participation matrix
  separates the sums into single clients' updates, as far as a client's updates resemble each other. Where
  the same clients took part in all rounds, nothing tells them apart, and the attack does not apply.

Single messages are attacked by `masked_words` and `mask_seed_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks.base import Attack, AttackInfo, Budget, Exam, Inconclusive, NotApplicable, Truth, replace_view
from attacks.reconstruction.vectors import as_sent, own_contributions
from attacks.registry import attack
from attacks.statistics import auc_value, over_targets, share
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import PublicSettings, Sums, View
from fedproxy_secure.secagg.signs import pack_signs, unpack_signs

PARTS = 32  # pieces of an update, each of them judged by itself
FLOAT32_SUMS = 2.5e-7  # relative error of sums and magnitudes as they are revealed
SECURE_AGGREGATION = (
    ("MITRE ATLAS", "5", "AML.T0024.001"),
    ("NIST AI RMF", "1.0", "MEASURE 2.7"),
)


@dataclass(frozen=True, kw_only=True)
class SignsGuess:
    """The coordinates at which one client's value, or every client's sign, is named.

    Args:
        coordinates: number of coordinates of all rounds.
        lone: how many have a single client on one side, without the adversary's own clients.
        unanimous: how many have all clients on one side, without the adversary's own clients.
        named: for each round (round, coordinates, values, how far rounding may have moved the values) of
            lone contributors.
    """

    coordinates: int
    lone: int
    unanimous: int
    named: tuple[tuple[int, np.ndarray, np.ndarray, np.ndarray], ...]


@attack(
    AttackInfo(
        id="A11",
        name="sign_counts",
        title="values of single clients from counts of signs",
        paper="ours: what H-TIES by coordinates reveals",
        needs=(frozenset({"AGG"}), frozenset({"IND"})),
        headline="share of coordinates whose lone value was named right",
        chance=0.0,
        margin=0.001,
        mapping=SECURE_AGGREGATION,
    )
)
class SignCounts(Attack):
    """The attack that reads P = (A + S) / 2 and N = (A - S) / 2 where a side has one client.

    Clients that work with the adversary first subtract their own signs and values.
    """

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return no question; the answer is what clients sent, trimmed and weighed."""
        return Exam(answer=as_sent(view, truth))

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> SignsGuess:
        """Return the values and signs that all coordinates of all rounds reveal."""
        settings = view.settings
        if settings is None or not view.sums:
            raise NotApplicable("this view holds no sums")
        # half a step per client: the n clients of a round share 2^(bits - 1) levels per side
        asked = settings.clients_a_round
        rounding = 2 * asked**2 / 2**settings.protect.bits
        lone = unanimous = total = 0
        named = []
        for r, sums in sorted(view.sums.items()):
            d = settings.d
            total += d
            if "signs" not in sums.segments:
                continue
            words, packed_for = sums.segments["signs"].astype(np.int64), _packed_for(settings, sums.clients)
            plus, minus = unpack_signs(words, clients=packed_for, bits=settings.protect.bits, d=d)
            s = sums.segments["update"].astype(np.float64)
            a = sums.segments["magnitude"].astype(np.float64)
            largest = float(a.max())
            known = _known(view, r)
            for update in known.values():
                plus, minus = plus - (update > 0), minus - (update < 0)
                s, a = s - update, a - np.abs(update)
            clients = len(sums.clients) - len(known)
            single_plus, single_minus = plus == 1, minus == 1
            at = np.flatnonzero(single_plus | single_minus)
            value = np.where(single_plus, (a + s) / 2, -(a - s) / 2)
            lone += len(at)
            unanimous += int(((plus == clients) | (minus == clients)).sum())
            # rounding is that of the whole sum, the adversary's own part included
            whole = sums.segments["magnitude"].astype(np.float64)[at]
            named.append((r, at, value[at], FLOAT32_SUMS * whole + rounding * largest))
        return SignsGuess(coordinates=total, lone=lone, unanimous=unanimous, named=tuple(named))

    def score(self, guess: SignsGuess, answer: Truth) -> tuple[Estimate, ...]:
        """Return shares of all coordinates; a named value counts if some client has it, up to rounding.

        The headline leaves out rounds in which values were named and no client is known.
        """
        true = {
            r: [s.rounds[r].update for s in answer.clients.values() if r in s.rounds]
            for r, *_ in guess.named
        }
        if true and not any(true.values()):
            raise Inconclusive("no client of these rounds is known: nothing to compare with")
        right = unknown = 0
        for r, at, values, near in guess.named:
            if not true[r]:
                unknown += bool(len(at))
                continue
            updates = np.stack(true[r])
            is_true = np.abs(updates[:, at] - values).min(axis=0) <= near
            right += int((is_true & (np.abs(values) > near)).sum())
        n = guess.coordinates
        d = next((len(updates[0]) for updates in true.values() if updates), 0)
        return (
            share(right, n - unknown * d, metric=SignCounts.info.headline),
            share(guess.lone, n, metric="share of coordinates with a lone contributor"),
            share(guess.unanimous, n, metric="share of coordinates with unanimous signs"),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return sums as granularity `coordinate` would have revealed them."""
        sums = coordinate_sums(view, as_sent(view, truth))
        return (replace_view(view, sums=sums), truth) if sums else None

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the sums and magnitudes moved to other coordinates, so that named values are nobody's."""
        mixed = {}
        for r, sums in coordinate_sums(view, exam.answer).items():
            shift = int(rng.integers(1, len(sums.segments["update"])))  # >= 1: no value stays in place
            moved = {k: np.roll(sums.segments[k], shift) for k in ("update", "magnitude")}
            mixed[r] = Sums(clients=sums.clients, segments={**sums.segments, **moved})
        return replace_view(view, sums=mixed), exam


def coordinate_sums(view: View, truth: Truth) -> dict[int, Sums]:
    """Return what granularity `coordinate` reveals of the best attended rounds; needs 2 clients."""
    names, rounds = truth.best_attended()
    if view.settings is None or len(names) < 2:
        return {}
    return {r: _coordinate_sums(names, truth, r, view.settings) for r in rounds}


def _coordinate_sums(names: tuple[str, ...], truth: Truth, number: int, settings: PublicSettings) -> Sums:
    bits, packed_for = settings.protect.bits, _packed_for(settings, names)
    updates = [truth.clients[n].rounds[number].update for n in names]
    return Sums(
        clients=names,
        segments={
            "update": np.sum(updates, axis=0),
            "magnitude": np.sum([np.abs(u) for u in updates], axis=0),
            "signs": np.sum([pack_signs(u, clients=packed_for, bits=bits) for u in updates], axis=0),
        },
    )


def _packed_for(settings: PublicSettings, summed: Sequence[str]) -> int:
    """Return how many clients a count of signs has room for: all that were asked, drop-outs included."""
    return max(settings.clients_a_round, len(summed))


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Each client's mean update as least squares estimates it, [d]; `rank` of the participation matrix."""

    means: dict[str, np.ndarray]
    rank: int
    rounds: int


def _known(view: View, round_number: int) -> dict[str, np.ndarray]:
    """Return what corrupted clients added to a round's sum themselves, float64 [d], by name."""
    own = own_contributions(view, round_number, view.sums[round_number].clients)
    return {name: values.astype(np.float64) for name, values in own.items()}


def _of_others(view: View, round_number: int) -> Sums:
    """Return a round's sum without the part of the corrupted clients, who know their own updates."""
    sums = view.sums[round_number]
    known = _known(view, round_number)
    remainder = sums.segments["update"].astype(np.float64)
    for update in known.values():
        remainder -= update
    return Sums(clients=tuple(n for n in sums.clients if n not in known), segments={"update": remainder})


def disaggregate(sums: dict[int, Sums]) -> Apart:
    """Return each client's mean update by least squares over who took part: `sums[r] = P[r] @ updates`.

    The updates are determined if and only if rank(P) equals the number of clients.
    """
    names = sorted({n for s in sums.values() for n in s.clients})
    part = np.array([[n in s.clients for n in names] for s in sums.values()], dtype=np.float64)
    seen = np.stack([s.segments["update"].astype(np.float64) for s in sums.values()])
    solved = np.linalg.lstsq(part, seen, rcond=None)[0]
    return Apart(
        means=dict(zip(names, solved, strict=True)),
        rank=int(np.linalg.matrix_rank(part)),
        rounds=len(sums),
    )


@attack(
    AttackInfo(
        id="A11",
        name="cohort_differencing",
        title="single clients' updates from sums over changing cohorts",
        paper="Lam et al. 2021, arXiv 2106.06089",
        needs=(frozenset({"AGG", "MR"}), frozenset({"IND"})),
        mapping=SECURE_AGGREGATION,
    )
)
class CohortDifferencing(Attack):
    """The attack that estimates every client's mean update."""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> Apart:
        """Return an estimate of every client's mean update."""
        if len(view.sums) < 2:
            raise NotApplicable("needs the sums of two rounds or more")
        sums = {r: _of_others(view, r) for r in view.sums}
        if len({frozenset(s.clients) for s in sums.values()}) == 1:
            raise NotApplicable("cohorts never change: the same clients took part in every sum")
        return disaggregate(sums)

    def score(self, guess: Apart, answer: Truth) -> tuple[Estimate, ...]:
        """Return the AUC with which cosines tell whose mean update each estimate is, part by part.

        Cosines of an estimate with its own client's true mean update must exceed those with other clients'.
        """
        names = [n for n in guess.means if n in answer.clients]
        if len(names) < 2:
            raise NotApplicable("fewer than two honest clients")
        true = {n: np.mean([d.update for d in answer.clients[n].rounds.values()], axis=0) for n in names}
        cosines, same_client = [], []
        # without the common part of all clients, which tells none of them apart
        estimate_mean = np.mean([guess.means[n] for n in names], axis=0)
        true_mean = np.mean([true[n] for n in names], axis=0)
        for a in names:
            for b in names:
                x, y = guess.means[a] - estimate_mean, true[b] - true_mean
                for u, v in zip(np.array_split(x, PARTS), np.array_split(y, PARTS), strict=True):
                    scale = float(np.linalg.norm(u) * np.linalg.norm(v))
                    cosines.append(float(u @ v) / scale if scale > 1e-9 else 0.0)
                    same_client.append(a == b)
        rank = Estimate(
            metric="rank of participation over clients",
            value=guess.rank / len(guess.means),
            low=None,
            high=None,
            n=guess.rounds,
            unit="ratio",
            seeds=(0,),
            how="exact",
            nature="sampled",
        )
        # one AUC per part: pairs of one part are centred over the same clients and far from independent
        by_part, is_own = np.reshape(cosines, (-1, PARTS)), np.reshape(same_client, (-1, PARTS))
        aucs = [auc_value(by_part[:, part], is_own[:, part]) for part in range(PARTS)]
        return (over_targets(aucs, metric="auc", unit="AUC", within=(0, 1)), rank)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return the sum of the best attended round, and one more for each of its clients, without it."""
        names, rounds = truth.best_attended()
        if len(names) < 3:
            return None
        r = rounds[0]
        alone = {n: replace(truth.clients[n], rounds={r: truth.clients[n].rounds[r]}) for n in names}
        updates = {n: s.rounds[r].update for n, s in alone.items()}
        cohorts = [names, *(tuple(n for n in names if n != absent) for absent in names)]
        sums = {
            i: Sums(clients=c, segments={"update": np.sum([updates[n] for n in c], axis=0)})
            for i, c in enumerate(cohorts)
        }
        return replace_view(view, sums=sums, own={}), Truth(clients=alone)

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the same cohorts with sums of noise."""
        sums = {
            r: Sums(clients=s.clients, segments={"update": rng.standard_normal(len(s.segments["update"]))})
            for r, s in view.sums.items()
        }
        return replace_view(view, sums=sums), exam
