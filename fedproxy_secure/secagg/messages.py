"""The messages of the masking protocol, in the order they flow, and what each reveals to whom.

    client -> server   Advertise      encryption key, mask key, commitment, signature
    server -> client   KeyBook        all advertised keys                          (the set U1)
    client -> server   Shares         for every peer a sealed pair of shares
    server -> client   Inbox          the shares sealed for this client            (the set U2)
    client -> server   MaskedInput    the masked vector, tagged for the server
    server -> client   Survivors      whose vectors arrived                        (the set U3)
    client -> server   Confirmation   signature on (context, U2, U3)
    server -> client   Confirmations  at least t of them
    client -> server   Unmask         shares of the survivors' self masks and of the drop-outs' mask keys

Fields are plain (str, bytes, lists of them), so that any transport can carry them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from fedproxy_secure.errors import DataError
from fedproxy_secure.secagg.primitives import digest

Surface = Literal["server", "clients"]


class Message:
    """Field types are checked on arrival. `reveals`: what the receiver learns, in words."""

    to: ClassVar[Surface]
    reveals: ClassVar[str]

    def to_fields(self) -> dict[str, Any]:
        """Plain values by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Advertise(Message):
    """Step 1: fresh public keys, signed with the roster's key."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "that the client takes part"
    client: str
    share_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """What the signature covers."""
        return digest(
            b"advertise", context, self.client.encode(), self.share_key, self.mask_key, self.commitment
        )


@dataclass(frozen=True, kw_only=True)
class KeyBook(Message):
    """Step 2: all that was advertised; row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients take part"
    clients: list[str]
    share_keys: list[bytes]
    mask_keys: list[bytes]
    commitments: list[bytes]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Shares(Message):
    """Step 2, answer: one sealed pair of shares for every other client of the key book."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "nothing: shares are sealed for their receivers"
    client: str
    receivers: list[str]
    sealed: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Inbox(Message):
    """Step 3: the pairs sealed for one client; from itself an empty one."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients shared; one share of each of their secrets"
    senders: list[str]
    sealed: list[bytes]


@dataclass(frozen=True, kw_only=True)
class MaskedInput(Message):
    """Step 3, answer: the masked vector.

    Tagged with a key that this client (by its advertised, signed key) and the server (by the key in the
    terms) share: the server alone needs to be sure of it, and a tag costs a fraction of a hash.
    """

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "uniform words, while one honest pair remains"
    client: str
    masked: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class Survivors(Message):
    """Step 4: who is left."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "whose vectors arrived"
    clients: list[str]


@dataclass(frozen=True, kw_only=True)
class Confirmation(Message):
    """Step 4, answer: this client saw these two sets."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "nothing new"
    client: str
    signature: bytes

    @staticmethod
    def signed(context: bytes, shared: list[str], survivors: list[str]) -> bytes:
        """What the signature covers: both sets, sorted."""
        sets = json.dumps([sorted(shared), sorted(survivors)]).encode()
        return digest(b"confirm", context, sets)


@dataclass(frozen=True, kw_only=True)
class Confirmations(Message):
    """Step 5: the signatures; row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "nothing new"
    clients: list[str]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Unmask(Message):
    """Step 5, answer: a share of each survivor's self mask, and of each drop-out's mask key."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "with t of them: the sum over the survivors"
    client: str
    survivors: list[str]
    self_shares: list[bytes]
    dropped: list[str]
    key_shares: list[bytes]
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """What the signature covers."""
        names = json.dumps([self.client, self.survivors, self.dropped]).encode()
        return digest(b"unmask", context, names, *self.self_shares, *self.key_shares)


MESSAGES: tuple[type[Message], ...] = (
    Advertise,
    KeyBook,
    Shares,
    Inbox,
    MaskedInput,
    Survivors,
    Confirmation,
    Confirmations,
    Unmask,
)
M = TypeVar("M", bound=Message)


def from_fields(kind: type[M], raw: dict[str, Any]) -> M:
    """A message from plain values. Raises `DataError` for a missing, unknown or wrongly typed field."""
    hints = {f.name: get_type_hints(kind)[f.name] for f in fields(kind)}  # type: ignore[arg-type]
    if set(raw) != set(hints):
        raise DataError(f"{kind.__name__}: fields {sorted(raw)}; must be {sorted(hints)}")
    for name, hint in hints.items():
        value = raw[name]
        inner = {"list[str]": str, "list[bytes]": bytes}.get(str(hint))
        if inner is None:
            good = type(value) is hint
        else:
            good = isinstance(value, list) and all(type(v) is inner for v in value)
        if not good:
            raise DataError(f"{kind.__name__}: field {name} must be {getattr(hint, '__name__', hint)}")
    return kind(**raw)
