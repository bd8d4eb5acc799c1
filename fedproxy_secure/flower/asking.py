"""Send requests to nodes and collect their answers; a bad answer affects only the client that gave it.

Each answer is fetched by the id of its request, which alone tells whose answer it is: Flower assembles a
message from what its sender uploaded, including the origin that the sender claims. A deployment's SuperLink
accepts only a node's own answers (`flower.internals.superlink`); Flower's would also hand on other
messages. A client is left out, with one line in the log, if its answer cannot be assembled or decoded, or
if it reports an error.

An error that a client reports ends the run only if too few clients are left to go on (`enough`, `explain`).
Where one machine plays all clients, it ends the run at once, because there it is the operator's mistake.

A client whose node was restarted has forgotten the job, and says so. It is set up again, at most once per
request, and then asked again.

Guarantees: whatever an answer contains, this module raises only `FedProxyError`. Lines that clients wrote
are logged and raised in bounded, printable form, after the name of the client that wrote them, and as one
of a few error classes.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.errors import (
    ConfigError,
    DataError,
    FedProxyError,
    ModelError,
    NotSetUp,
    PrivacyError,
    RoundAborted,
    RunFolderError,
    TrainingError,
)
from fedproxy_secure.flower.patience import Patience
from fedproxy_secure.flower.waiting import WaitNotes, with_reasons
from fedproxy_secure.runtime.quoting import one_line

log = logging.getLogger(__name__)

SOON_S, POLL_S = 0.05, 0.2  # the shortest and the longest pause between polls for answers
FORGOT = NotSetUp.__name__  # reported by a client whose node was restarted after set-up
LEFT = "ProtocolAborted"  # reported by a client that left the protocol; nobody has to repair anything
# the error classes that a client may report; any other name counts as failed training
REPORTED: dict[str, type[FedProxyError]] = {
    kind.__name__: kind
    for kind in (ConfigError, DataError, ModelError, PrivacyError, RunFolderError, TrainingError)
}
T = TypeVar("T")
Error = TypeVar("Error", bound=FedProxyError)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A request without an answer yet; `then` is the content to send once a set-up is answered."""

    node: int
    then: RecordDict | None


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[T]):
    """An answer as it was fetched.

    Args:
        value: the decoded answer; None if the client is left out, must be set up again, or gave none.
        forgot: whether the client must be set up again.
        lost: why the client gave no answer, such as the error of a node that is away; "" if it gave one.
    """

    value: T | None = None
    forgot: bool = False
    lost: str = ""


class Asker:
    """Sends requests over a grid and yields the answers that arrive in time.

    With `one_machine`, a client's own error ends the run at once.

    Attributes:
        names: the clients' names by node, once they are known.
        set_up_again: the content that sets a restarted client up again; None before set-up.
        left_out: why clients are not in the current round, by client's name or node.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout_s: float,
        one_machine: bool = False,
        notes: WaitNotes | None = None,
    ) -> None:
        self._grid, self.timeout_s, self._one_machine = grid, timeout_s, one_machine
        self.notes = notes or WaitNotes(None)
        self.names: dict[int, str] = {}
        self.set_up_again: RecordDict | None = None
        self.left_out: dict[str, str] = {}
        self._failures: list[tuple[str, FedProxyError]] = []  # with the client's name for the owner
        self._explained: FedProxyError | None = None

    def begin(self) -> None:
        """Begin a round: forget the failures of earlier ones, which do not explain it."""
        self._failures.clear()
        self.left_out.clear()

    def ask(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        group: str,
        decode: Callable[[RecordDict], T],
    ) -> Iterator[tuple[int, T]]:
        """Send contents to nodes; yield (node, decoded answer) for each good answer that comes in time.

        `decode` may raise `FedProxyError` for an answer; its client is then left out.
        """
        waiting = self._push(kind, contents, group, then={})
        renewed: set[int] = set()
        patience = Patience(least_s=SOON_S, most_s=POLL_S)
        polls, answered, began = 0, True, time.monotonic()
        while waiting:
            timed_out = time.monotonic() - began > self.timeout_s
            # each poll costs Flower a request: while no answer comes, one is polled at a time, in turn
            to_poll = list(waiting) if answered or timed_out else [list(waiting)[polls % len(waiting)]]
            polls, answered = polls + 1, False
            for request_id in to_poll:
                request = waiting[request_id]
                node, next_content = request.node, request.then
                decoder = decode if next_content is None else self._decode_ready_of(node)
                answer = self.fetch(request_id, node, group, decoder)
                if answer is None:
                    continue
                del waiting[request_id]
                patience.come()
                answered = True
                if answer.value is None:
                    waiting |= self._after_none(answer, node, contents[node], group, renewed)
                elif next_content is not None:
                    waiting |= self._push(kind, {node: next_content}, group, then={})
                else:
                    yield node, answer.value
            if waiting and timed_out:
                for request in waiting.values():
                    self.leave_out(group, request.node, f"did not answer {kind} in {self.timeout_s:.0f} s")
                break
            if waiting:
                names = [self.owner_name(request.node) for request in waiting.values()]
                self.notes.note(group, names, began=began, timeout_s=self.timeout_s)
                time.sleep(patience.pause_s())
        self.notes.over()

    def _after_none(
        self, answer: Answer[T], node: int, content: RecordDict, group: str, renewed: set[int]
    ) -> dict[str, _Request]:
        """Leave out a client that gave no answer, or set it up again; return the new requests by id."""
        if answer.lost:
            self.leave_out(group, node, answer.lost)
        elif answer.forgot and node in renewed:
            self.leave_out(group, node, "it forgot the job again")
        elif answer.forgot and self.set_up_again is not None:
            renewed.add(node)
            log.warning("%s: %s was started again and is set up again", group, self.log_name(node))
            return self._push(wire.SETUP, {node: self.set_up_again}, group, then={node: content})
        return {}

    def _push(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        group: str,
        *,
        then: Mapping[int, RecordDict],
    ) -> dict[str, _Request]:
        """Send contents to nodes; return the requests that were sent by id, in the nodes' order."""
        sent = self.send(kind, contents, group)
        # kept in order: the in-process engine answers in the order of its nodes
        waiting = {request: _Request(node=node, then=then.get(node)) for request, node in sent.items()}
        if len(waiting) < len(contents):
            log.warning("%s: %d requests could not be sent", group, len(contents) - len(waiting))
        return waiting

    def send(self, kind: str, contents: Mapping[int, RecordDict], group: str) -> dict[str, int]:
        """Send each node its content; return the node of each request that was sent, by request id."""
        # Flower forgets a message and its answer after this time; the last poll comes after the timeout
        ttl = self.timeout_s + 60.0
        messages = [
            Message(content, node, kind, group_id=group, ttl=ttl) for node, content in contents.items()
        ]
        pushed = list(self._grid.push_messages(messages))
        return {sent: node for sent, node in zip(pushed, contents, strict=False) if sent is not None}

    def connected(self) -> frozenset[int]:
        """Return the nodes that are connected now."""
        return frozenset(self._grid.get_node_ids())

    def _decode_ready_of(self, node: int) -> Callable[[RecordDict], Any]:
        """Return a decoder of answers to a set-up that accepts only this node's client, with the proxy."""

        def decode(content: RecordDict) -> wire.Ready:
            ready = wire.decode_ready(content)
            if not ready.ready or ready.client != self.names.get(node):
                raise DataError("has no proxy any more, or another name than before")
            return ready

        return decode

    def log_name(self, node: int) -> str:
        """Return how a log names a node: by its client's name, if that is known, and its id."""
        return f"{self.names[node]} (node {node})" if node in self.names else f"node {node}"

    def owner_name(self, node: int) -> str:
        """Return a node's name for the owner: its client's, if that is known, or else its id."""
        return self.names.get(node, f"node {node}")

    def leave_out(self, group: str, node: int, why: str) -> None:
        """Log that a node is left out, and remember why; of several reasons in a round the first stays."""
        log.warning("%s: %s is left out: %s", group, self.log_name(node), why)
        self.left_out.setdefault(self.owner_name(node), why)

    def enough(self, count: int, least: int, what: str, setting: str) -> None:
        """Raise the first client's own error, or else `RoundAborted`, if `count` is below `least`."""
        if count >= least:
            return
        self.explain()
        raise self.explained(RoundAborted(f"{count} clients {what}: must be >= {least} ({setting})"))

    def explain(self) -> None:
        """Raise the first error that a client reported, if there is one, with who else was left out."""
        if self._failures:
            name, error = self._failures[0]
            raise self.explained(error, by=name)

    def explained(self, error: Error, by: str | None = None) -> Error:
        """Return an error of the same class, whose line also says which clients were left out, and why.

        `by`: the client that reported the error, whose name its line has already.
        """
        if error is self._explained:
            return error
        left_out = {name: why for name, why in self.left_out.items() if name != by}
        self._explained = explained = type(error)(with_reasons(str(error), left_out))
        return explained

    def fetch(
        self, sent: str, node: int, group: str, decode: Callable[[RecordDict], T]
    ) -> Answer[T] | None:
        """Return the answer to a request, or None if there is none yet.

        A client that gives a bad answer is left out here. If an answer is lost, the caller decides.
        """
        try:
            replies = list(self._grid.pull_messages([sent]))
        except RunFolderError:  # it could not be recorded on this machine; no client is to blame
            raise
        except Exception as error:  # an answer that Flower cannot take must not affect the other answers
            kind = type(error).__name__
            # the stack without the error's text, which a client may have written
            stack = "".join(traceback.format_tb(error.__traceback__))
            log.debug("%s: the answer of %s raises %s:\n%s", group, self.log_name(node), kind, stack)
            return Answer(lost=f"its answer is no message ({kind})")
        if not replies:
            return None
        # which request a reply claims to answer matters only where a SuperLink hands on more than one
        answers = [answer for answer in replies if answer.metadata.reply_to_message_id == sent]
        reply = (answers or replies)[0]
        if reply.has_error() or not reply.has_content():
            reason = str(reply.error.reason) if reply.has_error() else "its answer is empty"
            return Answer(lost=f"failed: {one_line(reason)}")
        try:
            failure = wire.decode_failure(reply.content)
            if failure is None:
                return Answer(value=decode(reply.content))
        except FedProxyError as error:
            self.leave_out(group, node, str(error))
            return Answer()
        if failure[0] == FORGOT and self.set_up_again is not None:
            return Answer(forgot=True)
        self._note_failure(node, group, *failure)
        return Answer()

    def _note_failure(self, node: int, group: str, kind: str, line: str) -> None:
        if kind == LEFT:
            self.leave_out(group, node, f"left the protocol: {line}")
            return
        self.leave_out(group, node, f"says: {line}")
        error = REPORTED.get(kind, TrainingError)(f"{self.log_name(node)} says: {line}")
        self._failures.append((self.owner_name(node), error))
        if self._one_machine:
            self.explain()
