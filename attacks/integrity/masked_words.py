"""A11: is a single masked message uniform? Its bytes are tested, and A2 attacks its words.

Without the masks, a masked vector is uniform. A server can still read its words as numbers and attack them
as if they were an update.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, NotApplicable, Truth, replace_view
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.reconstruction.candidates import Candidates
from attacks.reconstruction.one_step import one_step_control
from attacks.reconstruction.row_spaces import spaces_of
from attacks.reconstruction.spans import LoraSpanTokens as Spans
from attacks.reconstruction.spans import Target, attack_one
from attacks.registry import attack
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View
from fedproxy_secure.secagg.ring import RingPlan, Segment, pack, quantise


def words_of(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return packed ring words, uint8 [bytes], as signed numbers: int64 [bytes * 8 // bits]."""
    width = bits // 8
    rows = packed[: len(packed) // width * width].reshape(-1, width)
    wide = np.zeros((len(rows), 4), dtype=np.uint8)
    wide[:, 4 - width :] = rows
    return np.asarray(wide.view("<i4").ravel() >> (32 - bits), dtype=np.int64)


def byte_p_value(data: np.ndarray) -> float:
    """Return the chance that uniform bytes are at least as uneven as `data`, uint8 [n].

    The test is chi-square with 255 degrees of freedom.
    """
    counts = np.bincount(data, minlength=256)
    expected = len(data) / 256
    return float(chi2.sf(np.square(counts - expected).sum() / expected, 255))


@dataclass(frozen=True, kw_only=True)
class WordsGuess:
    """A2's targets on masked words, and the p-value of the hypothesis that their bytes are uniform."""

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
    """The attack that runs A2 on the words of each masked message, read as signed numbers."""

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> WordsGuess:
        """Return A2's targets for the first messages, and the p-value of their bytes."""
        settings = view.settings
        if not view.masked or settings is None:
            raise NotApplicable("no masked message passed")
        kind = settings.adapter.kind
        chosen = sorted(view.masked.items())[: budget.pick(smoke=4, standard=8, full=32)]
        targets = []
        candidates = None
        with white_box.opened(view) as box:
            block = box.adapted[0]
            for (r, name), packed in chosen:
                budget.check()
                vector = words_of(packed, settings.protect.bits)[: settings.d].astype(np.float32)
                spaces = spaces_of(box, vector, block, kind)
                candidates = candidates or Candidates.of(view)
                targets.append(attack_one(candidates, spaces, settings, r, (name,), rng))
        data = np.concatenate([packed for _, packed in chosen])
        return WordsGuess(targets=tuple(targets), p_value=byte_p_value(data), n_bytes=len(data))

    def score(self, guess: WordsGuess, answer: Truth) -> tuple[Estimate, ...]:
        """Return A2's AUC, and the bytes' p-value."""
        estimates = Spans().score(guess.targets, answer)
        uniform = Estimate(
            metric="p-value of uniform bytes",
            value=guess.p_value,
            low=None,
            high=None,
            n=guess.n_bytes,
            unit="probability",
            seeds=(0,),
            how="chi-square over 256 byte values",
            nature="sampled",
        )
        return (estimates[0], uniform)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return a message without its mask: one SGD step on one record, quantised as under masking."""
        control = one_step_control(view, truth, records=1)
        if control is None or view.settings is None:
            return None
        bits = view.settings.protect.bits
        masked = {k: packed_update(u, bits=bits, clients=3) for k, u in control[0].updates.items()}
        return replace_view(control[0], masked=masked, updates={}), control[1]

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return a view with random bytes in place of every masked message."""
        return replace_view(view, masked=random_bytes(view, rng)), exam


def packed_update(
    update: np.ndarray, *, bits: int, clients: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """Return an update, float32 [d], as packed ring words, uint8 [bytes].

    A mask, int64 [d], is added if one is given.
    """
    clip = float(np.abs(update).max()) + 1e-9
    segment = Segment(name="update", length=len(update), clip=clip)
    plan = RingPlan(bits=bits, clients=clients, segments=(segment,))
    words = quantise(plan, {"update": update}).words
    if mask is not None:
        words = ((words.astype(np.int64) + mask) % 2**bits).astype(plan.word_type)
    return np.frombuffer(pack(plan, words), dtype=np.uint8)


def random_bytes(view: View, rng: np.random.Generator) -> dict[tuple[int, str], np.ndarray]:
    """Return random bytes in the place of every masked message."""
    return {k: rng.integers(0, 256, size=len(v), dtype=np.uint8) for k, v in view.masked.items()}
