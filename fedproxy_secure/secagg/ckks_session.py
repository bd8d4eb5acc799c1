"""The CKKS back end: two state machines like the masking protocol's, one round trip shorter.

    client -> server   Hello        agreement key, signature
    server -> leader   HelloBook    all of them
    leader -> server   KeyGrants    a fresh public context; the secret one sealed for every peer, signed
    server -> client   KeyGrant     this client's
    client -> server   Encrypted    the encrypted vector, tagged for the server
    server -> client   Total        the encrypted sum, who is in it, who sends it opened
    client -> server   Opened       the opened sum (from one), a signature on its hash (from all)

The leader is the client that the context's hash picks, so the server cannot choose it.

Guarantees, against a server that follows the protocol and is curious: it learns the sum over at least t
clients. The sum is accepted only if t clients opened the same one. Every client checks that the opened sum
counts the clients it is said to hold, and opens one sum an attempt.
**Not guaranteed**: anything against a server together with one client, which has the key, or against a
server that adds to ciphertexts (whoever can encrypt can forge the count). Masking guarantees more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg import ckks
from fedproxy_secure.secagg import primitives as crypto
from fedproxy_secure.secagg.client import upload_key
from fedproxy_secure.secagg.control import NAMES, SENTINELS, Control, sentinels
from fedproxy_secure.secagg.messages import Message, Surface
from fedproxy_secure.secagg.ring import RingPlan, Segment
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.server import Aggregate
from fedproxy_secure.secagg.terms import Roster, Terms

T = TypeVar("T")
STEPS = ("advertise", "share", "mask", "unmask", "over")
# so that every control number of every client stays far below ckks.BOUND and far above its errors
CONTROL_UNITS = {
    "clients": 1.0,
    "weight": 1.0,
    "clipped": 2.0**24,
    "loss": 1.0,
    "steps": 1000.0,
    "largest": 1000.0,
}
TOLERANCE = 1e-3  # of counts and sentinels


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """Step 1: a fresh agreement key."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "that the client takes part"
    client: str
    share_key: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """What the signature covers."""
        return crypto.digest(b"hello", context, self.client.encode(), self.share_key)


@dataclass(frozen=True, kw_only=True)
class HelloBook(Message):
    """Step 2, to the leader: row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients take part"
    clients: list[str]
    share_keys: list[bytes]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class KeyGrants(Message):
    """Step 2, the leader's answer: the public context, and the secret one sealed for each receiver."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "the public CKKS context"
    client: str
    share_key: bytes
    public: bytes
    receivers: list[str]
    sealed: list[bytes]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class KeyGrant(Message):
    """Step 3: one client's part of them."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "the secret CKKS key, to every client: any one can open every vector"
    leader: str
    share_key: bytes
    public: bytes
    sealed: bytes
    signature: bytes

    def signed(self, context: bytes, receiver: str) -> bytes:
        """What the leader's signature covers."""
        parts = (self.leader.encode(), self.share_key, receiver.encode(), self.public, self.sealed)
        return crypto.digest(b"grant", context, *parts)


@dataclass(frozen=True, kw_only=True)
class Encrypted(Message):
    """Step 3, answer: the encrypted vector."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "ciphertexts; to whoever has the secret key, the whole update"
    client: str
    encrypted: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class Total(Message):
    """Step 4: the encrypted sum over `clients`; `opener` sends it back opened, the others its hash."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "the sum, to every client"
    clients: list[str]
    encrypted: bytes
    opener: str


@dataclass(frozen=True, kw_only=True)
class Opened(Message):
    """Step 4, answer: float64 numbers of the sum (empty but from the opener), a signature on their hash."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "the sum over the clients, rounded to a grid"
    client: str
    values: bytes
    values_sha256: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """What the signature covers."""
        return crypto.digest(b"opened", context, self.client.encode(), self.values_sha256)


MESSAGES: tuple[type[Message], ...] = (
    Hello,
    HelloBook,
    KeyGrants,
    KeyGrant,
    Encrypted,
    Total,
    Opened,
)


def leader_of(context: bytes, clients: list[str]) -> str:
    """The client that makes the key: picked by hash among those that said hello."""
    return min(clients, key=lambda name: crypto.digest(b"leader", context, name.encode()))


def control_length() -> int:
    """Numbers after the segments: the control numbers and the sentinels."""
    return len(NAMES) + SENTINELS


def row_length(plan: RingPlan) -> int:
    """How many numbers a client encrypts."""
    return sum(s.length for s in real_segments(plan)) + control_length()


def real_segments(plan: RingPlan) -> list[Segment]:
    """The segments that carry the update; the control ones are laid out here in another way."""
    return [s for s in plan.segments if s.clip is not None]


def payload(plan: RingPlan, values: dict[str, np.ndarray], control: Control, context: bytes) -> np.ndarray:
    """A client's numbers in a row, float64: its segments, clipped, then control numbers and sentinels.

    Raises `DataError` for a missing segment, another length, NaN or infinity.
    """
    parts = []
    for segment in real_segments(plan):
        part = np.asarray(values[segment.name], dtype=np.float64)
        if part.shape != (segment.length,) or not np.isfinite(part).all():
            raise DataError(f"segment {segment.name}: must be {segment.length} finite numbers")
        parts.append(np.clip(part, -float(segment.clip or 0), float(segment.clip or 0)))
    parts.append(np.array([getattr(control, n) / CONTROL_UNITS[n] for n in NAMES]))
    parts.append(sentinels(context) / 1000.0)
    return np.concatenate(parts)


def read_payload(plan: RingPlan, total: np.ndarray, context: bytes, clients: int) -> Aggregate:
    """The sums from an opened row.

    Raises `ProtocolAborted` if the count or the sentinels are not those of `clients` vectors.
    """
    tail = total[len(total) - control_length() :]
    if np.abs(tail[len(NAMES) :] - clients * sentinels(context) / 1000.0).max() > TOLERANCE:
        raise ProtocolAborted("sentinels: are wrong; the vector is not the sum of these clients")
    if abs(tail[0] - clients) > TOLERANCE:
        raise ProtocolAborted(f"count in the sum is {tail[0]:.3f}: must be {clients}")
    numbers = {n: float(v) * CONTROL_UNITS[n] for n, v in zip(NAMES, tail, strict=False)}
    sums, at = {}, 0
    for segment in real_segments(plan):
        sums[segment.name] = total[at : at + segment.length]
        at += segment.length
    control = Control(
        clients=clients,
        weight=numbers["weight"],
        clipped=round(numbers["clipped"]),
        loss=numbers["loss"],
        steps=round(numbers["steps"]),
        largest=max(numbers["largest"], 0.0),
    )
    return Aggregate(clients=(), sums=sums, control=control)


class CkksClient:
    """One client in one attempt; the steps have the names they have in masking."""

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        self.name, self.terms, self.roster = name, terms, roster
        self._identity = identity
        self._root = root or crypto.fresh_secret()
        self._context = terms.context()
        self._step = "advertise"
        self._key: Secret | None = None

    def advertise(self) -> Hello:
        """Step 1."""
        return self._once("advertise", self._hello)

    def _hello(self) -> Hello:
        key = crypto.agreement_public(self._share_private())
        unsigned = Hello(client=self.name, share_key=key, signature=b"")
        return replace(unsigned, signature=crypto.sign(self._identity, unsigned.signed(self._context)))

    def share(self, book: HelloBook) -> KeyGrants:
        """Step 2, the leader alone: a fresh key for everyone in the book."""
        return self._once("share", lambda: self._grant(book))

    def _grant(self, book: HelloBook) -> KeyGrants:
        if not len(book.clients) == len(book.share_keys) == len(book.signatures):
            raise ProtocolAborted("hello book: columns must have the same length")
        self._check_names(book.clients, "hello book")
        if leader_of(self._context, book.clients) != self.name:
            raise ProtocolAborted(f"hello book: {self.name} does not lead these clients")
        keys = ckks.make_keys()
        own = crypto.agreement_public(self._share_private())
        sealed, signatures = [], []
        for client, key, signature in zip(book.clients, book.share_keys, book.signatures, strict=True):
            row = Hello(client=client, share_key=key, signature=signature)
            what = f"hello book, signature of {client}"
            crypto.verify(self.roster.members[client], row.signed(self._context), signature, what=what)
            channel = crypto.agree(
                self._share_private(), key, info=self._route(self.name, client), what=what
            )
            letter = crypto.seal(channel, keys.secret.reveal(), associated=self._route(self.name, client))
            grant = KeyGrant(
                leader=self.name, share_key=own, public=keys.public, sealed=letter, signature=b""
            )
            sealed.append(letter)
            signatures.append(crypto.sign(self._identity, grant.signed(self._context, client)))
        return KeyGrants(
            client=self.name,
            share_key=own,
            public=keys.public,
            receivers=book.clients,
            sealed=sealed,
            signatures=signatures,
        )

    def mask(self, grant: KeyGrant, row: np.ndarray) -> Encrypted:
        """Step 3: encrypt this client's row (of `payload`) under the granted key."""
        if self._step == "share":  # only the leader has that step
            self._step = "mask"
        return self._once("mask", lambda: self._encrypt(grant, row))

    def _encrypt(self, grant: KeyGrant, row: np.ndarray) -> Encrypted:
        if grant.leader not in self.terms.cohort:
            raise ProtocolAborted(f"key grant: {grant.leader[:80]} does not belong there")
        what = f"key grant of {grant.leader}"
        signed = grant.signed(self._context, self.name)
        crypto.verify(self.roster.members[grant.leader], signed, grant.signature, what=what)
        route = self._route(grant.leader, self.name)
        channel = crypto.agree(self._share_private(), grant.share_key, info=route, what=what)
        self._key = Secret(crypto.unseal(channel, grant.sealed, associated=route, what=what))
        encrypted = ckks.encrypt(grant.public, row)
        key = upload_key(
            self._share_private(), self.terms.server_key, self._context, self.name, "server key"
        )
        return Encrypted(client=self.name, encrypted=encrypted, tag=crypto.tag(key, encrypted))

    def unmask(self, total: Total) -> Opened:
        """Step 4: open the sum, once, if it counts the clients it is said to hold."""
        return self._once("unmask", lambda: self._open(total))

    def _open(self, total: Total) -> Opened:
        self._check_names(total.clients, "total")
        assert self._key is not None  # the order of steps sees to it
        length = row_length(self.terms.plan)
        try:
            values = ckks.decrypt(self._key, total.encrypted, length)
        except DataError as error:
            raise ProtocolAborted(f"total: {error}") from error
        read_payload(self.terms.plan, values, self._context, len(total.clients))
        raw = values.astype("<f8").tobytes()
        unsigned = Opened(
            client=self.name,
            values=raw if total.opener == self.name else b"",
            values_sha256=crypto.digest(raw),
            signature=b"",
        )
        answer = replace(unsigned, signature=crypto.sign(self._identity, unsigned.signed(self._context)))
        self._end()
        return answer

    def freeze(self) -> Secret:
        """Everything this session needs to go on elsewhere; terms and identity are not in it."""
        state = {
            "root": self._root.reveal().hex(),
            "step": self._step,
            "context": self._context.hex(),
            "key": None if self._key is None else self._key.reveal().hex(),
        }
        return Secret(json.dumps(state).encode())

    @classmethod
    def thaw(
        cls, frozen: Secret, *, name: str, identity: Secret, terms: Terms, roster: Roster
    ) -> CkksClient:
        """Go on where `freeze` left. Raises `ProtocolAborted` if it was frozen under other terms."""
        state = json.loads(frozen.reveal())
        root = Secret(bytes.fromhex(state["root"]))
        session = cls(name=name, identity=identity, terms=terms, roster=roster, root=root)
        if bytes.fromhex(state["context"]) != session._context:
            raise ProtocolAborted("session: belongs to other terms")
        session._step = state["step"]
        session._key = None if state["key"] is None else Secret(bytes.fromhex(state["key"]))
        return session

    def _once(self, step: str, action: Callable[[], T]) -> T:
        if self._step != step:
            raise ProtocolAborted(f"{step}: asked when {self._step} is next; each step runs once, in order")
        try:
            answer = action()
        except BaseException:
            self._end()
            raise
        if self._step == step:
            self._step = STEPS[STEPS.index(step) + 1]
        return answer

    def _end(self) -> None:
        self._step, self._root, self._key = "over", Secret(b""), None

    def _check_names(self, names: list[str], what: str) -> None:
        if len(set(names)) != len(names) or set(names) - set(self.terms.cohort):
            raise ProtocolAborted(f"{what}: must name clients of the cohort, each once")
        if self.name not in names:
            raise ProtocolAborted(f"{what}: this client is missing")
        if len(names) < self.terms.threshold:
            raise ProtocolAborted(f"{what}: {len(names)} clients; must be >= {self.terms.threshold}")

    def _share_private(self) -> Secret:
        return crypto.derive(self._root, info=b"share key|" + self._context)

    def _route(self, sender: str, receiver: str) -> bytes:
        return crypto.digest(b"key grant", self._context, sender.encode(), receiver.encode())


class CkksServer:
    """The server in one attempt: `advertised`*, `hello_book`, `granted`, `grants`, `encrypted`*, `total`,
    `opened`*, `finish` (* once per client that answers)."""

    def __init__(self, *, terms: Terms, roster: Roster, private: Secret) -> None:
        self.terms, self.roster, self._private = terms, roster, private
        self._context = terms.context()
        self._hellos: dict[str, Hello] = {}
        self._grants: KeyGrants | None = None
        self._sum: ckks.CkksSum | None = None
        self._added: list[str] = []
        self._opened: dict[str, Opened] = {}

    def advertised(self, message: Hello) -> None:
        """Take a client's key."""
        self._expect(message.client, self.terms.cohort, self._hellos, "advertise")
        self._verify(message.client, message.signed(self._context), message.signature)
        self._hellos[message.client] = message

    def hello_book(self) -> tuple[str, HelloBook]:
        """Close step 1: who leads, and what to send to that client."""
        self._enough(len(self._hellos), "advertise")
        names = sorted(self._hellos)
        book = HelloBook(
            clients=names,
            share_keys=[self._hellos[n].share_key for n in names],
            signatures=[self._hellos[n].signature for n in names],
        )
        return leader_of(self._context, names), book

    def granted(self, message: KeyGrants) -> None:
        """Take the leader's key."""
        names = sorted(self._hellos)
        if message.client != leader_of(self._context, names) or self._grants is not None:
            raise ProtocolAborted(f"key grants of {message.client[:80]}: do not belong there")
        if message.receivers != names or not len(message.sealed) == len(message.signatures) == len(names):
            raise ProtocolAborted(f"key grants of {message.client}: must be one for each client")
        try:
            self._sum = ckks.CkksSum(message.public, row_length(self.terms.plan))
        except DataError as error:
            raise ProtocolAborted(f"key grants of {message.client}: {error}") from error
        self._grants = message

    def grants(self) -> dict[str, KeyGrant]:
        """Close step 2. Raises `ProtocolAborted` if the leader did not answer."""
        made = self._grants
        if made is None:
            raise ProtocolAborted("share: the leader sent no key")
        return {
            client: KeyGrant(
                leader=made.client,
                share_key=made.share_key,
                public=made.public,
                sealed=sealed,
                signature=signature,
            )
            for client, sealed, signature in zip(made.receivers, made.sealed, made.signatures, strict=True)
        }

    def encrypted(self, message: Encrypted) -> None:
        """Add an encrypted vector; it is not kept."""
        self._expect(message.client, self._hellos, self._added, "mask")
        what = f"mask, tag of {message.client}"
        public = self._hellos[message.client].share_key
        key = upload_key(self._private, public, self._context, message.client, what)
        crypto.check_tag(key, message.encrypted, message.tag, what=what)
        assert self._sum is not None  # `grants` sees to it
        try:
            self._sum.add(message.encrypted)
        except DataError as error:
            raise ProtocolAborted(f"{message.client}: {error}") from error
        self._added.append(message.client)

    def total(self) -> Total:
        """Close step 3."""
        self._enough(len(self._added), "mask")
        assert self._sum is not None
        self._added.sort()
        return Total(
            clients=list(self._added),
            encrypted=self._sum.packed(),
            opener=leader_of(b"opener" + self._context, self._added),
        )

    def opened(self, message: Opened) -> None:
        """Take an opened sum, or a hash of it."""
        self._expect(message.client, self._added, self._opened, "unmask")
        self._verify(message.client, message.signed(self._context), message.signature)
        if message.values and crypto.digest(message.values) != message.values_sha256:
            raise ProtocolAborted(f"opened by {message.client}: does not have the hash it signed")
        self._opened[message.client] = message

    def finish(self) -> Aggregate:
        """The sums, if t clients opened the same numbers. Raises `ProtocolAborted` otherwise."""
        opener = leader_of(b"opener" + self._context, self._added)
        if opener not in self._opened or not self._opened[opener].values:
            raise ProtocolAborted(f"unmask: {opener} did not send the opened sum")
        raw = self._opened[opener]
        agree = sum(o.values_sha256 == raw.values_sha256 for o in self._opened.values())
        self._enough(agree, "unmask, opened alike")
        values = np.frombuffer(raw.values, dtype="<f8")
        made = read_payload(self.terms.plan, values, self._context, len(self._added))
        return replace(made, clients=tuple(self._added))

    def _expect(self, client: str, among: object, done: object, step: str) -> None:
        if client not in among or client in done:  # type: ignore[operator]
            raise ProtocolAborted(f"{step}: {client[:80]} does not belong there, or answered already")

    def _verify(self, client: str, message: bytes, signature: bytes) -> None:
        crypto.verify(self.roster.members[client], message, signature, what=f"signature of {client}")

    def _enough(self, count: int, step: str) -> None:
        if count < self.terms.threshold:
            raise ProtocolAborted(
                f"{step}: {count} of {len(self.terms.cohort)} clients; must be >= {self.terms.threshold}"
            )
