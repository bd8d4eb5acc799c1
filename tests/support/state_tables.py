"""Clients of the model by number, what each may be sent next, and states under other names of clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.support.client_model import (
    Answer,
    Client,
    Message,
    Need,
    Pin,
    Session,
    World,
    decide,
    messages,
    needs,
)

NOTHING, ADVERTISED, DEALT, SIGNED = range(4)  # what a message needs of others
_NEEDS = {"advertise": ADVERTISED, "share": DEALT, "confirm": SIGNED}


@dataclass(frozen=True, kw_only=True)
class State:
    """Every honest client, and the sums that earlier attempts gave away (by support)."""

    clients: tuple[Client, ...]
    before: frozenset[int] = frozenset()


class Table:
    """All that client `me` can become from `roots`, by number.

    Arrays have a row per number. `after`, `need`, `attempt`, `names`, `code` [rows, moves]: for each
    message that it accepts its number afterwards (-1: no such message), and what it needs of which clients.
    `advertised`, `dealt` [rows, attempts], `signed` [rows, attempts, 2]: what it gives to others' messages.
    `hears` [rows, attempts], `rests` [rows]: which of `heard`, and of `rest`, belong to it.
    """

    def __init__(
        self, world: World, me: int, roots: Sequence[Client], codes: dict[tuple[int, int], int]
    ) -> None:
        self.clients: list[Client] = list(roots)
        self.index = {client: i for i, client in enumerate(self.clients)}
        self._codes = codes
        self.moves: list[list[tuple[int, Message, Need | None]]] = []
        sendable = list(messages(world))
        for client in self.clients:  # grows
            row = []
            for message in sendable:
                after = decide(world, me, client, message)
                if after is not None:
                    row.append((self._number(after), message, needs(world, client, message)))
            self.moves.append(row)
        self._lay_out_moves()
        self._lay_out_answers(world)

    def _number(self, client: Client) -> int:
        if client not in self.index:
            self.index[client] = len(self.clients)
            self.clients.append(client)
        return self.index[client]

    def _code(self, inbox: int, survivors: int) -> int:
        return self._codes.setdefault((inbox, survivors), len(self._codes) + 1)

    def _lay_out_moves(self) -> None:
        shape = (len(self.clients), max(map(len, self.moves)))
        self.after = np.full(shape, -1)
        self.need, self.attempt, self.names, self.code = (np.zeros(shape, np.int64) for _ in range(4))
        for i, row in enumerate(self.moves):
            for k, (after, message, need) in enumerate(row):
                self.after[i, k], self.attempt[i, k] = after, message.attempt
                if need is not None:
                    self.need[i, k], self.names[i, k] = _NEEDS[need.step], need.names
                    if need.step == "confirm":
                        self.names[i, k] = need.survivors
                        self.code[i, k] = self._code(need.names, need.survivors)

    def _lay_out_answers(self, world: World) -> None:
        shape = (len(self.clients), len(world.attempts))
        self.advertised, self.dealt, self.hears = (np.zeros(shape, np.int64) for _ in range(3))
        self.signed, self.rests = np.zeros((*shape, 2), np.int64), np.zeros(shape[0], np.int64)
        heard: dict[frozenset[Answer], int] = {}
        rest: dict[Client, int] = {}
        for i, client in enumerate(self.clients):
            self.rests[i] = rest.setdefault(at_rest(client), len(rest))
            for a, said in enumerate(client.said):
                self.hears[i, a] = heard.setdefault(telling(world, said), len(heard))
                signed = [self._code(s.names, s.survivors) for s in said if s.step == "confirm"]
                self.signed[i, a, : len(signed)] = signed
                for answer in said:
                    self.advertised[i, a] |= answer.step == "advertise"
                    self.dealt[i, a] |= answer.names if answer.step == "share" else 0
        self.heard, self.rest = list(heard), list(rest)


def telling(world: World, said: frozenset[Answer]) -> frozenset[Answer]:
    """The answers that bear on what is learned: vectors, shares, and shares dealt to corrupted clients."""
    dealt = [a._replace(names=a.names & world.traitors) for a in said if a.step == "share"]
    return frozenset(a for a in said if a.step in ("mask", "unmask")) | {a for a in dealt if a.names}


def at_rest(client: Client) -> Client:
    """What matters of a client once its attempts are over."""
    return Client(sessions=(None,), pins=client.pins, said=(frozenset[Answer](),), run=client.run)


def keeps(world: World, names: Sequence[int]) -> bool:
    """Whether every attempt stays what it is under other names."""
    return all(
        moved(world, clients, names) == clients for a in world.attempts for clients in (a.cohort, a.changed)
    )


def moved(world: World, clients: int, names: Sequence[int]) -> int:
    """A set of clients under other names: `names[i]` for honest client i."""
    return clients & world.traitors | sum(1 << names[i] for i in range(world.honest) if clients >> i & 1)


def renamed(world: World, client: Client, names: Sequence[int]) -> Client:
    """A client under other names."""

    def answer(a: Answer) -> Answer:
        return Answer(a.step, moved(world, a.names, names), moved(world, a.survivors, names))

    def session(s: Session | None) -> Session | None:
        return s and Session(s.done, *(moved(world, clients, names) for clients in s[1:]))

    return client._replace(
        sessions=tuple(map(session, client.sessions)),
        pins=tuple(Pin(*(moved(world, clients, names) for clients in pin)) for pin in client.pins),
        said=tuple(frozenset(map(answer, said)) for said in client.said),
        pending=client.pending
        and (client.pending[0], answer(client.pending[1]), session(client.pending[2])),
    )


def renamed_sums(world: World, sums: frozenset[int], names: Sequence[int]) -> frozenset[int]:
    """Supports under other names; changed vectors are those above the honest clients' own."""
    own, h = (1 << world.honest) - 1, world.honest
    return frozenset(moved(world, s & own, names) | moved(world, s >> h, names) << h for s in sums)


def spelled(client: Client) -> str:
    """A client as text, the same for equal ones."""
    return repr(client._replace(said=tuple(tuple(sorted(answers)) for answers in client.said)))  # type: ignore[arg-type]


def smallest_name(world: World, state: State, names: Sequence[Sequence[int]]) -> State:
    """One of a state's names, the same for all of them."""
    under = (renamed_state(world, state, p) for p in names)
    return min(under, key=lambda s: (sorted(s.before), [spelled(c) for c in s.clients]))


def renamed_state(world: World, state: State, names: Sequence[int]) -> State:
    """A state under other names."""
    clients = list(state.clients)
    for i, client in enumerate(state.clients):
        clients[names[i]] = renamed(world, client, names)
    return State(clients=tuple(clients), before=renamed_sums(world, state.before, names))
