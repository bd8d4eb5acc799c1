"""Packed states: their successors, one canonical form for equivalent ones, and what the server knows.

All arrays of states are uint64 [n]: for every honest client its number in its table, above them the number
of the sums learned before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from tests.support.client_model import Client, World
from tests.support.leakage import Basis, Verdict, judge, learned
from tests.support.state_tables import (
    ADVERTISED,
    DEALT,
    SIGNED,
    State,
    Table,
    keeps,
    renamed,
    renamed_sums,
    smallest_name,
    spelled,
)


class Space:
    """The states that `world` can reach from `roots`. Honest clients change names as in `whole`.

    `names`: the permutations of honest clients that leave every attempt of `whole` what it is.
    """

    def __init__(self, world: World, whole: World, roots: Sequence[State]) -> None:
        self.world = world
        self.names = [p for p in permutations(range(world.honest)) if keeps(whole, p)]
        befores = {renamed_sums(world, r.before, p) for r in roots for p in self.names}
        self.befores = sorted(befores, key=sorted)
        clients: list[set[Client]] = [set() for _ in range(world.honest)]
        for root in roots:
            for p in self.names:
                for i, client in enumerate(root.clients):
                    clients[p[i]].add(renamed(world, client, p))
        codes: dict[tuple[int, int], int] = {}
        self.tables = [
            Table(world, me, sorted(clients[me], key=spelled), codes) for me in range(world.honest)
        ]
        bits = max(1, (max(len(t.clients) for t in self.tables) - 1).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        self._shifts = [np.uint64(bits * i) for i in range(world.honest + 1)]
        assert bits * world.honest + len(self.befores).bit_length() <= 64
        self._renaming = [self._names_as_arrays(p) for p in self.names[1:]]

    def pack(self, state: State) -> int:
        """A state as a number."""
        packed = self.befores.index(state.before) << int(self._shifts[-1])
        for i, client in enumerate(state.clients):
            packed |= self.tables[i].index[client] << int(self._shifts[i])
        return packed

    def unpack(self, packed: int) -> State:
        """The state behind a number."""
        numbers = [packed >> int(s) & int(self._mask) for s in self._shifts[:-1]]
        return State(
            clients=tuple(t.clients[i] for t, i in zip(self.tables, numbers, strict=True)),
            before=self.befores[packed >> int(self._shifts[-1])],
        )

    def number(self, states: np.ndarray, client: int) -> np.ndarray:
        """A client's number in each state, int64 [n]."""
        return (states >> self._shifts[client] & self._mask).astype(np.int64)

    def before(self, states: np.ndarray) -> np.ndarray:
        """The number of what was learned before, int64 [n]."""
        return (states >> self._shifts[-1]).astype(np.int64)

    def canonical(self, states: np.ndarray) -> np.ndarray:
        """The smallest number among each state's names."""
        best, before = states, self.before(states)
        numbers = [self.number(states, i) for i in range(self.world.honest)]
        for p, clients, befores in self._renaming:
            other = befores[before] << self._shifts[-1]
            for i, under in enumerate(clients):
                other = other | under[numbers[i]] << self._shifts[p[i]]
            best = np.minimum(best, other)
        return best

    def smallest(self, state: State) -> State:
        """One of a state's names, the same for all of them."""
        return smallest_name(self.world, state, self.names)

    def moves(self, states: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
        """((client, its move), indices of the states that allow it, the states after it)."""
        numbers = [self.number(states, i) for i in range(self.world.honest)]
        for me, table in enumerate(self.tables):
            for move in range(table.after.shape[1]):
                where = np.nonzero(table.after[numbers[me], move] >= 0)[0]
                where = where[self._allowed(me, move, [n[where] for n in numbers])]
                if len(where):
                    after = table.after[numbers[me][where], move].astype(np.uint64)
                    kept = states[where] & ~(self._mask << self._shifts[me])
                    yield (me, move), where, kept | after << self._shifts[me]

    def _allowed(self, me: int, move: int, numbers: Sequence[np.ndarray]) -> np.ndarray:
        """Whether the others gave what client `me`'s message is made of."""
        table, mine = self.tables[me], numbers[me]
        need, attempt, names = (c[mine, move] for c in (table.need, table.attempt, table.names))
        code = table.code[mine, move][:, None]
        advertised = dealt = np.full(len(mine), self.world.traitors | 1 << me)
        missing = np.array([a.threshold for a in self.world.attempts])[attempt]
        for i, (other, at) in enumerate(zip(self.tables, numbers, strict=True)):
            advertised = advertised | other.advertised[at, attempt] << i
            dealt = dealt | (other.dealt[at, attempt] >> me & 1) << i
            missing = missing - ((other.signed[at, attempt] == code).any(axis=1) & (names >> i & 1 == 1))
        for i in range(self.world.honest, self.world.clients):
            missing = missing - (names >> i & 1)
        return np.select(
            [need == ADVERTISED, need == DEALT, need == SIGNED],
            [names & ~advertised == 0, names & ~dealt == 0, missing <= 0],
            default=True,
        )

    def _names_as_arrays(self, p: Sequence[int]) -> tuple[Sequence[int], list[np.ndarray], np.ndarray]:
        clients = [
            [self.tables[p[i]].index[renamed(self.world, c, p)] for c in table.clients]
            for i, table in enumerate(self.tables)
        ]
        befores = [self.befores.index(renamed_sums(self.world, b, p)) for b in self.befores]
        return p, [np.array(c, np.uint64) for c in clients], np.array(befores, np.uint64)


class Knowledge:
    """What a server can compute in each state of a space. `least`, `disjoint`: see `leakage.judge`."""

    def __init__(self, space: Space, *, least: int, disjoint: bool) -> None:
        self.space, self.least, self.disjoint = space, least, disjoint
        self.verdicts: list[Verdict] = []
        self._judged: dict[tuple[int, ...], int] = {}
        self._bases: list[Basis] = []
        self._learned: list[dict[int, int]] = [{} for _ in space.world.attempts]

    def of(self, states: np.ndarray) -> np.ndarray:
        """For each state the number of its verdict, int64 [n]."""
        space = self.space
        parts = [space.before(states)]
        numbers = [space.number(states, i) for i in range(space.world.honest)]
        for attempt in range(len(space.world.attempts)):
            heard = np.zeros(len(states), dtype=np.int64)
            for table, number in zip(space.tables, numbers, strict=True):
                heard = heard * len(table.heard) + table.hears[number, attempt]
            parts.append(self._learned_of(attempt, heard))
        rows, back = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)
        return np.array([self._verdict(tuple(row)) for row in rows.tolist()])[back.reshape(-1)]

    def _learned_of(self, attempt: int, heard: np.ndarray) -> np.ndarray:
        values, back = np.unique(heard, return_inverse=True)
        cache = self._learned[attempt]
        for value in values.tolist():
            if value not in cache:
                said, rest = [], value
                for table in reversed(self.space.tables):
                    rest, at = divmod(rest, len(table.heard))
                    said.insert(0, table.heard[at])
                basis = learned(self.space.world, self.space.world.attempts[attempt], said)
                if basis not in self._bases:
                    self._bases.append(basis)
                cache[value] = self._bases.index(basis)
        return np.array([cache[value] for value in values.tolist()])[back]

    def _verdict(self, key: tuple[int, ...]) -> int:
        if key not in self._judged:
            world = self.space.world
            earlier = tuple(
                tuple(support >> i & 1 for i in range(2 * world.honest))
                for support in sorted(self.space.befores[key[0]])
            )
            bases = [earlier, *(self._bases[i] for i in key[1:])]
            self._judged[key] = len(self.verdicts)
            self.verdicts.append(judge(world, bases, least=self.least, disjoint=self.disjoint))
        return self._judged[key]
