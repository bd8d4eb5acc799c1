"""A model of what one client decides in a protected round, small enough to enumerate.

Clients are numbered from 0, the honest ones first; a set of clients is an integer with one bit each. A
client is asked with a `Message` and either refuses (`decide` gives None) or goes on to another `Client`.
What a server must hold to put a message together, honest clients' signatures and sealed shares, `needs`
says: nobody can forge them.

A refused message leaves the model's client as it was. The real one is worse off for the server: a step that
was granted and failed ends the attempt. So the model answers at least as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

STEPS = ("advertise", "share", "mask", "confirm", "unmask")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at the round. `changed`: clients whose vector is another one than in the other attempts."""

    cohort: int
    threshold: int
    run: int = 0
    changed: int = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What clients hold to; each can be taken out.

    `twice`: steps that a client answers a second time, before the next one, with another message.
    `one_release`: a round is unmasked once, not only for one set (weights that an attempt may change).
    """

    twice: frozenset[str] = frozenset()
    newer: bool = True  # an attempt must be newer than all before
    one_attempt: bool = True  # beginning an attempt ends the one under way
    one_run: bool = True
    pin_cohort: bool = True
    pin_survivors: bool = True
    confirm: bool = True
    one_release: bool = False


@dataclass(frozen=True, kw_only=True)
class World:
    """`honest` and `corrupted` clients, the attempts a server may begin, in the order of their numbers.

    `split`: a step is granted first and its answer leaves later, or never if the attempt ended meanwhile.
    `whole_books`: the server shows no key book but that of the whole cohort.
    """

    honest: int
    corrupted: int
    attempts: tuple[Attempt, ...]
    rules: Rules = Rules()
    split: bool = False
    whole_books: bool = False

    @property
    def clients(self) -> int:
        """All of them."""
        return self.honest + self.corrupted

    @property
    def traitors(self) -> int:
        """The set of corrupted clients."""
        return (1 << self.clients) - (1 << self.honest)


class Answer(NamedTuple):
    """What left a client: the step, and the sets in it (key book; inbox; inbox and survivors)."""

    step: str
    names: int = 0
    survivors: int = 0


class Session(NamedTuple):
    """An attempt under way: how many steps are done, and what they were done with."""

    done: int = 0
    book: int = 0
    inbox: int = 0
    survivors: int = 0


class Pin(NamedTuple):
    """What the client's journal holds about the round in one run; 0: nothing yet."""

    cohort: int = 0
    survivors: int = 0


class Client(NamedTuple):
    """All that decides what one client answers, and what it answered.

    `begun`: attempts begun, as a set. `pending`: (attempt, answer, session after it) that was granted and
    did not leave yet. `granted`: how many messages were. Tuples hold one entry per attempt, `pins` per run.
    """

    sessions: tuple[Session | None, ...]
    pins: tuple[Pin, ...]
    said: tuple[frozenset[Answer], ...]
    begun: int = 0
    run: int = -1
    pending: tuple[int, Answer, Session | None] | None = None
    granted: int = 0


class Message(NamedTuple):
    """`kind`: begin, share, mask, confirm, unmask, or leave (the answer that was computed goes out)."""

    kind: str
    attempt: int
    names: int = 0


class Need(NamedTuple):
    """What a message is made of: of each client in `names` its part of `step` in this attempt.

    For unmask: `threshold` signatures of survivors on (`names`, `survivors`).
    """

    step: str
    names: int = 0
    survivors: int = 0


def fresh(world: World) -> Client:
    """A client that was asked nothing."""
    attempts = len(world.attempts)
    runs = 1 + max(attempt.run for attempt in world.attempts)
    return Client(sessions=(None,) * attempts, pins=(Pin(),) * runs, said=(frozenset[Answer](),) * attempts)


def messages(world: World) -> Iterator[Message]:
    """Everything a server can send to one client, sensible or not."""
    for number in range(len(world.attempts)):
        yield Message("begin", number)
        yield Message("leave", number)
        if world.rules.confirm:
            yield Message("unmask", number)
        for names in range(1 << world.clients):
            for kind in ("share", "mask", "confirm" if world.rules.confirm else "unmask"):
                yield Message(kind, number, names)


def decide(world: World, me: int, client: Client, message: Message) -> Client | None:
    """The client after a message whose parts are genuine; None if it refuses."""
    number = message.attempt
    if message.kind == "leave":
        return _left(client, number)
    made = (
        _begun(world, me, client, number) if message.kind == "begin" else _step(world, me, client, message)
    )
    if made is None:
        return None
    answer, session, after = made
    after = after._replace(granted=client.granted + 1)
    if not world.split or message.kind == "unmask":  # released in the transaction that writes it down
        return _left(after._replace(pending=(number, answer, session)), number)
    return after._replace(pending=(number, answer, session))


def needs(world: World, client: Client, message: Message) -> Need | None:
    """What others must have answered before a server can send a message that this client accepts."""
    if message.kind == "share":
        return Need("advertise", message.names)
    if message.kind == "mask":
        return Need("share", message.names)
    session = client.sessions[message.attempt]
    if message.kind == "unmask" and world.rules.confirm and session is not None:
        return Need("confirm", session.inbox, session.survivors)
    return None


def sendable(world: World, clients: Sequence[Client], me: int, message: Message) -> bool:
    """Whether a server has what a message to client `me` is made of, after what the clients answered."""
    need = needs(world, clients[me], message)
    if need is None:
        return True
    said = [client.said[message.attempt] for client in clients]
    if need.step == "confirm":
        wanted = Answer("confirm", need.names, need.survivors)
        signers = world.traitors | sum(1 << i for i, answers in enumerate(said) if wanted in answers)
        return (signers & need.survivors).bit_count() >= world.attempts[message.attempt].threshold
    for i, answers in enumerate(said):
        if need.names >> i & 1 and i != me:
            if need.step == "advertise" and not answers:
                return False
            if need.step == "share" and not any(a.step == "share" and a.names >> me & 1 for a in answers):
                return False
    return True


def ended_by(client: Client, message: Message) -> Client:
    """The real client after a message that it refused: a step granted and failed ends the attempt."""
    under_way = [s for s in client.sessions if s is not None]
    if message.kind in ("begin", "leave") or client.pending is not None or not under_way:
        return client
    if STEPS.index(message.kind) < under_way[0].done:  # it was answered before, and is not granted again
        return client
    return client._replace(sessions=(None,) * len(client.sessions))


def _begun(
    world: World, me: int, client: Client, number: int
) -> tuple[Answer, Session | None, Client] | None:
    attempt, rules = world.attempts[number], world.rules
    if not attempt.cohort >> me & 1 or client.begun >> number & 1:
        return None
    if rules.newer and client.begun >> number:
        return None
    if rules.one_run and client.run not in (-1, attempt.run):
        return None
    pin = client.pins[attempt.run]
    if rules.pin_cohort and pin.cohort not in (0, attempt.cohort):
        return None
    ended = (None,) * len(world.attempts) if rules.one_attempt else client.sessions
    pins = _put(client.pins, attempt.run, pin._replace(cohort=pin.cohort or attempt.cohort))
    after = client._replace(
        sessions=_put(ended, number, Session()),
        pins=pins,
        begun=client.begun | 1 << number,
        run=attempt.run if client.run < 0 else client.run,
        pending=None,
    )
    return Answer("advertise"), Session(done=1), after


def _step(
    world: World, me: int, client: Client, message: Message
) -> tuple[Answer, Session | None, Client] | None:
    number, step = message.attempt, message.kind
    attempt, rules = world.attempts[number], world.rules
    session, pin = client.sessions[number], client.pins[attempt.run]
    if session is None or client.pending is not None:
        return None
    turn = 3 if step == "unmask" and not rules.confirm else STEPS.index(step)
    if session.done != turn:
        before = [(a.names, a.survivors)[step == "confirm"] for a in client.said[number] if a.step == step]
        if step not in rules.twice or session.done != turn + 1 or len(before) != 1:
            return None
        if message.names in before:
            return None
    within = {"share": attempt.cohort, "mask": session.book}.get(step, session.inbox)
    names = message.names if step != "unmask" or not rules.confirm else session.survivors
    if names & ~within or not names >> me & 1 or names.bit_count() < attempt.threshold:
        return None
    if step == "share":
        if world.whole_books and names != attempt.cohort:
            return None
        return Answer(step, names), session._replace(done=2, book=names), client
    if step == "mask":
        return Answer(step, names), session._replace(done=3, inbox=names), client
    if rules.pin_survivors and pin.survivors not in (0, names):
        return None
    if step == "confirm":
        answer = Answer(step, session.inbox, names)
        return answer, session._replace(done=4, survivors=names), client
    if rules.one_release and pin.survivors:
        return None
    pins = _put(client.pins, attempt.run, pin._replace(survivors=names))
    return Answer(step, session.inbox, names), None, client._replace(pins=pins)


def _left(client: Client, number: int) -> Client | None:
    """The client once its answer has left; None if there is none, or its attempt has ended."""
    if client.pending is None or client.pending[0] != number:
        return None
    _, answer, session = client.pending
    said = _put(client.said, number, client.said[number] | {answer})
    return client._replace(sessions=_put(client.sessions, number, session), said=said, pending=None)


def _put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])
