"""All states that a server can bring the clients of one round into, breadth first, and what it knows there.

A state is what each honest client has answered and may still answer (`client_model`). Every message adds to
what was answered or granted, so a state has one depth, and no layer meets a state of an earlier one. States
that differ by the names of honest clients are one.

`explore` interleaves all attempts of a world freely. `explore_in_turn` plays attempts one after another and
keeps between them only what matters later: the sums that were learned, and what clients' journals hold. It
reaches the same knowledge, because

  - what a client answers in one attempt rests on answers in that attempt, and on its own journal, which
    earlier attempts alone have written: moving an earlier attempt's answers to the front changes none;
  - masks of different attempts are different, so two attempts give away the span of what each gives.

That both agree is also tested, where both can be run.

Enumerated: which clients each client is shown at every step, all sets that pass its checks; the order of
messages; when another attempt begins; with `split`, the time between a step's grant and its answer's
leaving. Not enumerated: forged signatures and shares (taken as impossible); refused messages (they only end
attempts); the contents of honest messages, which follow from the sets; what corrupted clients choose (they
give the server all that they hold, and sign whatever it likes); other rounds; CKKS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from tests.support.client_model import Attempt, Message, World, fresh
from tests.support.state_search import Knowledge, Space
from tests.support.state_tables import State, at_rest, renamed_sums

CHUNK = 1 << 17  # states expanded at once
MERGED = 1 << 23  # states kept twice at most, so that large layers fit the memory
_SHOWN = {"share": "key book", "mask": "inbox", "confirm": "survivors", "unmask": "survivors"}


class Sent(NamedTuple):
    """A message, to whom, and the set of clients that it shows, or rests on."""

    client: int
    message: Message
    shown: int

    def __str__(self) -> str:
        line = f"attempt {self.message.attempt}, client {self.client}: {self.message.kind}"
        shown = ", ".join(str(i) for i in range(self.shown.bit_length()) if self.shown >> i & 1)
        return line if self.message.kind not in _SHOWN else f"{line}, {_SHOWN[self.message.kind]} {shown}"


@dataclass(kw_only=True)
class Found:
    """`states` and `messages`: how many were met. `outcomes`: all that was ever learned, by support.

    `wrong`: how the property fails, or empty; `trace` is then the shortest way there, in these `attempts`.
    """

    states: int = 0
    messages: int = 0
    outcomes: set[frozenset[int]] = field(default_factory=set)
    wrong: str = ""
    attempts: tuple[Attempt, ...] = ()
    trace: tuple[Sent, ...] = ()

    def __str__(self) -> str:
        told = f"{self.states} states, {self.messages} messages"
        return "\n".join([f"{told}: {self.wrong}", *map(str, self.trace)]) if self.wrong else told


def explore(world: World, *, disjoint: bool = False) -> Found:
    """All interleavings of the world's attempts. `disjoint`: see `leakage.judge`."""
    found = Found(attempts=world.attempts)
    root = State(clients=(fresh(world),) * world.honest)
    search = _Search(world, world, {root: 0}, disjoint=disjoint)
    end = search.run(found)
    if end is not None:
        found.trace = tuple(search.trace(end, None)[0])
    return found


def explore_in_turn(world: World, *, most: int | None = None, disjoint: bool = False) -> Found:
    """At most `most` attempts one after another, each any of the world's; None: until nothing new comes."""
    found = Found()
    root = State(clients=(at_rest(fresh(world)),) * world.honest)
    met: dict[State, tuple[_Search, _Place]] = {}  # where each rest was first met
    new, rounds = {root: 0}, 0
    while new and rounds != most and not found.wrong:
        rests: dict[State, int] = {}
        ends = []
        for attempt in world.attempts:
            search = _Search(replace(world, attempts=(attempt,)), world, new, disjoint=disjoint)
            end = search.run(found)
            if end is not None:
                ends.append((search, end))
            for rest, place in search.rests.items():
                if rest != root and rest not in met:
                    met[rest], rests[rest] = (search, place), place.depth
        if ends:
            search, end = min(ends, key=lambda e: e[1].depth)
            found.attempts, found.trace, _ = _trace_through(search, end, met)
        new, rounds = rests, rounds + 1
    return found


class _Place(NamedTuple):
    depth: int
    state: int


class _Search:
    """Layers of one space, from its roots at their depths."""

    def __init__(self, world: World, whole: World, roots: Mapping[State, int], *, disjoint: bool) -> None:
        self.space = Space(world, whole, list(roots))
        least = min(a.threshold for a in whole.attempts) - world.corrupted
        self.knowledge = Knowledge(self.space, least=least, disjoint=disjoint)
        packed = self.space.canonical(np.array([self.space.pack(r) for r in roots], dtype=np.uint64))
        self.root_of = dict(zip(packed.tolist(), roots, strict=True))
        self._sources = {packed: roots[root] for packed, root in self.root_of.items()}
        self._layers: dict[int, np.ndarray] = {}
        self.rests: dict[State, _Place] = {}

    def run(self, found: Found) -> _Place | None:
        """Fill the layers; the first state found wrong."""
        depth, layer = 0, np.array([], dtype=np.uint64)
        while len(layer) or depth <= max(self._sources.values()):
            roots = [packed for packed, at in self._sources.items() if at == depth]
            layer = self._layers[depth] = np.union1d(layer, np.array(roots, dtype=np.uint64))
            found.states += len(layer)
            wrong = self._look(depth, layer, found)
            if wrong is not None:
                return wrong
            layer, depth = self._following(layer, found), depth + 1
        return None

    def _following(self, layer: np.ndarray, found: Found) -> np.ndarray:
        """The states after those of a layer, each once, in order."""
        met = [np.array([], dtype=np.uint64)]
        for states in _chunks(layer):
            after = [self.space.canonical(moved) for _, _, moved in self.space.moves(states)]
            found.messages += sum(map(len, after))
            met.append(np.unique(np.concatenate([met[0][:0], *after])))
            if sum(map(len, met[1:])) > len(met[0]) + MERGED:
                met = [np.unique(np.concatenate(met))]
        return np.unique(np.concatenate(met))

    def _look(self, depth: int, layer: np.ndarray, found: Found) -> _Place | None:
        """Judge each state, and note what rests of it."""
        for states in _chunks(layer):
            judged = self.knowledge.of(states)
            for number in np.unique(judged).tolist():
                verdict = self.knowledge.verdicts[number]
                if verdict.wrong:
                    found.wrong = verdict.wrong
                    return _Place(depth, int(states[np.argmax(judged == number)]))
                sums = (renamed_sums(self.space.world, verdict.supports, p) for p in self.space.names)
                found.outcomes.update(sums)
            self._note_rests(depth, states, judged)
        return None

    def _note_rests(self, depth: int, states: np.ndarray, judged: np.ndarray) -> None:
        tables = self.space.tables
        parts = [judged, *(t.rests[self.space.number(states, i)] for i, t in enumerate(tables))]
        rows, first = np.unique(np.stack(parts, axis=1), axis=0, return_index=True)
        for row, at in zip(rows.tolist(), first.tolist(), strict=True):
            clients = tuple(t.rest[r] for t, r in zip(tables, row[1:], strict=True))
            rest = State(clients=clients, before=self.knowledge.verdicts[row[0]].supports)
            self.rests.setdefault(self.space.smallest(rest), _Place(depth, int(states[at])))

    def way(self, end: _Place) -> list[int]:
        """The states from a root to `end`."""
        depth, way = end.depth, [end.state]
        while way[0] not in self.root_of:
            depth -= 1
            way.insert(0, self._one_before(self._layers[depth], way[0]))
        return way

    def _one_before(self, layer: np.ndarray, state: int) -> int:
        for states in _chunks(layer):
            for _, where, after in self.space.moves(states):
                hits = np.nonzero(self.space.canonical(after) == np.uint64(state))[0]
                if len(hits):
                    return int(states[where[hits[0]]])
        raise AssertionError("a state without a way to it")

    def trace(self, end: _Place, start: State | None) -> tuple[list[Sent], State]:
        """The messages that lead from `start`, a root under any names, to `end`; and what then rests."""
        way = self.way(end)
        at = way[0] if start is None else self.space.pack(start)
        sent = []
        for following in way[1:]:
            for (me, move), _, after in self.space.moves(np.array([at], dtype=np.uint64)):
                if int(self.space.canonical(after)[0]) == following:
                    client = self.space.unpack(at).clients[me]
                    message = self.space.tables[me].moves[self.space.tables[me].index[client]][move][1]
                    session = client.sessions[message.attempt]
                    asked = message.names == 0 and message.kind == "unmask" and session is not None
                    shown = session.survivors if asked and session else message.names
                    sent.append(Sent(me, message, shown))
                    at = int(after[0])
                    break
        clients = self.space.unpack(at).clients
        judged = int(self.knowledge.of(np.array([at], dtype=np.uint64))[0])
        supports = self.knowledge.verdicts[judged].supports
        return sent, State(clients=tuple(map(at_rest, clients)), before=supports)


def _trace_through(
    search: _Search, end: _Place, met: Mapping[State, tuple[_Search, _Place]]
) -> tuple[tuple[Attempt, ...], tuple[Sent, ...], State]:
    """The attempts and the messages that lead to a state, over those before its own; what then rests."""
    root = search.root_of[search.way(end)[0]]
    attempts: tuple[Attempt, ...] = ()
    earlier: tuple[Sent, ...] = ()
    start = None
    if root in met:
        attempts, earlier, start = _trace_through(*met[root], met)
    sent, rest = search.trace(end, start)
    number = len(attempts)
    renumbered = (s._replace(message=s.message._replace(attempt=number)) for s in sent)
    return (*attempts, *search.space.world.attempts), (*earlier, *renumbered), rest


def _chunks(states: np.ndarray) -> Sequence[np.ndarray]:
    return [states[start : start + CHUNK] for start in range(0, len(states), CHUNK)]
