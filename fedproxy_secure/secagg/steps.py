"""Sessions of a client and of the server in one attempt: their steps run once and in order.

The sessions of both protocols, masking and CKKS, derive from the classes here. One attempt of a client is
one session, which `freeze` turns into bytes and `thaw` continues, in another process if need be.

Guarantees of a client's session: a step runs at most once, and only when it is the next one. Any error
within a step, including an interrupt, ends the session for good and drops the secrets of the attempt. A
frozen session continues only under the terms and the roster that it was begun with. Not guaranteed: that a
frozen session is thawed only once; the client's journal ensures that.

Guarantees of the server's session: a message is accepted only in its own step, only from a client that has
to answer in that step, and once. A step that all clients answer ends the attempt if fewer than `threshold`
answers came.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.control import Control, Expected
from fedproxy_secure.secagg.terms import Roster, Terms

OVER = "over"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The result of a completed round.

    Attributes:
        clients: the survivors, over whom the sums are.
        sums: by segment name; float32 [length] (float64 from CKKS) for real values, int64 [length] for
            counts.
        control: the sums of the control words.
    """

    clients: tuple[str, ...]
    sums: dict[str, np.ndarray]
    control: Control


def upload_key(private: Secret, public: bytes, context: bytes, client: str, what: str) -> Secret:
    """Derive the key of the tag on a client's vector; client and server derive the same key.

    Args:
        private: of this side; the client's agreement key, or the server's key.
        public: of the other side.
        context: of the attempt.
        client: the client's name.
        what: what `public` is, for the error.

    Context and name are part of the derivation, so the key is of no use in another attempt or for another
    client. Raises `ProtocolAborted` as `agree` does.
    """
    info = crypto.digest(b"upload", context, client.encode())
    return crypto.agree(private, public, info=info, what=what)


def check_roster(roster: Roster, terms: Terms) -> None:
    """Raise `ProtocolAborted` unless the roster's hash is the one in the terms."""
    if roster.sha256() != terms.roster_sha256:
        raise ProtocolAborted("roster: must be the one that the attempt was begun with")


class SteppedSession(ABC):
    """One client in one attempt; all its secrets are derived from `root`.

    A subclass lists its `STEPS` in order and runs each of them by `_once`. Its methods `_frozen_fields`,
    `_thaw_fields` and `_forget` handle what it holds besides `root`.

    Args:
        name: this client, in the terms' cohort.
        identity: its Ed25519 private key, whose public half the roster has.
        terms: of the attempt, already accepted by `TermsPolicy.check`.
        roster: this client's own copy; the terms must name it.
        root: 32 random bytes; None: drawn from the operating system.

    Raises `ProtocolAborted` if the terms name another roster: whoever could change the roster between two
    steps could choose the keys that speak for the other clients.
    """

    STEPS: ClassVar[tuple[str, ...]]

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        check_roster(roster, terms)
        self.name, self.terms, self.roster = name, terms, roster
        self._identity = identity
        self._root = root or crypto.fresh_secret()
        self._context = terms.context()
        self._step = self.STEPS[0]

    def freeze(self) -> Secret:
        """Return the state from which `thaw` continues this session; terms and identity are not in it."""
        state = {
            "root": self._root.reveal().hex(),
            "step": self._step,
            "context": self._context.hex(),
            **self._frozen_fields(),
        }
        return Secret(json.dumps(state).encode())

    @classmethod
    def thaw(cls, frozen: Secret, *, name: str, identity: Secret, terms: Terms, roster: Roster) -> Self:
        """Return the session that `freeze` saved. Raises `ProtocolAborted` if its terms were others."""
        state = json.loads(frozen.reveal())
        root = Secret(bytes.fromhex(state["root"]))
        session = cls(name=name, identity=identity, terms=terms, roster=roster, root=root)
        if bytes.fromhex(state["context"]) != session._context:
            raise ProtocolAborted("session: belongs to other terms")
        session._step = state["step"]
        session._thaw_fields(state)
        return session

    def _once(self, step: str, action: Callable[[], T]) -> T:
        """Run the step `step` once, in its order; any error ends the session."""
        if self._step != step:
            raise ProtocolAborted(f"{step}: asked when {self._step} is next; each step runs once, in order")
        try:
            answer = action()
        except BaseException:
            self._end()
            raise
        if self._step == step:  # the last step has ended the session itself
            self._step = self.STEPS[self.STEPS.index(step) + 1]
        return answer

    def _end(self) -> None:
        self._step = OVER
        self._root = Secret(b"")
        self._forget()

    @abstractmethod
    def _frozen_fields(self) -> dict[str, Any]:
        """Return what `freeze` saves besides root, step and context, as JSON values."""

    @abstractmethod
    def _thaw_fields(self, state: Mapping[str, Any]) -> None:
        """Restore what `_frozen_fields` returned."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop every secret and message that the session holds besides the root."""


class SteppedServer:
    """The server in one attempt; a subclass lists its `STEPS` in order, the last of them `OVER`.

    Args:
        terms: of the attempt.
        roster: the server's own copy.
        private: the X25519 key whose public half the terms name.
        expected: bounds on the control words that follow from the settings; None: those of all settings.

    Raises `ProtocolAborted` if a client of the cohort is not in the roster, or the terms name another key.
    """

    STEPS: ClassVar[tuple[str, ...]]

    def __init__(
        self, *, terms: Terms, roster: Roster, private: Secret, expected: Expected | None = None
    ) -> None:
        if crypto.agreement_public(private) != terms.server_key:
            raise ProtocolAborted("server key: the terms name another one")
        if strangers := [c for c in terms.cohort if c not in roster.members]:
            raise ProtocolAborted(f"cohort: {strangers[0]} is not in the roster")
        self.terms, self.roster = terms, roster
        self._private, self._expected = private, expected
        self._context = terms.context()
        self._step = self.STEPS[0]

    def _expect(self, step: str, client: str, among: Container[str], done: Container[str]) -> None:
        """Raise `ProtocolAborted` unless `step` is under way and the client still has to answer in it.

        `among`: who answers in this step; `done`: who has answered.
        """
        if self._step != step:
            raise ProtocolAborted(f"{step}: message of {client[:80]} when {self._step} is going on")
        if client not in among:
            raise ProtocolAborted(f"{step}: {client[:80]} does not belong there")
        if client in done:
            raise ProtocolAborted(f"{step}: {client} has answered already")

    def _verify(self, client: str, message: bytes, signature: bytes) -> None:
        """Raise `ProtocolAborted` unless the client's key in the roster signed this message."""
        crypto.verify(
            self.roster.members[client], message, signature, what=f"{self._step}, signature of {client}"
        )

    def _check_tag(self, client: str, public: bytes, data: bytes, tag: bytes) -> None:
        """Raise `ProtocolAborted` unless the client whose agreement key is `public` sent these bytes."""
        what = f"{self._step}, tag of {client}"
        crypto.check_tag(
            upload_key(self._private, public, self._context, client, what), data, tag, what=what
        )

    def _close(self, step: str, count: int) -> None:
        """End a step that `count` clients answered.

        Raises `RoundAborted`, and ends the attempt for good, if they are fewer than the threshold.
        """
        self._go_on(step)
        self._enough(step, count)

    def _go_on(self, step: str) -> None:
        """Go on to the next step. Raises `ProtocolAborted` if another step than `step` is under way."""
        if self._step != step:
            raise ProtocolAborted(f"{step}: closed when {self._step} is going on")
        self._step = self.STEPS[self.STEPS.index(step) + 1]

    def _enough(self, what: str, count: int) -> None:
        """End the attempt and raise `RoundAborted` if `count` is below the threshold."""
        if count < self.terms.threshold:
            self._step = OVER
            raise RoundAborted(
                f"{what}: {count} of {len(self.terms.cohort)} clients; must be >= {self.terms.threshold}"
            )
