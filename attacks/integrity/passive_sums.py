"""A11: what a server that follows the protocol gets beyond one sum.

`masked_words`         a masked message alone: is it uniform? Its bytes, and A2 on its words.
`sign_counts`          H-TIES at granularity `coordinate` counts signs: where one client alone stands on a
                       side its value is known, where all stand on one every client's sign is.
`cohort_differencing`  cohorts that differ from round to round: sums are taken apart by least squares over
                       who took part, as far as clients send alike from round to round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, NotApplicable, Truth, attack, replace_view
from attacks.reconstruction.sequences import one_step_control
from attacks.reconstruction.spans import Candidates, Target, attack_one, spaces_of
from attacks.reconstruction.spans import LoraSpanTokens as Spans
from attacks.statistics import auc_estimate, share
from fedproxy_secure.record.view import Sums, View
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.secagg.granularity import unpack_signs

PARTS = 32  # of an update, judged one by one
SECURE_AGGREGATION = (
    ("MITRE ATLAS", "5", "AML.T0024.001"),
    ("NIST AI RMF", "1.0", "MEASURE 2.7"),
)


def byte_p_value(data: np.ndarray) -> float:
    """Chance that uniform bytes are as uneven as `data`, uint8 [n], or more (chi-square, 255 freedoms)."""
    counts = np.bincount(data, minlength=256)
    expected = len(data) / 256
    return float(chi2.sf(np.square(counts - expected).sum() / expected, 255))


@dataclass(frozen=True, kw_only=True)
class WordsGuess:
    """A2's targets on masked words, and the p-value of their bytes' being uniform."""

    targets: tuple[Target, ...]
    p_value: float
    n_bytes: int


@attack(
    AttackInfo(
        id="A11",
        name="masked_words",
        title="tokens from single masked messages",
        paper="Bonawitz et al. 2017: a masked vector is uniform",
        needs=(frozenset({"MOD"}),),
        mapping=SECURE_AGGREGATION,
    )
)
class MaskedWords(Attack):
    """A2 on the words of each masked message, read as signed numbers."""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> WordsGuess:
        """Attack the first messages of the first round."""
        settings = view.settings
        box = white_box.load(view)
        assert settings is not None
        vectors = [(r, name, w) for (r, name), w in sorted(view.masked.items())]
        plain = [(r, name, u) for (r, name), u in sorted(view.updates.items())]
        if not vectors and not plain:
            raise NotApplicable("no masked message passed")
        dtype = {16: "<i2", 32: "<i4"}.get(settings.protect.bits)
        if vectors and dtype is None:
            raise NotApplicable("words of 24 bits are not read")
        most = budget.pick(smoke=4, standard=8, full=32)
        targets = []
        candidates = None
        for r, name, raw in (plain or vectors)[:most]:
            budget.check()
            vector = raw
            if not plain:
                words = raw.tobytes()[: settings.d * settings.protect.bits // 8]
                vector = np.frombuffer(words, dtype=dtype).astype(np.float32)
            spaces = spaces_of(box, vector, 0, settings.adapter.kind)
            candidates = candidates or Candidates.of(box.token_inputs(), spaces.maps)
            targets.append(attack_one(candidates, spaces, settings, r, (name,), rng))
        data = np.concatenate([w for _, _, w in vectors[:most]]) if vectors else np.zeros(0, np.uint8)
        p = byte_p_value(data) if len(data) else 0.0
        return WordsGuess(targets=tuple(targets), p_value=p, n_bytes=len(data))

    def score(self, guess: WordsGuess, answer: Truth) -> tuple[Estimate, ...]:
        """A2's AUC, and the bytes' p-value."""
        found = Spans().score(guess.targets, answer)
        uniform = Estimate(
            metric="p-value of uniform bytes",
            value=guess.p_value,
            low=None,
            high=None,
            n=max(guess.n_bytes, 1),
            unit="probability",
            seeds=(0,),
            how="chi-square over 256 byte values",
        )
        return (found[0], uniform)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """In the masked message's place an update as it is: one SGD step on 16 records."""
        control = one_step_control(view, truth, records=16)
        return None if control is None else (replace_view(control[0], masked={}), control[1])

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Random bytes."""
        masked = {
            k: rng.integers(0, 256, size=len(v), dtype=np.uint8).astype(np.uint8)
            for k, v in view.masked.items()
        }
        updates = {k: rng.permutation(v) for k, v in view.updates.items()}
        return replace_view(view, masked=masked, updates=updates), exam


@dataclass(frozen=True, kw_only=True)
class SignsGuess:
    """Per round: coordinates at which one client's value, or every client's sign, is named.

    `lone`, `unanimous`: counts; `named`: (coordinates, values as named) of lone contributors.
    """

    coordinates: int
    lone: int
    unanimous: int
    named: tuple[tuple[int, np.ndarray, np.ndarray], ...]


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
    """Reads P = (A + S) / 2 and N = (A - S) / 2 where a side has one client."""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> SignsGuess:
        """All coordinates of all rounds."""
        settings = view.settings
        if settings is None or not view.sums:
            raise NotApplicable("this view holds no sums")
        lone = unanimous = total = 0
        named = []
        for r, sums in sorted(view.sums.items()):
            d = settings.d
            total += d
            if "signs" not in sums.segments:
                continue
            clients = len(sums.clients)
            words = sums.segments["signs"].astype(np.int64)
            plus, minus = unpack_signs(words, clients=clients, bits=settings.protect.bits, d=d)
            s = sums.segments["update"].astype(np.float64)
            a = sums.segments["magnitude"].astype(np.float64)
            single_plus, single_minus = plus == 1, minus == 1
            at = np.flatnonzero(single_plus | single_minus)
            value = np.where(single_plus, (a + s) / 2, -(a - s) / 2)
            lone += len(at)
            unanimous += int(((plus == clients) | (minus == clients)).sum())
            named.append((r, at, value[at]))
        return SignsGuess(coordinates=total, lone=lone, unanimous=unanimous, named=tuple(named))

    def score(self, guess: SignsGuess, answer: Truth) -> tuple[Estimate, ...]:
        """Shares of all coordinates; a named value counts if some client's is within 1 % of its spread."""
        right = 0
        for r, at, values in guess.named:
            updates = np.stack([s.rounds[r].update for s in answer.clients.values() if r in s.rounds])
            scale = 0.01 * updates.std() + 1e-9
            right += int((np.abs(updates[:, at] - values).min(axis=0) < scale).sum())
        n = guess.coordinates
        return (
            share(right, n, metric=SignCounts.info.headline, seed=0),
            share(guess.lone, n, metric="share of coordinates with a lone contributor", seed=0),
            share(guess.unanimous, n, metric="share of coordinates with unanimous signs", seed=0),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Sums as granularity `coordinate` would have revealed them."""
        if view.settings is None or len(truth.clients) < 2:
            return None
        names = tuple(truth.clients)
        rounds = set.intersection(*(set(s.rounds) for s in truth.clients.values()))
        made = {r: _coordinate_sums(names, truth, r, view.settings.protect.bits) for r in sorted(rounds)}
        return replace_view(view, sums=made), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Sums without counts, as `block` and plain masking reveal them."""
        bare = {
            r: Sums(clients=s.clients, segments={"update": s.segments["update"]})
            for r, s in view.sums.items()
        }
        return replace_view(view, sums=bare), exam


def _coordinate_sums(names: tuple[str, ...], truth: Truth, round_number: int, bits: int) -> Sums:
    updates = [truth.clients[n].rounds[round_number].update for n in names]
    plus = np.sum([u > 0 for u in updates], axis=0)
    minus = np.sum([u < 0 for u in updates], axis=0)
    width = len(names).bit_length()
    per_word = bits // (2 * width)
    padded = np.zeros(-(-len(plus) // per_word) * per_word, dtype=np.int64)
    padded[: len(plus)] = plus + (minus.astype(np.int64) << width)
    words = (padded.reshape(-1, per_word) << (2 * width * np.arange(per_word))).sum(axis=1)
    return Sums(
        clients=names,
        segments={
            "update": np.sum(updates, axis=0),
            "magnitude": np.sum([np.abs(u) for u in updates], axis=0),
            "signs": words,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Each client's mean update as least squares has it, [d]; `rank` of the participation matrix."""

    means: dict[str, np.ndarray]
    rank: int
    rounds: int


def disaggregate(sums: dict[int, Sums]) -> Apart:
    """Least squares over who took part: `sums[r] = P[r] @ updates`; identifiable iff rank(P) = clients."""
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
    """Which estimate belongs to which client?"""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> Apart:
        """Every client's mean update."""
        if len(view.sums) < 2:
            raise NotApplicable("needs the sums of two rounds or more")
        return disaggregate(dict(view.sums))

    def score(self, guess: Apart, answer: Truth) -> tuple[Estimate, ...]:
        """AUC of the cosine of estimates and true mean updates: own pairs over others', part by part."""
        names = [n for n in guess.means if n in answer.clients]
        if len(names) < 2:
            raise NotApplicable("fewer than two honest clients")
        true = {n: np.mean([d.update for d in answer.clients[n].rounds.values()], axis=0) for n in names}
        cosines, own = [], []
        # what all have in common tells nobody apart
        estimate_mean = np.mean([guess.means[n] for n in names], axis=0)
        true_mean = np.mean([true[n] for n in names], axis=0)
        for a in names:
            for b in names:
                x, y = guess.means[a] - estimate_mean, true[b] - true_mean
                for u, v in zip(np.array_split(x, PARTS), np.array_split(y, PARTS), strict=True):
                    scale = float(np.linalg.norm(u) * np.linalg.norm(v))
                    cosines.append(float(u @ v) / scale if scale > 1e-9 else 0.0)
                    own.append(a == b)
        rank = Estimate(
            metric="rank of participation over clients",
            value=guess.rank / len(guess.means),
            low=None,
            high=None,
            n=guess.rounds,
            unit="ratio",
            seeds=(0,),
            how="exact",
        )
        return (auc_estimate(np.array(cosines), np.array(own), metric="auc", seed=0), rank)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """One more sum for every client left out."""
        names = tuple(truth.clients)
        if len(names) < 3:
            return None
        rounds = set.intersection(*(set(s.rounds) for s in truth.clients.values()))
        r = min(rounds)
        updates = {n: truth.clients[n].rounds[r].update for n in names}
        cohorts = [names, *(tuple(n for n in names if n != gone) for gone in names)]
        made = {
            i: Sums(clients=c, segments={"update": np.sum([updates[n] for n in c], axis=0)})
            for i, c in enumerate(cohorts)
        }
        return replace_view(view, sums=made), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """The same cohorts, sums of noise."""
        made = {
            r: Sums(clients=s.clients, segments={"update": rng.standard_normal(len(s.segments["update"]))})
            for r, s in view.sums.items()
        }
        return replace_view(view, sums=made), exam
