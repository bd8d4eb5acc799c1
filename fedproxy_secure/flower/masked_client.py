"""The client's part in a protected round (masking or CKKS): train, keep the update, answer the steps.

Flower may run every message in a process of its own, so what a client needs between messages lies in its
context's state: the trained update and the session's secrets, sealed with a key that only this client's
identity gives. The state stays on the client's machine.

Guarantees: a message of a round or attempt at or before the last one seen is refused. A round whose sum was
unmasked once is unmasked again only for the same survivors, so that no two sums of it differ by one client.
With `protect.refuse_differencing` so it is under masking for all rounds together: it takes a threshold of
clients to unmask a sum, two thresholds have an honest client in common, and that one refuses the second.
Not guaranteed: a server may ask for the same round under other settings (a seed), which is another run; and
three sums or more may be combined. Survivors are kept in a file: whoever puts back an old one undoes that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, Context, RecordDict

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import client_privacy, wire
from fedproxy_secure.flower.masked_terms import first_clip, parts_of, ring_plan, run_name
from fedproxy_secure.secagg import primitives as crypto
from fedproxy_secure.secagg.ckks_client import CkksClient
from fedproxy_secure.secagg.ckks_messages import HelloBook, KeyGrant, Total
from fedproxy_secure.secagg.ckks_row import payload
from fedproxy_secure.secagg.client import ClientSession
from fedproxy_secure.secagg.control import encode_control
from fedproxy_secure.secagg.messages import Confirmations, Inbox, KeyBook, Message, Survivors
from fedproxy_secure.secagg.provision import load_identity, load_roster
from fedproxy_secure.secagg.ring import RingPlan, Segment, quantise
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.sketch import Standing
from fedproxy_secure.secagg.terms import Policy, Roster, Terms

if TYPE_CHECKING:  # it brings torch
    from fedproxy_secure.federate.client import LocalClient

STATE = "masking"
SURVIVORS = ".sums.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Terms that were checked, the update, and the last round's step as this client saw it (or None)."""

    terms: Terms
    update: ClientUpdate
    previous: np.ndarray | None


def train_and_advertise(
    client: LocalClient, job: FederationJob, content: RecordDict, context: Context
) -> RecordDict:
    """Check the terms, train, keep the update sealed, answer with fresh keys."""
    trained = train(client, job, content, context)
    return wire.encode_message(advertise(client, job, trained, context))


def train(client: LocalClient, job: FederationJob, content: RecordDict, context: Context) -> Trained:
    """Check the terms of a round that is new to this client, then train."""
    broadcast, proposed = wire.decode_broadcast(content), wire.decode_terms(content)
    identity, roster = own_keys(job, client.name)
    sizes = client.sizes
    plan = ring_plan(job, sizes, clip=proposed.clip, clients=len(proposed.cohort))
    terms = proposed.with_plan(plan)
    policy = Policy(
        roster=roster,
        settings_sha256=job.agreed_sha256(),
        colluders=job.protect.colluders,
        min_cohort=job.protect.min_cohort or 1,
    )
    policy.check(
        terms,
        name=client.name,
        broadcast_sha256=wire.broadcast_sha256(broadcast),
        plan=plan,
    )
    _check_clip(job, terms, proposed.clip)
    if terms.run != run_name(job):
        raise ProtocolAborted(f"run {terms.run[:80]}: must be {run_name(job)}")
    if broadcast.round != terms.round:
        raise ProtocolAborted(f"terms of round {terms.round}: the broadcast is of {broadcast.round}")
    record = context.state.config_records.get(STATE) or ConfigRecord()
    seen = [int(v) for v in json.loads(str(record.get("seen", "[-1, -1]")))]
    if [terms.round, terms.attempt] <= seen:
        raise ProtocolAborted(
            f"round {terms.round}, attempt {terms.attempt}: must come after {seen[0]}, {seen[1]}"
        )
    # one clip a round: whether a client's values exceed it would else tell them, clip by clip
    asked = [terms.run, terms.round, proposed.clip]
    before = json.loads(str(record.get("asked", "[]")))
    if before[:2] == asked[:2] and before != asked:
        raise ProtocolAborted(f"clip {proposed.clip:g}: must be {before[2]:g}, as asked for in this round")
    record["asked"] = json.dumps(asked)
    context.state.config_records[STATE] = record
    update = client.train(
        round=broadcast.round,
        start=broadcast.adapter,
        conflict=broadcast.conflict,
        pcr_lambda=broadcast.pcr_lambda,
        prox_mu=broadcast.prox_mu,
    )
    previous = _last_step(record, identity, broadcast.adapter)
    record["seen"] = json.dumps([terms.round, terms.attempt])
    record["terms"] = _terms_json(terms)
    record["broadcast"] = seal(identity, broadcast.adapter.tobytes(), b"broadcast")
    record["session"] = b""
    context.state.config_records[STATE] = record
    return Trained(terms=terms, update=update, previous=previous)


def advertise(
    client: LocalClient,
    job: FederationJob,
    trained: Trained,
    context: Context,
    *,
    standing: Standing | None = None,
) -> Message:
    """Step 1, once it is known how the update enters the sum; the words to be masked are kept sealed."""
    identity, roster = own_keys(job, client.name)
    terms, sizes = trained.terms, client.sizes
    if job.agreed_sha256() != terms.settings_sha256:
        raise ProtocolAborted("settings: were changed within an attempt")
    values, control = parts_of(
        trained.update, job, sizes, terms.plan, previous=trained.previous, standing=standing
    )
    session: ClientSession | CkksClient
    if job.protect.scheme == "ckks":
        session = CkksClient(name=client.name, identity=identity, terms=terms, roster=roster)
        words = payload(terms.plan, values, control, terms.context())
    else:
        session = ClientSession(name=client.name, identity=identity, terms=terms, roster=roster)
        noisy = job.privacy.unit == "client"
        segments = values | encode_control(control, terms.context())
        # another attempt has the same noise; were the words rounded anew, two sums would tell by how much
        words = quantise(terms.plan, segments, nearest=noisy).words
        if noisy:
            client_privacy.add_noise(words, terms.plan, job, client=client.name, terms=terms)
    answer = session.advertise()
    record = context.state.config_records[STATE]
    record["terms"] = _terms_json(terms)
    record["words"] = seal(identity, words.tobytes(), b"words")
    _keep(context, session, identity)
    return answer


def _check_clip(job: FederationJob, terms: Terms, clip: float) -> None:
    """A clip that follows from the settings is not the server's to choose; later ones are in `parts_of`."""
    if job.privacy.unit == "client":
        own = client_privacy.ring_clip(job.privacy, bits=job.protect.bits, clients=len(terms.cohort))
        source = "privacy.clip_norm has it"
    elif job.protect.clip is not None:
        own, source = job.protect.clip, "protect.clip has it"
    elif terms.round == 0:
        own, source = first_clip(job.local), "the optimiser's reach has it"
    else:
        return
    if clip != own:
        raise ProtocolAborted(f"clip {clip:g}: must be {own:g} as {source}")


def share(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Step 2."""
    session, identity = _session(job, name, context)
    if isinstance(session, CkksClient):
        answer: Message = session.share(wire.decode_message(HelloBook, content))
    else:
        answer = session.share(wire.decode_message(KeyBook, content))
    _keep(context, session, identity)
    return wire.encode_message(answer)


def mask(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Step 3; the plain words are forgotten."""
    session, identity = _session(job, name, context)
    record = context.state.config_records[STATE]
    raw = unseal(identity, record, "words")
    record["words"] = b""
    if isinstance(session, CkksClient):
        answer: Message = session.mask(wire.decode_message(KeyGrant, content), np.frombuffer(raw))
    else:
        words = np.frombuffer(raw, dtype=session.terms.plan.word_type).copy()
        answer = session.mask(wire.decode_message(Inbox, content), words)
    _keep(context, session, identity)
    return wire.encode_message(answer)


def confirm(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Step 4; refuses other survivors for a round that was unmasked before."""
    session, identity = _session(job, name, context)
    if isinstance(session, CkksClient):
        raise ProtocolAborted("confirm: is no step of CKKS")
    survivors = wire.decode_message(Survivors, content)
    _refuse_other_survivors(job, name, session.terms, survivors.clients, context)
    _refuse_differencing(job, name, survivors.clients)
    answer = session.confirm(survivors)
    _keep(context, session, identity)
    return wire.encode_message(answer)


def unmask(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Step 5; afterwards nothing of the attempt is left but which survivors were unmasked."""
    session, _ = _session(job, name, context)
    record = context.state.config_records[STATE]
    if isinstance(session, CkksClient):
        total = wire.decode_message(Total, content)
        survivors = total.clients
        answer: Message = session.unmask(total)
    else:
        survivors = json.loads(str(record["confirmed"]))[2]
        answer = session.unmask(wire.decode_message(Confirmations, content))
    # again: in another of Flower's runs others may have been unmasked since step 4
    _refuse_other_survivors(job, name, session.terms, survivors, context)
    _refuse_differencing(job, name, survivors)
    run, number, survivors = json.loads(str(record["confirmed"]))
    _remember_survivors(job, name, f"{run}/{number}", survivors)
    record["session"] = b""
    return wire.encode_message(answer)


def _refuse_other_survivors(
    job: FederationJob, name: str, terms: Terms, survivors: list[str], context: Context
) -> None:
    mine = sorted(survivors)
    if _survivors_so_far(job, name).get(f"{terms.run}/{terms.round}", mine) != mine:
        raise ProtocolAborted(
            f"survivors: round {terms.round} was unmasked for others; two sums tell them apart"
        )
    context.state.config_records[STATE]["confirmed"] = json.dumps([terms.run, terms.round, mine])


def _refuse_differencing(job: FederationJob, name: str, survivors: list[str]) -> None:
    """Raise `ProtocolAborted` if an earlier sum was over one client more, or one less."""
    if not job.protect.refuse_differencing:
        return
    for earlier in _survivors_so_far(job, name).values():
        if len(set(survivors) ^ set(earlier)) == 1:
            raise ProtocolAborted(
                "survivors: an earlier sum differs by one client; together they tell that one's part"
            )


def _survivors_file(job: FederationJob, name: str) -> Path:
    """Beside the key or, with noise of its own, the ledger: it must live as long as those.

    Not in Flower's state: a server opens as many of Flower's runs as it likes, each with its own state.
    """
    own = job.privacy.ledger if job.privacy.unit == "client" else job.protect.keys
    assert own is not None  # a session was opened with it
    return Path(own) / f"{name}{SURVIVORS}"


def _survivors_so_far(job: FederationJob, name: str) -> dict[str, list[str]]:
    """Of every sum that this client helped to unmask, by run and round."""
    file = _survivors_file(job, name)
    if not file.exists():
        return {}
    try:
        found: dict[str, list[str]] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ProtocolAborted(f"{file}: is damaged: {error}; what was unmasked is unknown") from error
    return found


def _remember_survivors(job: FederationJob, name: str, place: str, survivors: list[str]) -> None:
    """On disk before the answer leaves."""
    known = _survivors_so_far(job, name) | {place: survivors}
    write_bytes(_survivors_file(job, name), json.dumps(known).encode())


def kept_terms(record: ConfigRecord) -> Terms:
    """The terms of the attempt under way."""
    return _terms_from_json(str(record["terms"]))


def own_keys(job: FederationJob, name: str) -> tuple[Secret, Roster]:
    """This client's signing key and its own roster."""
    if job.protect.keys is None:
        raise ConfigError(f"protect.keys: must name the folder with {name}.key and roster.json")
    folder = Path(job.protect.keys)
    roster = load_roster(folder)
    return load_identity(folder, name, roster), roster


def _session(job: FederationJob, name: str, context: Context) -> tuple[ClientSession | CkksClient, Secret]:
    identity, roster = own_keys(job, name)
    record = context.state.config_records.get(STATE)
    if record is None or not record.get("session"):
        raise ProtocolAborted(f"client {name}: has no attempt under way")
    terms = kept_terms(record)
    kind = CkksClient if job.protect.scheme == "ckks" else ClientSession
    session = kind.thaw(
        Secret(unseal(identity, record, "session")),
        name=name,
        identity=identity,
        terms=terms,
        roster=roster,
    )
    record["session"] = b""  # a step that fails leaves nothing to try again with
    return session, identity


def _keep(context: Context, session: ClientSession | CkksClient, identity: Secret) -> None:
    record = context.state.config_records[STATE]
    record["session"] = seal(identity, session.freeze().reveal(), b"session")


def _last_step(record: ConfigRecord, identity: Secret, adapter: np.ndarray) -> np.ndarray | None:
    """What the last round changed in the broadcast adapter, as this client saw it; None in the first."""
    if not record.get("broadcast"):
        return None
    before = np.frombuffer(unseal(identity, record, "broadcast"), dtype=np.float32)
    return adapter - before if before.shape == adapter.shape else None


def seal(identity: Secret, plaintext: bytes, label: bytes) -> bytes:
    """For this client's state: only its identity opens it."""
    return crypto.seal(crypto.derive(identity, info=b"client state"), plaintext, associated=label)


def unseal(identity: Secret, record: Any, label: str) -> bytes:
    """What `seal` put under `label`."""
    sealed = record[label]
    assert isinstance(sealed, bytes)
    key = crypto.derive(identity, info=b"client state")
    return crypto.unseal(key, sealed, associated=label.encode(), what=f"client state, {label}")


def _terms_json(terms: Terms) -> str:
    raw = {k: v.hex() if isinstance(v, bytes) else v for k, v in terms.__dict__.items() if k != "plan"}
    plan = terms.plan
    segments = [[s.name, s.length, s.clip, s.largest] for s in plan.segments]
    return json.dumps({**raw, "plan": [plan.bits, plan.clients, segments]})


def _terms_from_json(text: str) -> Terms:
    raw = json.loads(text)
    bits, clients, segments = raw.pop("plan")
    plan = RingPlan(
        bits=bits,
        clients=clients,
        segments=tuple(Segment(name=n, length=d, clip=c, largest=m) for n, d, c, m in segments),
    )
    for name in (
        "server_key",
        "settings_sha256",
        "roster_sha256",
        "broadcast_sha256",
        "gram_sha256",
    ):
        raw[name] = bytes.fromhex(raw[name])
    return Terms(plan=plan, **raw | {"cohort": tuple(raw["cohort"])})
