"""What a server can compute of clients' vectors: exact linear algebra over the masks that it does not know.

In one attempt a masked vector is `x_i + b_i + the masks of i's pairs`, one equation for each answer. A self
mask `b_i` is known from `threshold` shares of it, all masks of a pair from `threshold` shares of one end's
mask key or because one end is corrupted; fewer shares say nothing (Shamir). Combinations of the equations
in which every unknown mask cancels are what the server learns; everything else is hidden by a uniform word.

The ring is Z / 2^bits. The unknown masks of pairs enter as the edges of a directed graph do, so that what
cancels over the ring cancels over the rationals, and the other way round. For every case it is checked that
combinations modulo 2 and modulo a large prime have the same supports.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.support.client_model import Answer, Attempt, World

PRIME = 2**61 - 1
Basis = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`supports`: each sum that can be computed, as a set of clients. `wrong`: what is wrong, or empty."""

    supports: frozenset[int]
    wrong: str = ""


def learned(world: World, attempt: Attempt, said: Sequence[Collection[Answer]]) -> Basis:
    """A basis of the combinations of honest vectors that one attempt gives away, in reduced form.

    `said`: by honest client, its answers in this attempt. Columns are the honest clients' vectors, then
    their changed vectors (`Attempt.changed`). Entries are -1, 0 or 1, or residues modulo `PRIME`.
    """
    known_self, known_key = _reconstructed(world, attempt, said)
    open_ = known_key | world.traitors
    pairs = [
        pair for pair in combinations(range(world.clients), 2) if not any(open_ >> one & 1 for one in pair)
    ]
    hidden = [i for i in range(world.honest) if not known_self >> i & 1]
    rows = []
    for i, answers in enumerate(said):
        for answer in answers:
            if answer.step != "mask":
                continue
            row = [int(i == one) for one in hidden]
            row += [
                (1 if i == a else -1) if i in (a, b) and answer.names >> (a + b - i) & 1 else 0
                for a, b in pairs
            ]
            vectors = [0] * (2 * world.honest)
            vectors[i + world.honest * (attempt.changed >> i & 1)] = 1
            rows.append(row + vectors)
    masks = len(hidden) + len(pairs)
    large, small = _free_of(rows, masks, PRIME), _free_of(rows, masks, 2)
    assert [[v % PRIME and 1 for v in r] for r in large] == [list(r) for r in small]
    return large


def judge(world: World, bases: Collection[Basis], *, least: int, disjoint: bool = False) -> Verdict:
    """Whether all that was learned is one sum of at least `least` honest vectors, or nothing.

    `disjoint`: sums of different clients are allowed beside each other, so that no client is in two.
    """
    rows = _reduced([list(row) for basis in bases for row in basis], PRIME)
    supports = frozenset(sum(1 << i for i, v in enumerate(row) if v) for row in rows)
    if any(v not in (0, 1) for row in rows for v in row):
        return Verdict(supports=supports, wrong="a combination that is no sum")
    if any(support.bit_count() < least for support in supports):
        return Verdict(supports=supports, wrong=f"a sum of fewer than {least} honest clients")
    clients = [(s | s >> world.honest) & (1 << world.honest) - 1 for s in supports]
    if len(supports) > 1 and not (disjoint and sum(clients) == _union(clients)):
        return Verdict(supports=supports, wrong="two different sums")
    return Verdict(supports=supports)


def _reconstructed(world: World, attempt: Attempt, said: Sequence[Collection[Answer]]) -> tuple[int, int]:
    """Honest clients whose self mask, and whose mask key, are known."""
    released = [
        (r, a.names, a.survivors) for r, answers in enumerate(said) for a in answers if a.step == "unmask"
    ]
    books = [_union([a.names for a in answers if a.step == "share"]) for answers in said]
    selves = keys = 0
    for i in range(world.honest):
        held = (books[i] & world.traitors).bit_count()
        of_self = {r for r, _, survivors in released if survivors >> i & 1}
        of_key = {r for r, inbox, survivors in released if (inbox & ~survivors) >> i & 1}
        selves |= (len(of_self) + held >= attempt.threshold) << i
        keys |= (len(of_key) + held >= attempt.threshold) << i
    return selves, keys


def _free_of(rows: list[list[int]], masks: int, prime: int) -> Basis:
    """The combinations of rows whose first `masks` entries are 0; their other entries, reduced."""
    left = _reduced([list(row) for row in rows], prime)
    return _reduced([list(row[masks:]) for row in left if not any(row[:masks])], prime)


def _reduced(rows: list[list[int]], prime: int) -> Basis:
    """Reduced row echelon form over a prime field, without rows of zeros."""
    done = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((r for r in range(done, len(rows)) if rows[r][column] % prime), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        inverse = pow(rows[done][column], -1, prime)
        rows[done] = [v * inverse % prime for v in rows[done]]
        for r, row in enumerate(rows):
            if r != done and row[column]:
                factor = row[column]
                rows[r] = [(v - factor * w) % prime for v, w in zip(row, rows[done], strict=True)]
        done += 1
    return tuple(tuple(v % prime for v in row) for row in rows[:done])


def _union(sets: Collection[int]) -> int:
    union = 0
    for one in sets:
        union |= one
    return union
