"""A client's session in one attempt: steps that run once and in order, and a session that can be put away.

Both protocols, masking and CKKS, take their sessions from here. One attempt of a client is one session.

Guarantees: a step runs at most once, and only when it is the next. Whatever goes wrong within a step, an
interrupt included, ends the session for good and drops its secrets. A session that was put away by `freeze`
goes on only under the terms and the roster that it was begun with. Not guaranteed: that a frozen session
is thawed only once; the client's journal sees to that.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.terms import Roster, Terms

OVER = "over"
T = TypeVar("T")


def check_roster(roster: Roster, terms: Terms) -> None:
    """Raise `ProtocolAborted` unless the roster's hash is the one in the terms."""
    if roster.sha256() != terms.roster_sha256:
        raise ProtocolAborted("roster: must be the one that the attempt was begun with")


class SteppedSession(ABC):
    """One client in one attempt; all its secrets follow from `root`, fresh from the operating system.

    A subclass names its `STEPS` in order, runs each of them by `_once`, and says by `_frozen_fields`,
    `_thaw_fields` and `_forget` what it holds besides `root`.

    Args:
        name: this client, in the terms' cohort.
        identity: its Ed25519 private key of provisioning.
        terms: accepted beforehand by `Policy.check`.
        roster: this client's own; must be the terms'.
        root: 32 bytes; None draws them.

    Raises `ProtocolAborted` if the roster is another than the terms name: whoever could change it between
    two steps would choose the keys that speak for the other clients.
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
        """Return what this session needs to go on in another process; terms and identity are not in it."""
        state = {
            "root": self._root.reveal().hex(),
            "step": self._step,
            "context": self._context.hex(),
            **self._frozen_fields(),
        }
        return Secret(json.dumps(state).encode())

    @classmethod
    def thaw(cls, frozen: Secret, *, name: str, identity: Secret, terms: Terms, roster: Roster) -> Self:
        """Go on where `freeze` left. Raises `ProtocolAborted` if it was frozen under other terms."""
        state = json.loads(frozen.reveal())
        root = Secret(bytes.fromhex(state["root"]))
        session = cls(name=name, identity=identity, terms=terms, roster=roster, root=root)
        if bytes.fromhex(state["context"]) != session._context:
            raise ProtocolAborted("session: belongs to other terms")
        session._step = state["step"]
        session._thaw_fields(state)
        return session

    def _once(self, step: str, action: Callable[[], T]) -> T:
        """Run a step if it is its turn; whatever goes wrong ends the session."""
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
        """Return what `freeze` keeps besides the root and the step, as JSON values."""

    @abstractmethod
    def _thaw_fields(self, state: Mapping[str, Any]) -> None:
        """Take back what `_frozen_fields` gave."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop every secret and message that the session holds besides the root."""
