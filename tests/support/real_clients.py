"""The project's own clients under a hand-driven server: each message of `client_model` as a real one.

The clients are those of `flower.masked_client`, with their keys, their journals on the disk and Flower's
records; only training is cut short, to a constant update. The server keeps all that it is sent, and puts
messages together from it. Where a part is missing it forges one, in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flwr.app import Context, RecordDict
from torch import nn

from fedproxy_secure import wire
from fedproxy_secure.config import (
    AdapterConfig,
    AuditConfig,
    ClientConfig,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.client import LocalClient
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.journal.newest import sequence_file
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.protect.secure_sum import attempt as attempts
from fedproxy_secure.protect.secure_sum import client as masked_client
from fedproxy_secure.protect.secure_sum.terms import first_clip, ring_plan, run_name
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg import messages as protocol
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.provision import load_identity, load_roster, provision
from fedproxy_secure.secagg.ring import add_packed
from fedproxy_secure.secagg.terms import Terms
from tests.support.client_model import Message, World

D = 8  # length of an update
POLICY = b"p" * 32


class Held(Journal):
    """The real journal; what is put is noted and put later, so that an answer can be held back."""

    noted: ClassVar[list[tuple[bytes, Mapping[str, bytes]]]] = []

    def put(self, context: bytes, kept: Mapping[str, bytes]) -> None:
        """Note it."""
        self.noted.append((context, kept))

    def put_now(self, context: bytes, kept: Mapping[str, bytes]) -> None:
        """Put what was noted."""
        super().put(context, kept)


@dataclass(frozen=True, kw_only=True)
class Constant(LocalClient):
    """A client whose training always gives `vector`, float32 [d]."""

    vector: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """One tensor."""
        return [len(self.vector)]

    def train(self, **_: Any) -> ClientUpdate:
        """At once."""
        return ClientUpdate(
            client=self.name, update=self.vector, loss=0.5, steps=self.local.steps, seconds=0.0, truncated=0
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that a world can be put back to."""

    journals: tuple[tuple[bytes, bytes], ...]  # of each client: the journal, and how new it is
    states: tuple[RecordDict, ...]
    heard: dict[Any, Any]
    waiting: dict[int, tuple[int, Any, Any]]
    words: dict[int, np.ndarray]


@dataclass(kw_only=True)
class RealWorld:
    """Clients c0, c1 ... of a `World`, their keys and journals in `folder`; the corrupted ones are last."""

    world: World
    folder: Path
    participation: float = 1.0
    journal: type[Held] = Held
    forged: bytes = b""  # in place of a confirmation that is missing
    job: FederationJob = field(init=False)
    terms: list[Terms] = field(init=False)
    heard: dict[Any, Any] = field(default_factory=dict)  # (attempt, client, step, ...) -> real answer
    waiting: dict[int, tuple[int, Any, Any]] = field(default_factory=dict)
    words: dict[int, np.ndarray] = field(default_factory=dict)  # what each client masks, uint32 [d]

    def __post_init__(self) -> None:
        self._on_disk: dict[int, tuple[bytes, bytes]] = {}  # journals as they were last read or written
        self.names = [f"c{i}" for i in range(self.world.clients)]
        if not (self.folder / ROSTER).exists():
            provision(self.names, self.folder)
        self.roster = load_roster(self.folder)
        self.keys = {n: load_identity(self.folder, n, self.roster) for n in self.names}
        self.job = FederationJob(
            seed=0,
            clients=tuple(ClientConfig(name=n, task="clinic") for n in self.names),
            data_root=None,
            max_tokens=64,
            adapter=AdapterConfig(),
            local=LocalConfig(),
            fusion=FusionConfig(rule="fedavg"),
            federate=FederateConfig(rounds=1, participation=self.participation),
            protect=ProtectConfig(keys=str(self.folder), colluders=self.world.corrupted),
            privacy=PrivacyConfig(),
            audit=AuditConfig(),
        )
        rng = np.random.default_rng(7)
        self.vectors = rng.uniform(-0.1, 0.1, (len(self.names), D)).astype(np.float32)
        self.broadcast = wire.Broadcast(
            round=0, adapter=np.zeros(D, np.float32), conflict=None, pcr_lambda=0.0, prox_mu=0.0
        )
        self.terms = [self._terms(i) for i in range(len(self.world.attempts))]
        self.contexts = [self._context() for _ in range(self.world.honest)]
        self.traitors = {
            (a, i): ClientSession(
                name=self.names[i], identity=self.keys[self.names[i]], terms=terms, roster=self.roster
            )
            for a, terms in enumerate(self.terms)
            for i in range(self.world.honest, self.world.clients)
            if self.names[i] in terms.cohort
        }
        for (a, i), session in self.traitors.items():
            self.heard[a, i, "advertise"] = session.advertise()

    # messages to clients

    def send(self, me: int, message: Message, *, seed: int = 0) -> bool:
        """Whether the client answers; what it answered is heard. `leave`: let a held answer go.

        `seed`: of the job that it was set up with last; attempts are agreed on for seed 0.
        """
        self._on_disk.pop(me, None)
        if message.kind == "leave":
            return self._leave(me, message.attempt)
        Held.noted.clear()
        try:
            with attempts.unsafe_journals(self.journal):
                content = self._content(me, message)
                answer = self._deliver(me, message.kind, content, self.job.changed(seed=seed))
        except ProtocolAborted:
            return False
        kept = Held.noted.pop() if Held.noted else None
        self.waiting[me] = (message.attempt, message, (kept, answer))
        if not self.world.split or message.kind == "unmask":
            return self._leave(me, message.attempt)
        return True

    def renew(self, me: int) -> None:
        """Forget what Flower remembers of a client, as a new run of Flower does."""
        self.contexts[me] = self._context()

    def save(self) -> Snapshot:
        """The world as it is."""
        return Snapshot(
            journals=tuple(self._journal(i) for i in range(self.world.honest)),
            states=tuple(self._copied(c.state) for c in self.contexts),
            heard=dict(self.heard),
            waiting=dict(self.waiting),
            words=dict(self.words),
        )

    def load(self, saved: Snapshot) -> None:
        """The world as it was."""
        for i, files in enumerate(saved.journals):
            if self._on_disk.get(i) is not files:
                for file, raw in zip(self._files(i), files, strict=True):
                    file.write_bytes(raw)
                self._on_disk[i] = files
        self.contexts = [self._context(self._copied(state)) for state in saved.states]
        self.heard, self.waiting = dict(saved.heard), dict(saved.waiting)
        self.words = dict(saved.words)

    def _deliver(self, me: int, kind: str, content: RecordDict, job: FederationJob) -> RecordDict:
        context, name = self.contexts[me], self.names[me]
        if kind == "begin":
            client = Constant(
                name=name,
                model=LentModel(nn.Identity()),
                items=[Encoded(ids=(1, 2), response_start=1)] * 2,
                truncated=0,
                pad_id=0,
                local=self.job.local,
                rounds=self.job.federate.rounds,
                seed=0,
                vector=self.vectors[me],
            )
            return masked_client.train_and_advertise(client, job, content, context, policy=POLICY)
        step: Callable[..., RecordDict] = getattr(masked_client, kind)
        return step(job, name, content, context)

    def _leave(self, me: int, number: int) -> bool:
        if self.waiting.get(me, (None,))[0] != number:
            return False
        _, message, (kept, answer) = self.waiting.pop(me)
        if kept is not None:
            try:
                self.journal(folder=self.folder, client=self.names[me]).put_now(*kept)
            except ProtocolAborted:
                return False
            if message.kind == "begin":
                words = attempts.unseal(self.keys[self.names[me]], kept[1]["words"], "words")
                self.words[me] = np.frombuffer(words, dtype=np.uint32)[:D]
        self._hear(me, message, answer)
        return True

    def _hear(self, me: int, message: Message, answer: RecordDict) -> None:
        a = message.attempt
        if message.kind == "begin":
            self.heard[a, me, "advertise"] = wire.decode_message(protocol.Advertise, answer)
        elif message.kind == "share":
            self.heard[a, me, "share"] = (message.names, wire.decode_message(protocol.Shares, answer))
        elif message.kind == "mask":
            masked = wire.decode_message(protocol.MaskedInput, answer).masked
            self.heard[a, me, "mask", message.names] = self._unpacked(a, masked)
            self.heard[a, me, "inbox"] = message.names
        elif message.kind == "confirm":
            inbox = self.heard[a, me, "inbox"]
            signature = wire.decode_message(protocol.Confirmation, answer).signature
            self.heard[a, me, "confirm", inbox, message.names] = signature
            self.heard[a, me, "shown"] = (inbox, message.names)
        else:
            self.heard[a, me, "unmask"] = wire.decode_message(protocol.Unmask, answer)

    # messages as they are put together

    def _content(self, me: int, message: Message) -> RecordDict:
        a, names = message.attempt, self.listed(message.names)
        if message.kind == "begin":
            terms = self.terms[a]
            return RecordDict(
                {
                    **wire.encode_broadcast(self.broadcast),
                    "terms": wire.encode_terms(terms, first_clip(self.job)),
                }
            )
        if message.kind == "share":
            return wire.encode_message(self.book(a, names))
        if message.kind == "mask":
            sealed = [self._sealed(a, i, me) for i in names]
            return wire.encode_message(protocol.Inbox(senders=self._named(names), sealed=sealed))
        if message.kind == "confirm":
            return wire.encode_message(protocol.Survivors(clients=self._named(names)))
        inbox, survivors = self.heard.get((a, me, "shown"), (0, 0))
        signatures = {i: self._signature(a, i, inbox, survivors) for i in self.listed(survivors)}
        given = {self.names[i]: s for i, s in signatures.items() if s}
        return wire.encode_message(
            protocol.Confirmations(clients=list(given), signatures=list(given.values()))
        )

    def book(self, a: int, clients: Sequence[int]) -> protocol.KeyBook:
        """The key book of these clients."""
        rows = [self._row(a, i) for i in clients]
        return protocol.KeyBook(
            clients=[r.client for r in rows],
            share_keys=[r.share_key for r in rows],
            mask_keys=[r.mask_key for r in rows],
            commitments=[r.commitment for r in rows],
            signatures=[r.signature for r in rows],
        )

    def _row(self, a: int, i: int) -> protocol.Advertise:
        if (a, i, "advertise") in self.heard:
            return self.heard[a, i, "advertise"]
        return protocol.Advertise(
            client=self.names[i],
            share_key=crypto.agreement_public(crypto.fresh_secret()),
            mask_key=crypto.agreement_public(crypto.fresh_secret()),
            commitment=bytes(32),
            signature=bytes(64),
        )

    def _sealed(self, a: int, sender: int, receiver: int) -> bytes:
        if sender == receiver:
            return b""
        name = self.names[receiver]
        if (a, sender) in self.traitors:
            book = self.heard.get((a, receiver, "share"))
            made = None if book is None else self._shares_of_traitor(a, sender, book[0])
        else:
            made = self.heard.get((a, sender, "share"), (0, None))[1]
        if made is None or name not in made.receivers:
            return bytes(crypto.NONCE_BYTES + 2 * 33 + crypto.TAG_BYTES)
        return made.sealed[made.receivers.index(name)]

    def _shares_of_traitor(self, a: int, sender: int, book: int) -> protocol.Shares | None:
        try:
            return self.traitor(a, sender).share(self.book(a, self.listed(book)))
        except ProtocolAborted:
            return None

    def traitor(self, a: int, i: int) -> ClientSession:
        """A corrupted client's session, as it was after its first step."""
        session = self.traitors[a, i]
        return ClientSession.thaw(
            session.freeze(),
            name=self.names[i],
            identity=self.keys[self.names[i]],
            terms=self.terms[a],
            roster=self.roster,
        )

    def _signature(self, a: int, i: int, inbox: int, survivors: int) -> bytes:
        if (a, i) not in self.traitors:
            signature: bytes = self.heard.get((a, i, "confirm", inbox, survivors), self.forged)
            return signature
        sets = [self._named(self.listed(s)) for s in (inbox, survivors)]
        covered = protocol.Confirmation.signed(self.terms[a].context(), *sets)
        return crypto.sign(self.keys[self.names[i]], covered)

    # inside

    def _terms(self, number: int) -> Terms:
        wanted = self.world.attempts[number]
        cohort = tuple(self._named(self.listed(wanted.cohort)))
        clip = first_clip(self.job)
        return Terms(
            run=run_name(self.job),
            round=0,
            attempt=number,
            cohort=cohort,
            threshold=wanted.threshold,
            server_key=crypto.agreement_public(crypto.fresh_secret()),
            settings_sha256=self.job.agreed_sha256(),
            roster_sha256=self.roster.sha256(),
            broadcast_sha256=wire.broadcast_sha256(self.broadcast),
            plan=ring_plan(self.job, [D], clip=clip, clients=len(cohort)),
        )

    def _context(self, state: RecordDict | None = None) -> Context:
        return Context(run_id=1, node_id=1, node_config={}, state=state or RecordDict(), run_config={})

    def _copied(self, state: RecordDict) -> RecordDict:
        copy = RecordDict()
        for name, record in state.config_records.items():
            copy[name] = type(record)(dict(record))
        return copy

    def _journal(self, i: int) -> tuple[bytes, bytes]:
        if i not in self._on_disk:
            journal, sequence = (file.read_bytes() for file in self._files(i))
            self._on_disk[i] = (journal, sequence)
        return self._on_disk[i]

    def _files(self, i: int) -> tuple[Path, Path]:
        journal = journal_file(self.folder, self.names[i])
        return journal, sequence_file(journal)

    def _unpacked(self, a: int, masked: bytes) -> np.ndarray:
        plan = self.terms[a].plan
        words = np.zeros(plan.words, dtype=plan.word_type)
        add_packed(plan, words, masked)
        return words[:D]

    def listed(self, clients: int) -> list[int]:
        """The numbers in a set of clients."""
        return [i for i in range(clients.bit_length()) if clients >> i & 1]

    def _named(self, clients: Sequence[int]) -> list[str]:
        return [self.names[i] for i in clients]
