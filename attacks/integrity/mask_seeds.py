"""A11: a mask whose seed is small, such as a counter, is found by trying the smallest seeds.

Flower's SecAgg+ folds a shared key of 32 bytes into 32 bits and seeds a Mersenne Twister with them. Of two
clients one adds the mask that they share, and the other subtracts it. Sometimes only one mask hides a
vector from the server, because all but one of a client's peers work with the server or dropped out. Then
2^32 tries, each of both signs, remove it, and far fewer if seeds are small: a counter, the number of a
round, a key of which few bits are left. A seed is right if every word, without its mask, is small enough to
be an update: with a wrong seed a word is small only with chance `1 / clients`, and 64 words of each message
are checked.

**Covered** are the seeds below 2^10, 2^14 or 2^18 by profile, added and subtracted: at most 1 in 16,384 of
those of 32 bits; the finding gives the part. So RESISTED says that none of these opens a message. It says
nothing about larger seeds: of masks with seeds drawn from all of 32 bits this search, too, opens next to
none, and 2^32 tries would open them all.

This protocol's masks come from 256-bit keys, which no try fits. **Known-bad**: the positive control is
updates each under one mask of SecAgg+'s kind whose seed is below 2^10; every other mask is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Inconclusive,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.integrity.masked_words import packed_update, random_bytes, words_of
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.judging.power import SharePower
from attacks.reconstruction.vectors import as_sent
from attacks.registry import attack
from attacks.statistics import share
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.record.view import PublicSettings, View

WORDS = 64  # checked in each message
MESSAGES = 8
FEWEST_TRIED = 1 << 10  # seeds that the smallest profile tries; known-bad seeds are drawn from these
ALL_SEEDS = 1 << 32
_TWISTER = np.random.RandomState()
OPENED = 0.99  # cosine with the true update above which a vector counts as read


def seed_stream(seed: int, bits: int, words: int) -> np.ndarray:
    """Return the mask that a SecAgg+ client makes of a 32-bit seed, int64 [words] in [0, 2^bits - 2]."""
    _TWISTER.seed(seed)  # a new generator would first draw entropy, which takes longer than the rest
    return _TWISTER.randint(0, 2**bits - 1, words, dtype=np.int64)


def masked_by_seed(update: np.ndarray, seed: int, *, bits: int, clients: int, sign: int = 1) -> np.ndarray:
    """Quantise an update, float32 [d], mask it with the stream of one seed, and return uint8 [bytes].

    With `sign` -1 the mask is subtracted.
    """
    mask = sign * seed_stream(seed, bits, len(update))
    return packed_update(update, bits=bits, clients=clients, mask=mask)


def search(
    firsts: np.ndarray, *, bits: int, clients: int, seeds: range, budget: Budget
) -> dict[int, tuple[int, int]]:
    """Return the seed and the sign, 1 or -1, of the mask that opens each message, by the message's index.

    Args:
        firsts: the first words of each message, int64 [n, words].
        bits: width of a word.
        clients: how many clients the sum is planned for.
        seeds: the seeds to try.
        budget: limits of the attack.
    """
    largest = 2 ** (bits - 1) // clients
    mask_of: dict[int, tuple[int, int]] = {}
    for seed in seeds:
        if seed % 256 == 0:
            budget.check()
        mask = seed_stream(seed, bits, firsts.shape[1])
        for sign in (1, -1):
            remainder = np.abs(_signed(firsts - sign * mask, bits))
            for index in np.flatnonzero((remainder <= largest).all(axis=1)):
                mask_of[int(index)] = seed, sign
    return mask_of


def _signed(words: np.ndarray, bits: int) -> np.ndarray:
    """Return ring words, int64, as signed numbers from -2^(bits - 1)."""
    return np.asarray((words + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Vectors that were read, in ring steps, int64 [d] by (round, client), and how much was tried.

    Args:
        vectors: the vectors.
        messages: number of messages tried.
        seeds: number of seeds tried.
    """

    vectors: dict[tuple[int, str], np.ndarray]
    messages: int
    seeds: int


@attack(
    AttackInfo(
        id="A11",
        name="mask_seed_search",
        title="masked vectors that one mask hides, if its seed is small",
        paper="ours: Flower's SecAgg+ seeds masks with 32 bits",
        needs=(frozenset({"AGG", "MOD"}),),
        headline="share of masked messages opened by a small seed",
        chance=0.0,
        margin=0.01,
        mapping=SECURE_AGGREGATION,
    )
)
class MaskSeedSearch(Attack):
    """The attack that tries seeds from 0 upwards on all messages at once."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return no question; the answer is what clients sent, trimmed and weighed."""
        return Exam(answer=as_sent(view, truth))

    def guess(self, view: View, question: object, budget: Budget, rng: np.random.Generator) -> Opened:
        """Return the messages that some seed opens."""
        settings = view.settings
        if not view.masked or settings is None:
            raise NotApplicable("no masked message passed")
        chosen = dict(sorted(view.masked.items())[:MESSAGES])
        bits, clients = settings.protect.bits, _clients(settings)
        words = [words_of(raw, bits)[: settings.d] for raw in chosen.values()]
        tried = budget.pick(smoke=FEWEST_TRIED, standard=1 << 14, full=1 << 18)
        mask_of = search(
            np.stack([w[:WORDS] for w in words]),
            bits=bits,
            clients=clients,
            seeds=range(tried),
            budget=budget,
        )
        keys = list(chosen)
        read = {}
        for index, (seed, sign) in mask_of.items():
            mask = sign * seed_stream(seed, bits, settings.d)
            read[keys[index]] = _signed(words[index] - mask, bits)
        return Opened(vectors=read, messages=len(chosen), seeds=tried)

    def score(self, guess: Opened, answer: Truth) -> tuple[Estimate, ...]:
        """Return the share of messages opened, of those that can be judged, and which seeds were tried.

        A vector counts as read if it points in the direction of the client's update. Raises `Inconclusive`
        if no vector does, and for some of them the update is not known.
        """
        hits = unknown = 0
        for (r, name), vector in guess.vectors.items():
            state = answer.clients.get(name)
            if state is None or r not in state.rounds:
                unknown += 1  # nobody kept the update of this message
                continue
            true = state.rounds[r].update.astype(np.float64)
            hits += bool(vector @ true > OPENED * np.linalg.norm(vector) * np.linalg.norm(true))
        if unknown and not hits:
            raise Inconclusive(
                f"messages opened whose update nobody kept: {unknown}; nothing to compare with"
            )
        opened = share(hits, guess.messages - unknown, metric=self.info.headline)
        below = f"seed below {guess.seeds:,}"
        return (
            replace(
                opened,
                how=f"{opened.how}; {below} alone",
                power=SharePower(n=opened.n, of=f"messages, if their masks have a {below}"),
            ),
            counted(guess.seeds, metric="seeds tried", unit="count", seeds=(0,)),
            counted(
                guess.seeds / ALL_SEEDS, metric="seeds tried over all of 32 bits", unit="ratio", seeds=(0,)
            ),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return the same clients' updates, each masked with one seed below `FEWEST_TRIED`.

        Masks are added and subtracted in turn.
        """
        settings = view.settings
        if settings is None:
            return None
        rng = np.random.default_rng(settings.seed)
        sent = as_sent(view, truth).clients
        masked: dict[tuple[int, str], np.ndarray] = {}
        for r, name in sorted(view.masked)[:MESSAGES]:
            if name in sent and r in sent[name].rounds:
                masked[r, name] = masked_by_seed(
                    sent[name].rounds[r].update,
                    int(rng.integers(FEWEST_TRIED)),
                    bits=settings.protect.bits,
                    clients=_clients(settings),
                    sign=-1 if len(masked) % 2 else 1,
                )
        return (replace_view(view, masked=masked), truth) if masked else None

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return random bytes in place of every masked message."""
        return replace_view(view, masked=random_bytes(view, rng)), exam


def _clients(settings: PublicSettings) -> int:
    return max(3, settings.clients_a_round)
