"""Asking nodes and taking their answers: an answer, whatever it is, ends nothing but its client's part.

An answer is fetched on its own, by the id of the request that it must answer. Flower puts a message
together from what its sender uploaded, its origin included, so whose answer it is follows from that id
alone: the SuperLink lets no other node answer it. An answer that cannot be put together or decoded, or that
says that the client failed, leaves its client out, with one line in the log.

What a client says went wrong ends the run only if too few clients are left to go on (`enough`, `explain`),
or at once where one machine plays all clients: there it is the operator's own mistake.

Guarantees: no content of an answer raises anything but `FedProxyError` out of here; lines of clients are
logged and raised in bounded, printable form, behind the name of who said them, and as one of a few classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedproxy_secure.errors import (
    ConfigError,
    DataError,
    FedProxyError,
    ModelError,
    PrivacyError,
    RoundAborted,
    RunFolderError,
    TrainingError,
)
from fedproxy_secure.flower import wire
from fedproxy_secure.quoting import one_line

log = logging.getLogger(__name__)

POLL_S = 0.2
LEFT = "ProtocolAborted"  # a client that left the protocol has dropped out; no person need mend anything
# what a client may say went wrong; anything else it names counts as failed training
SAID: dict[str, type[FedProxyError]] = {
    kind.__name__: kind
    for kind in (ConfigError, DataError, ModelError, PrivacyError, RunFolderError, TrainingError)
}
# what Flower raises when it cannot put an answer together, whatever the bytes
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    DecodeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
T = TypeVar("T")


class Asker:
    """Sends requests over a grid and yields what clients answer in time.

    `one_machine`: a client's own error ends the run at once. `names`: of nodes, once they are known.
    """

    def __init__(self, grid: Grid, *, timeout_s: float, one_machine: bool = False) -> None:
        self._grid, self._timeout_s, self._one_machine = grid, timeout_s, one_machine
        self.names: dict[int, str] = {}
        self._failures: list[FedProxyError] = []

    def begin(self) -> None:
        """Forget failures of earlier rounds: they do not explain what comes."""
        self._failures.clear()

    def ask(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        group: str,
        decode: Callable[[RecordDict], T],
    ) -> Iterator[tuple[int, T]]:
        """Send to nodes; yield (node, decoded answer) of those that answer in time and did not fail.

        `decode` may raise `FedProxyError`: the answer then counts as not given.
        """
        messages = [
            Message(content, node, kind, group_id=group, ttl=self._timeout_s)
            for node, content in contents.items()
        ]
        pushed = list(self._grid.push_messages(messages))
        # in order: the in-process engine's order is that of its nodes
        waiting = {sent: node for sent, node in zip(pushed, contents, strict=False) if sent is not None}
        if len(waiting) < len(contents):
            log.warning("%s: %d requests could not be sent", group, len(contents) - len(waiting))
        deadline = time.monotonic() + self._timeout_s
        while waiting:
            for sent, node in list(waiting.items()):
                answered, answer = self._fetch(sent, node, group, decode)
                if answered:
                    del waiting[sent]
                if answer is not None:
                    yield node, answer
            if waiting and time.monotonic() > deadline:
                log.warning("%s: %d clients did not answer in %.0f s", group, len(waiting), self._timeout_s)
                return
            if waiting:
                time.sleep(POLL_S)

    def who(self, node: int) -> str:
        """A node as it stands in a log: its client's name, if it is known."""
        return f"{self.names[node]} (node {node})" if node in self.names else f"node {node}"

    def enough(self, count: int, least: int, what: str, setting: str) -> None:
        """Raise a client's own error if there is one, or `RoundAborted`, for fewer than `least` clients."""
        if count >= least:
            return
        self.explain()
        raise RoundAborted(f"{count} clients {what}: must be >= {least} ({setting})")

    def explain(self) -> None:
        """Raise the first of the clients' own errors, if there is one."""
        if self._failures:
            raise self._failures[0]

    def _fetch(
        self, sent: str, node: int, group: str, decode: Callable[[RecordDict], T]
    ) -> tuple[bool, T | None]:
        """Whether the request was answered, and the answer if it counts."""
        try:
            reply = next(iter(self._grid.pull_messages([sent])), None)
        except _UNREADABLE as error:
            what = type(error).__name__
            log.warning("%s: %s is left out: its answer is no message (%s)", group, self.who(node), what)
            return True, None
        if reply is None:
            return False, None
        if reply.has_error() or not reply.has_content():
            reason = str(reply.error.reason) if reply.has_error() else "its answer is empty"
            log.warning("%s: %s failed: %s", group, self.who(node), one_line(reason))
            return True, None
        try:
            failure = wire.decode_failure(reply.content)
            if failure is None:
                return True, decode(reply.content)
        except FedProxyError as error:
            log.warning("%s: %s is left out: %s", group, self.who(node), error)
            return True, None
        self._note_failure(node, group, *failure)
        return True, None

    def _note_failure(self, node: int, group: str, kind: str, line: str) -> None:
        if kind == LEFT:
            log.warning("%s: %s left the protocol: %s", group, self.who(node), line)
            return
        log.warning("%s: %s is left out, it says: %s", group, self.who(node), line)
        self._failures.append(SAID.get(kind, TrainingError)(f"{self.who(node)} says: {line}"))
        if self._one_machine:
            self.explain()
