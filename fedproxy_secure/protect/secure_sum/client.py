"""The client's part in a protected round (masking or CKKS): train, keep the update, answer the steps.

Guarantees: whatever the server sends, in any order, to any number of this client's processes at once and
over any number of Flower's runs, a client answers each step of an attempt once. It gives a round one clip,
one broadcast adapter, one cohort and one update, and helps to unmask it for one set of survivors. Under
masking, unmasking a sum takes a threshold of clients, and two thresholds of one cohort have an honest
client in common. So the server obtains at most one sum of each round that has this client in it. If it asks
again, it gets the same sum; where words are rounded at random, they are rounded anew, which hides nothing.
Under CKKS that holds for a server that follows the protocol. With `protect.refuse_differencing` no sum
differs by exactly one client from an earlier sum of any round.

Not guaranteed: that sums of several rounds reveal nothing together; anything once the client's journal was
replaced by an older copy together with the file that says how new it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.protect.base import ClientRequest, protection_of
from fedproxy_secure.protect.broadcast import agreed_broadcast, train_from
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.protect.secure_sum import noise as client_privacy
from fedproxy_secure.protect.secure_sum.sent import RoundMemory, RoundMemoryStore
from fedproxy_secure.protect.secure_sum.terms import (
    SAME_CLIP,
    chosen_clip,
    first_clip,
    largest_clip,
    least_sum,
    parts_of,
    ring_plan,
    run_name,
)
from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.messages import HelloBook, KeyGrant, Total
from fedproxy_secure.secagg.ckks.row import payload
from fedproxy_secure.secagg.control import encode_control
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.messages import Confirmations, Inbox, KeyBook, Message, Survivors
from fedproxy_secure.secagg.ring import quantise
from fedproxy_secure.secagg.sketch import Standing
from fedproxy_secure.secagg.terms import Terms, TermsPolicy

if TYPE_CHECKING:  # it imports torch
    from fedproxy_secure.federate.client import LocalClient


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Checked terms, the trained update, and the last round's step as this client saw it, or None."""

    journal: Journal
    terms: Terms
    update: ClientUpdate
    previous: np.ndarray | None


def train_and_advertise(
    client: LocalClient, job: FederationJob, content: RecordDict, context: Context, *, policy: bytes | None
) -> RecordDict:
    """Check the terms, train, keep the update sealed, and answer with fresh keys."""
    trained = train(client, job, content, context, policy=policy)
    return wire.encode_message(advertise(client, job, trained))


def train(
    client: LocalClient, job: FederationJob, content: RecordDict, context: Context, *, policy: bytes | None
) -> Trained:
    """Check the terms of an attempt, consume it, then train.

    All attempts at a round send what the first trained one kept, even where training does not repeat to the
    bit.

    Args:
        policy: hash of the client's own policy, which binds a seed to one run; None on one machine.
    """
    broadcast = agreed_broadcast(content, job, client.sizes)
    proposed = wire.decode_terms(content)
    identity, roster = attempt.own_keys(job, client.name)
    plan = ring_plan(job, client.sizes, clip=proposed.clip, clients=len(proposed.cohort))
    terms = proposed.with_plan(plan)
    floor = least_sum(job, clients=len(roster.members))
    terms_policy = TermsPolicy(
        roster=roster,
        settings_sha256=job.agreed_sha256(),
        colluders=job.protect.colluders,
        rounds=job.federate.rounds,
        min_cohort=floor,
        min_threshold=max(floor, job.protect.threshold or 0),
    )
    terms_policy.check(
        terms, name=client.name, broadcast_sha256=wire.broadcast_sha256(broadcast), plan=plan
    )
    _check_clip(job, terms, proposed.clip)
    if job.privacy.unit == "client":
        client_privacy.check_threshold(job, terms)
    if terms.run != run_name(job):
        raise ProtocolAborted(f"run {terms.run[:80]}: must be {run_name(job)}")
    if broadcast.round != terms.round:
        raise ProtocolAborted(f"terms of round {terms.round}: the broadcast is of {broadcast.round}")
    run = job.agreed_sha256().hex()
    journal = attempt.open_journal(job, client.name, context)
    if policy is not None:  # checked again: the roster may have changed since set-up bound the seed
        attempt.agree(job, client.name, policy, context)
    journal.begin(
        Attempt(
            run=run,
            round=terms.round,
            attempt=terms.attempt,
            context=attempt.attempt_id(terms),
            clip=proposed.clip,
            broadcast_sha256=terms.broadcast_sha256,
            cohort=terms.cohort,
        )
    )
    attempt.note_written(context, journal)
    sent = RoundMemoryStore(
        journal=journal, identity=identity, terms=terms, run=f"{run}/{roster.sha256().hex()}"
    )
    memory = sent.read(terms.round)
    if memory is None or job.audit.record:  # an evaluation also wants to see which records were drawn
        private = job.privacy.unit == "client"  # no error: it would reveal a failure without noise
        update = (client_privacy.trained_or_zero if private else train_from)(client, broadcast)
        memory = sent.keep(
            RoundMemory(update=update, previous=sent.last_step(broadcast.adapter), start=broadcast.adapter)
        )
    attempt.note_ledger(job, client.name, journal)
    previous = memory.previous if job.protect.weights == "self" else None
    return Trained(journal=journal, terms=terms, update=memory.update, previous=previous)


def advertise(
    client: LocalClient, job: FederationJob, trained: Trained, *, standing: Standing | None = None
) -> Message:
    """Answer step 1 once the client's weight in the sum is fixed; keep the words to be masked, sealed."""
    identity, roster = attempt.own_keys(job, client.name)
    terms, sizes = trained.terms, client.sizes
    if job.agreed_sha256() != terms.settings_sha256:
        raise ProtocolAborted("settings: were changed within an attempt")
    values, control = parts_of(
        trained.update, job, sizes, terms.plan, previous=trained.previous, standing=standing
    )
    session: ClientSession | CkksClient
    if _homomorphic(job):
        session = CkksClient(name=client.name, identity=identity, terms=terms, roster=roster)
        words = payload(terms.plan, values, control, terms.context())
    else:
        session = ClientSession(name=client.name, identity=identity, terms=terms, roster=roster)
        noisy = job.privacy.unit == "client"
        segments = values | encode_control(control, terms.context())
        # other attempts have the same noise: if words were rounded anew, two sums would tell the rounding
        words = quantise(terms.plan, segments, nearest=noisy).words
        if noisy:
            client_privacy.add_noise(words, terms.plan, job, client=client.name, terms=terms)
            attempt.note_ledger(job, client.name, trained.journal)
    answer = session.advertise()
    parts = {"words": words.tobytes(), "session": session.freeze().reveal()}
    attempt.keep(trained.journal, identity, terms, parts)
    return answer


def _check_clip(job: FederationJob, terms: Terms, clip: float) -> None:
    """Raise `ProtocolAborted` for a clip other than the settings', or, in later rounds, above their limit.

    `parts_of` refuses a clip that is too small. With one that is too large the ring's step would be larger
    than the update's numbers, and a sum would tell how many clients were above zero. Clips from learning
    rates may differ by `SAME_CLIP`; those that set the noise are exact.
    """
    chosen, room = chosen_clip(job, terms.round), SAME_CLIP
    if job.privacy.unit == "client":
        agreed = client_privacy.ring_clip(job.privacy, bits=job.protect.bits, clients=len(terms.cohort))
        source, room = "privacy.clip_norm", 0.0
    elif chosen is not None:
        agreed, source = chosen, "protect.clip and the round's learning rates"
    elif terms.round == 0:
        agreed, source = first_clip(job), "the optimiser's reach"
    else:
        most = largest_clip(job, terms.round)
        if not 0 < clip <= most * (1 + room):
            raise ProtocolAborted(
                f"clip {clip:g}: must be above 0 and at most {most:g}, the farthest reach"
            )
        return
    if not math.isclose(clip, agreed, rel_tol=room):
        raise ProtocolAborted(f"clip {clip:g}: must be {agreed:g}, which follows from {source}")


def share(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer step 2: seal shares of this client's secrets, or under CKKS the leader's key, for peers."""
    step, session, identity = _session(job, name, "share", context)
    if isinstance(session, CkksClient):
        answer: Message = session.share(wire.decode_message(HelloBook, content))
    else:
        answer = session.share(wire.decode_message(KeyBook, content))
    words = step.opened(identity, "words")
    _keep(step, session, identity, words=words)
    return wire.encode_message(answer)


def mask(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer step 3 with the masked or encrypted words, and forget the plain ones."""
    step, session, identity = _session(job, name, "mask", context)
    raw = step.opened(identity, "words")
    if isinstance(session, CkksClient):
        answer: Message = session.mask(wire.decode_message(KeyGrant, content), np.frombuffer(raw))
    else:
        words = np.frombuffer(raw, dtype=session.terms.plan.word_type).copy()
        answer = session.mask(wire.decode_message(Inbox, content), words)
    _keep(step, session, identity)
    return wire.encode_message(answer)


def confirm(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer step 4: sign the survivors, unless the round was unmasked for other survivors before."""
    step, session, identity = _session(job, name, "confirm", context)
    if isinstance(session, CkksClient):
        raise ProtocolAborted("confirm: is no step of CKKS")
    survivors = wire.decode_message(Survivors, content)
    answer = session.confirm(survivors)
    step.journal.check_survivors(
        run=job.agreed_sha256().hex(),
        round=step.terms.round,
        survivors=survivors.clients,
        refuse_differencing=job.protect.refuse_differencing,
    )
    _keep(step, session, identity, survivors=json.dumps(survivors.clients).encode())
    return wire.encode_message(answer)


def unmask(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer step 5: help to unmask the sum, then forget the attempt but for the unmasked survivors."""
    step, session, identity = _session(job, name, "unmask", context)
    if isinstance(session, CkksClient):
        total = wire.decode_message(Total, content)
        survivors = total.clients
        answer: Message = session.unmask(total)
    else:
        survivors = json.loads(step.opened(identity, "survivors"))
        answer = session.unmask(wire.decode_message(Confirmations, content))
    # checked and written down in one transaction: another attempt may be at this step just now
    step.journal.release(
        attempt.attempt_id(step.terms),
        run=job.agreed_sha256().hex(),
        round=step.terms.round,
        survivors=survivors,
        refuse_differencing=job.protect.refuse_differencing,
        once=job.protect.weights == "encrypted_gram",
    )
    attempt.note_written(context, step.journal)
    return wire.encode_message(answer)


def answers(
    step: Callable[[FederationJob, str, RecordDict, Context], RecordDict],
) -> Callable[[ClientRequest], RecordDict]:
    """Return a step of this module, or of `gram`, as a protection's answer to a message."""
    return lambda asked: step(asked.job, asked.name, asked.content, asked.context)


def _homomorphic(job: FederationJob) -> bool:
    return protection_of(job.protect).protocol == "ckks"


def _session(
    job: FederationJob, name: str, step_name: str, context: Context
) -> tuple[attempt.Step, ClientSession | CkksClient, Secret]:
    """Consume a step; return it, the session as the step before left it, and the client's identity."""
    identity, roster = attempt.own_keys(job, name)
    step = attempt.take(job, name, step_name, context)
    kind = CkksClient if _homomorphic(job) else ClientSession
    session = kind.thaw(
        Secret(step.opened(identity, "session")),
        name=name,
        identity=identity,
        terms=step.terms,
        roster=roster,
    )
    return step, session, identity


def _keep(
    step: attempt.Step, session: ClientSession | CkksClient, identity: Secret, **parts: bytes
) -> None:
    attempt.keep(step.journal, identity, step.terms, {"session": session.freeze().reveal(), **parts})
