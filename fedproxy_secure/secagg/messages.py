"""The messages of the masking protocol, in the order in which they are sent, and what each reveals.

    client -> server   Advertise      encryption key, mask key, commitment, signature
    server -> client   KeyBook        all advertised keys                          (the set U1)
    client -> server   Shares         for every peer a sealed pair of shares
    server -> client   Inbox          the shares sealed for this client            (the set U2)
    client -> server   MaskedInput    the masked vector, tagged for the server
    server -> client   Survivors      whose vectors arrived                        (the set U3)
    client -> server   Confirmation   signature on (context, U2, U3)
    server -> client   Confirmations  at least t of them
    client -> server   Unmask         shares of the survivors' self masks and of the drop-outs' mask keys

t is the threshold of the terms. Fields are plain (str, bytes, lists of them), so that any transport can
carry them: `to_fields` on one side, `from_fields` on the other.

Guarantees: a message that `from_fields` returns has exactly the fields of its class, of the right types and
within their sizes. Lists have at most as many rows as a cohort can need; names are short and printable;
keys, signatures and hashes have their one length. `from_fields` checks the values and copies none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from fedproxy_secure.crypto.primitives import KEY_BYTES, NONCE_BYTES, SIGNATURE_BYTES, TAG_BYTES, digest
from fedproxy_secure.crypto.shamir import SHARE_BYTES
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.secagg.ring import MAX_CLIENTS

Surface = Literal["server", "clients"]
MOST_NAME = 200  # characters of a client's name
MOST_VECTOR_BYTES = 2**32  # of a client's vector in any encoding; its receiver knows the exact length


@dataclass(frozen=True, kw_only=True)
class Size:
    """The least and the most bytes of a field, or of each row if it is a list, and the most rows."""

    least: int
    most: int
    rows: int = MAX_CLIENTS


KEY = Size(least=KEY_BYTES, most=KEY_BYTES)
HASH = Size(least=32, most=32)
SIGNATURE = Size(least=SIGNATURE_BYTES, most=SIGNATURE_BYTES)
TAG = Size(least=TAG_BYTES, most=TAG_BYTES)
SHARE = Size(least=SHARE_BYTES, most=SHARE_BYTES)
SEALED_SHARES = Size(least=0, most=NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES)  # own row: empty
VECTOR = Size(least=0, most=MOST_VECTOR_BYTES)


class Message:
    """A message of the protocol; `from_fields` checks the types and sizes of its fields on arrival.

    Attributes:
        to: who receives it.
        reveals: what the receiver learns, in words.
        vector: whether it carries data from clients' updates, encrypted or not.
        sizes: the sizes of the fields of bytes, by name.
    """

    to: ClassVar[Surface]
    reveals: ClassVar[str]
    vector: ClassVar[bool] = False
    sizes: ClassVar[Mapping[str, Size]] = {}

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as plain values, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Advertise(Message):
    """Step 1: fresh public keys of one client, signed with its key in the roster."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "that the client takes part"
    sizes: ClassVar[Mapping[str, Size]] = {
        "share_key": KEY,
        "mask_key": KEY,
        "commitment": HASH,
        "signature": SIGNATURE,
    }
    client: str
    share_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """Return what the signature covers."""
        return digest(
            b"advertise", context, self.client.encode(), self.share_key, self.mask_key, self.commitment
        )


@dataclass(frozen=True, kw_only=True)
class KeyBook(Message):
    """Step 2: the advertised keys of all clients; row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients take part"
    sizes: ClassVar[Mapping[str, Size]] = {
        "share_keys": KEY,
        "mask_keys": KEY,
        "commitments": HASH,
        "signatures": SIGNATURE,
    }
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
    sizes: ClassVar[Mapping[str, Size]] = {"sealed": SEALED_SHARES}
    client: str
    receivers: list[str]
    sealed: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Inbox(Message):
    """Step 3: the pairs of shares sealed for one client; its own row is empty."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients shared; one share of each of their secrets"
    sizes: ClassVar[Mapping[str, Size]] = {"sealed": SEALED_SHARES}
    senders: list[str]
    sealed: list[bytes]


@dataclass(frozen=True, kw_only=True)
class MaskedInput(Message):
    """Step 3, answer: the masked vector, tagged for the server.

    The tag's key is shared by this client and the server: it follows from the client's advertised, signed
    key and the server's key in the terms. A tag suffices, because only the server needs to know who sent
    the vector, and costs a fraction of a hash.
    """

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "uniform words, while one honest pair remains"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {"masked": VECTOR, "tag": TAG}
    client: str
    masked: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class Survivors(Message):
    """Step 4: the clients whose vectors arrived."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "whose vectors arrived"
    clients: list[str]


@dataclass(frozen=True, kw_only=True)
class Confirmation(Message):
    """Step 4, answer: a signature on the two sets that this client saw, U2 and U3."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "nothing new"
    sizes: ClassVar[Mapping[str, Size]] = {"signature": SIGNATURE}
    client: str
    signature: bytes

    @staticmethod
    def signed(context: bytes, shared: list[str], survivors: list[str]) -> bytes:
        """Return what the signature covers: both sets, sorted."""
        sets = json.dumps([sorted(shared), sorted(survivors)]).encode()
        return digest(b"confirm", context, sets)


@dataclass(frozen=True, kw_only=True)
class Confirmations(Message):
    """Step 5: the confirming signatures; row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "nothing new"
    sizes: ClassVar[Mapping[str, Size]] = {"signatures": SIGNATURE}
    clients: list[str]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Unmask(Message):
    """Step 5, answer: a share of each survivor's self mask and of each drop-out's mask key."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "with t of them: the sum over the survivors"
    sizes: ClassVar[Mapping[str, Size]] = {
        "self_shares": SHARE,
        "key_shares": SHARE,
        "signature": SIGNATURE,
    }
    client: str
    survivors: list[str]
    self_shares: list[bytes]
    dropped: list[str]
    key_shares: list[bytes]
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """Return what the signature covers."""
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


def from_fields(kind: type[M], raw: Mapping[str, Any]) -> M:
    """Return the message of class `kind` with these plain values, checked.

    Raises `DataError` for a missing or unknown field, or a value of the wrong type or size.
    """
    hints = _hints(kind)
    if len(raw) != len(hints) or any(name not in raw for name in hints):
        raise DataError(f"{kind.__name__}: fields {_first_names(raw)}; must be {sorted(hints)}")
    for name, hint in hints.items():
        _check_field(kind, name, hint, raw[name])
    return kind(**raw)


def check_names(value: Any, what: str) -> None:
    """Raise `DataError`, naming `what`, unless `value` is a list of at most `MAX_CLIENTS` client names."""
    if type(value) is not list or len(value) > MAX_CLIENTS:
        raise DataError(f"{what} must be a list of at most {MAX_CLIENTS} names, is {quoted(value)}")
    for name in value:
        check_name(name, what)


def check_name(value: Any, what: str) -> None:
    """Raise `DataError`, naming `what`, unless `value` is 1 to `MOST_NAME` printable characters."""
    if type(value) is not str or not 0 < len(value) <= MOST_NAME or not value.isprintable():
        raise DataError(f"{what} must be 1 to {MOST_NAME} printable characters, is {quoted(value)}")


def _hints(kind: type[Message]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}  # type: ignore[arg-type]


def _check_field(kind: type[Message], name: str, hint: Any, value: Any) -> None:
    what = f"{kind.__name__}: field {name}"
    if hint is str:
        check_name(value, what)
    elif hint == list[str]:
        check_names(value, what)
    else:
        size = kind.sizes[name]
        rows = value if hint == list[bytes] else [value]
        if type(rows) is not list or len(rows) > size.rows:
            raise DataError(f"{what} must be a list of at most {size.rows}, is {quoted(value)}")
        for row in rows:
            if type(row) is not bytes:
                raise DataError(f"{what} must be bytes, is {quoted(row)}")
            if not size.least <= len(row) <= size.most:
                lengths = f"{size.most}" if size.least == size.most else f"{size.least} to {size.most}"
                raise DataError(f"{what} must be of {lengths} bytes, is of {len(row)}")


def _first_names(raw: Mapping[str, Any]) -> str:
    names = [quoted(name) for name, _ in zip(raw, range(4), strict=False)]
    return f"[{', '.join(names)}{', ...' if len(raw) > len(names) else ''}]"
