"""Send requests to nodes and take their answers; a bad answer ends its own client's part and nothing else.

Each answer is fetched by the id of the request that it must answer. Flower puts a message together from
what its sender uploaded, and that includes the origin that the sender claims. So the id of the request
alone tells whose answer it is. A deployment's SuperLink lets a node push answers of its own alone
(`flower.internals.superlink`); Flower's own would hand on other messages beside them. A client is left out,
with one line in the log, if its answer cannot be put together or decoded, or says that the client failed.

An error that a client reports ends the run only if too few clients are left to go on (`enough`, `explain`).
Where one machine plays all clients it ends the run at once: there it is the operator's own mistake.

A client that has forgotten the job, because its node was started again, says so and is set up again, once
for each request; then it is asked again.

Guarantees: no content of an answer raises anything but `FedProxyError` out of this module. Lines that
clients wrote are logged and raised in bounded, printable form, behind the name of the client that wrote
them, and as one of a few error classes.
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

SOON_S, POLL_S = 0.05, 0.2  # how long to sleep before looking for answers again: at least, and at most
FORGOT = NotSetUp.__name__  # a client whose node was started again since it was set up
LEFT = "ProtocolAborted"  # a client that left the protocol has dropped out; nobody has to repair anything
# the error classes that a client may report; any other name counts as failed training
REPORTED: dict[str, type[FedProxyError]] = {
    kind.__name__: kind
    for kind in (ConfigError, DataError, ModelError, PrivacyError, RunFolderError, TrainingError)
}
T = TypeVar("T")
Error = TypeVar("Error", bound=FedProxyError)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A request that waits for its answer; `then` is what to ask once the answer to a set-up is there."""

    node: int
    then: RecordDict | None


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[T]):
    """An answer as it was fetched.

    Args:
        value: decoded; None if its client is left out, or one of the others says why there is none.
        forgot: the client must be set up again.
        lost: why no answer of the client came, such as the error of a node that is away; "" if one came.
    """

    value: T | None = None
    forgot: bool = False
    lost: str = ""


class Asker:
    """Sends requests over a grid and yields the answers that arrive in time.

    With `one_machine` a client's own error ends the run at once. The attribute `names` maps a node to its
    client's name, once that name is known; `set_up_again` is the request that sets a client up again;
    `left_out` says why clients are not in the round under way, by client's name or node.
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
        """Forget the failures of earlier rounds, which do not explain a later one."""
        self._failures.clear()
        self.left_out.clear()

    def ask(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        group: str,
        decode: Callable[[RecordDict], T],
    ) -> Iterator[tuple[int, T]]:
        """Send contents to nodes and yield (node, decoded answer) for each good answer that comes in time.

        `decode` may raise `FedProxyError`: the answer then counts as not given.
        """
        waiting = self._push(kind, contents, group, then={})
        renewed: set[int] = set()
        began = time.monotonic()
        patience = Patience(least_s=SOON_S, most_s=POLL_S)
        looks, came = 0, True
        while waiting:
            over = time.monotonic() - began > self.timeout_s
            # each look costs Flower a request: while nothing comes, one is looked for at a time, in turn
            looked = list(waiting) if came or over else [list(waiting)[looks % len(waiting)]]
            looks, came = looks + 1, False
            for sent in looked:
                request = waiting[sent]
                node, again = request.node, request.then
                judge = decode if again is None else self._decode_ready_of(node)
                answer = self.fetch(sent, node, group, judge)
                if answer is None:
                    continue
                del waiting[sent]
                patience.come()
                came = True
                if answer.value is None:
                    waiting |= self._after_none(answer, node, contents[node], group, renewed)
                elif again is not None:
                    waiting |= self._push(kind, {node: again}, group, then={})
                else:
                    yield node, answer.value
            if waiting and over:
                for request in waiting.values():
                    reason = f"did not answer {kind} in {self.timeout_s:.0f} s"
                    self.leave_out(group, request.node, reason)
                break
            if waiting:
                names = [self.owner_name(request.node) for request in waiting.values()]
                self.notes.note(group, names, began=began, timeout_s=self.timeout_s)
                time.sleep(patience.pause_s())
        self.notes.over()

    def _after_none(
        self, answer: Answer[T], node: int, content: RecordDict, group: str, renewed: set[int]
    ) -> dict[str, _Request]:
        """Leave out a client without an answer, or set it up again once; return what is waited for then."""
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
        """Send contents to nodes; return what is waited for by the request's id, in the nodes' order."""
        sent = self.send(kind, contents, group)
        # kept in order: the in-process engine answers in the order of its nodes
        waiting = {id: _Request(node=node, then=then.get(node)) for id, node in sent.items()}
        if len(waiting) < len(contents):
            log.warning("%s: %d requests could not be sent", group, len(contents) - len(waiting))
        return waiting

    def send(self, kind: str, contents: Mapping[int, RecordDict], group: str) -> dict[str, int]:
        """Send each node its content; return, for the requests that were sent, the node by request id."""
        # Flower forgets a message and its answer after this time; the last look comes a little later
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
        """Return a decoder of a set-up's answer, which must be by this node's client, with the proxy."""

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
        """Say in the log that a node is left out, and remember why; the first reason of a round stays."""
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
        """Return the same kind of error, whose line also says which clients were left out, and why.

        `by`: the client whose error it is, which its line names already.
        """
        if error is self._explained:
            return error
        others = {name: why for name, why in self.left_out.items() if name != by}
        self._explained = explained = type(error)(with_reasons(str(error), others))
        return explained

    def fetch(
        self, sent: str, node: int, group: str, decode: Callable[[RecordDict], T]
    ) -> Answer[T] | None:
        """Return the answer to a request, None if there is none yet.

        The client of a bad answer is left out here. Of an answer that was lost the caller decides.
        """
        try:
            replies = list(self._grid.pull_messages([sent]))
        except Exception as error:  # whatever one answer does to Flower, the others are still taken
            kind = type(error).__name__
            place = "".join(
                traceback.format_tb(error.__traceback__)
            )  # not its text: a client may write that
            log.debug("%s: the answer of %s raises %s:\n%s", group, self.log_name(node), kind, place)
            return Answer(lost=f"its answer is no message ({kind})")
        if not replies:
            return None
        # what an answer says of itself counts only where a SuperLink hands on more than was asked for
        answers = [one for one in replies if one.metadata.reply_to_message_id == sent]
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
