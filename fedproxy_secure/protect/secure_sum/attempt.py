"""The state of an attempt between its steps, which a client keeps sealed in its journal.

Flower may handle every message in a process of its own, several at once, each with its own copy of the
context's state. So nothing of an attempt lies in that state: the session's secrets, the words to be masked
and the trained update lie in the client's journal, which grants each step once (`fedproxy_secure.journal`).
Flower's state holds one number, how often the journal was written. So does a file beside the journal, which
is the same in all of Flower's runs, so that a journal that was replaced by an older copy is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flwr.app import ConfigRecord, Context

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import create_journal, journal_file
from fedproxy_secure.runtime.artifacts import private_folder
from fedproxy_secure.runtime.files.names import PRIVACY_LEDGER, ROSTER
from fedproxy_secure.secagg.provision import load_identity, load_roster
from fedproxy_secure.secagg.ring import RingPlan, Segment
from fedproxy_secure.secagg.terms import Roster, Terms

ONE_MACHINE = "one-machine"  # a node's setting: this machine plays server and clients
# a variable that is 1 if this machine plays everybody, for engines whose node settings cannot say so
ONE_MACHINE_VARIABLE = "FEDPROXY_ONE_MACHINE"
_STATE = "journal"
_HASHES = ("server_key", "settings_sha256", "roster_sha256", "broadcast_sha256", "gram_sha256")


_kinds: list[type[Journal]] = [Journal]


@contextmanager
def unsafe_journals(kind: type[Journal]) -> Iterator[None]:
    """Let clients of this process keep known-bad journals in a `with` block, to see what attacks read."""
    _kinds.append(kind)
    try:
        yield
    finally:
        _kinds.pop()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that the journal granted: the attempt's terms, and the sealed values kept for the step."""

    journal: Journal
    terms: Terms
    kept: Mapping[str, bytes]

    def opened(self, identity: Secret, label: str) -> bytes:
        """Open and return what was kept under `label`.

        Raises `ProtocolAborted` if nothing was kept under it, or if it does not open.
        """
        if label not in self.kept:
            raise ProtocolAborted(f"{label}: is not kept for this step; each step runs once, in order")
        return unseal(identity, self.kept[label], label)


def plays_everybody(context: Context) -> bool:
    """Return whether this machine plays server and clients, as the in-process and simulation engines do.

    The node's settings or the environment say so. Whoever starts the client writes them, no server does.
    """
    return bool(context.node_config.get(ONE_MACHINE)) or os.environ.get(ONE_MACHINE_VARIABLE) == "1"


def own_keys(job: FederationJob, name: str) -> tuple[Secret, Roster]:
    """Return this client's signing key and its own copy of the roster."""
    folder = _keys_of(job, name)
    roster = load_roster(folder)
    return load_identity(folder, name, roster), roster


def _keys_of(job: FederationJob, name: str) -> Path:
    if job.protect.keys is None:
        raise ConfigError(f"protect.keys: must name the folder with {name}.key and {ROSTER}")
    return Path(job.protect.keys)


def open_journal(job: FederationJob, name: str, context: Context) -> Journal:
    """Return this client's journal, as new as the file beside it and Flower's state remember it.

    The journal lies beside the key, where `provision` made it. Where one machine plays everybody with the
    privacy unit `client`, it lies beside the ledger: there keys are made anew for every call, but the
    noise of a round is kept, and the journal belongs to it.

    Raises `ConfigError` if the journal is missing, `ProtocolAborted` if an older copy took its
    place, or that of the privacy ledger.
    """
    folder = _keys_of(job, name)
    if job.privacy.unit == "client" and plays_everybody(context):
        if job.privacy.ledger is None:
            raise ConfigError("privacy.ledger: must name the folder in which to write what was spent")
        folder = private_folder(Path(job.privacy.ledger))
        fresh = not (folder / f"{name}{PRIVACY_LEDGER}").exists()
        if fresh and not journal_file(folder, name).exists():
            create_journal(folder, name)
    journal = _kinds[-1](folder=folder, client=name)
    record = context.state.config_records.get(_STATE)
    journal.check_not_older(
        sequence=0 if record is None else int(str(record["sequence"])),
        run=job.agreed_sha256().hex(),
        ledger_events=partial(_ledger_events, job, name),
    )
    return journal


def agree(job: FederationJob, name: str, policy: bytes, context: Context) -> None:
    """Bind the policy and the job's seed to this job and this client's roster, if they are not bound yet.

    Raises `ProtocolAborted` if they are bound to another job or roster.
    """
    _, roster = own_keys(job, name)
    journal = open_journal(job, name, context)
    run = job.agreed_sha256().hex()
    journal.agree(policy=policy, seed=job.seed, run=run, roster_sha256=roster.sha256())


def note_written(context: Context, journal: Journal) -> None:
    """Write into Flower's state how new the journal is; called last, before an answer leaves."""
    context.state.config_records[_STATE] = ConfigRecord({"sequence": str(journal.sequence())})


def note_ledger(job: FederationJob, name: str, journal: Journal) -> None:
    """Write into the journal how many events the privacy ledger has."""
    if job.privacy.unit != "none":
        journal.note_ledger(run=job.agreed_sha256().hex(), events=_ledger_events(job, name))


def take(job: FederationJob, name: str, step: str, context: Context) -> Step:
    """Consume a step of the attempt under way, and return what was kept for it.

    Raises `ProtocolAborted` if the step was consumed before, or if no attempt is under way.
    """
    journal = open_journal(job, name, context)
    kept = journal.take(step)
    note_written(context, journal)
    if "terms" not in kept:
        raise ProtocolAborted(f"client {name}: has no attempt under way")
    terms = terms_from_json(kept["terms"])
    if job.agreed_sha256() != terms.settings_sha256:  # the server has sent another job in the meantime
        raise ProtocolAborted("settings: were changed within an attempt")
    return Step(journal=journal, terms=terms, kept=kept)


def keep(journal: Journal, identity: Secret, terms: Terms, parts: Mapping[str, bytes]) -> None:
    """Keep the terms and the sealed parts for the next step; only then may the answer leave."""
    sealed = {label: seal(identity, part, label) for label, part in parts.items()}
    journal.put(attempt_id(terms), {"terms": terms_json(terms), **sealed})


def attempt_id(terms: Terms) -> bytes:
    """Return 32 bytes that identify an attempt from its beginning, before its cosines are known."""
    return replace(terms, gram_sha256=b"").context()


def seal(identity: Secret, plaintext: bytes, label: str) -> bytes:
    """Seal bytes for the journal: only this client's identity opens them, under the same label."""
    key = crypto.derive(identity, info=b"client state")
    return crypto.seal(key, plaintext, associated=label.encode())


def unseal(identity: Secret, sealed: bytes, label: str) -> bytes:
    """Open what `seal` sealed under the same label. Raises `ProtocolAborted` if it does not open."""
    key = crypto.derive(identity, info=b"client state")
    return crypto.unseal(key, sealed, associated=label.encode(), what=f"journal, {label}")


def terms_json(terms: Terms) -> bytes:
    """Return terms as JSON."""
    raw = {k: v.hex() if isinstance(v, bytes) else v for k, v in terms.__dict__.items() if k != "plan"}
    plan = terms.plan
    segments = [[s.name, s.length, s.clip, s.largest] for s in plan.segments]
    return json.dumps({**raw, "plan": [plan.bits, plan.clients, segments]}).encode()


def terms_from_json(text: bytes) -> Terms:
    """Return the terms that `terms_json` wrote."""
    raw = json.loads(text)
    bits, clients, segments = raw.pop("plan")
    plan = RingPlan(
        bits=bits,
        clients=clients,
        segments=tuple(Segment(name=n, length=d, clip=c, largest=m) for n, d, c, m in segments),
    )
    for name in _HASHES:
        raw[name] = bytes.fromhex(raw[name])
    return Terms(plan=plan, **raw | {"cohort": tuple(raw["cohort"])})


def _ledger_events(job: FederationJob, name: str) -> int:
    """Return how many events the privacy ledger holds; 0 without a ledger."""
    if job.privacy.unit == "none" or job.privacy.ledger is None:
        return 0
    try:
        lines = (Path(job.privacy.ledger) / f"{name}{PRIVACY_LEDGER}").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
    return max(0, lines - 1)  # the first line is the header
