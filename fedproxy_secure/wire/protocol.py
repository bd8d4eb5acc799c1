"""Messages of secure aggregation, the terms of a round, and the steps of other packages' schemes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.messages import MOST_NAME, Message, check_names, from_fields
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.terms import HASH_BYTES, Terms
from fedproxy_secure.wire.records import (
    check_records,
    integer,
    number,
    plain_text,
    raw_bytes,
    record,
)

_HASHES = ("server_key", "settings_sha256", "roster_sha256", "broadcast_sha256", "plan_sha256")
_TERMS = {"run", "round", "attempt", "cohort", "threshold", "clip", *_HASHES}
M = TypeVar("M", bound=Message)


def encode_message(message: Message) -> RecordDict:
    """Encode a message of the masking protocol."""
    return RecordDict({"protocol": ConfigRecord(message.to_fields())})


def decode_message(kind: type[M], content: RecordDict) -> M:
    """Decode a message of the class `kind`.

    Raises `DataError` for anything missing, unknown, of the wrong type or too large.
    """
    check_records(content, kind.__name__, must={"protocol"}, may={"gram"})
    fields = content["protocol"]
    if not isinstance(fields, ConfigRecord):
        raise DataError(f"{kind.__name__}: record `protocol` must be a ConfigRecord")
    return from_fields(kind, fields)


def with_gram(content: RecordDict, gram_sha256: bytes) -> RecordDict:
    """Add to an advertisement the hash of the cosines that its client opened; return the advertisement."""
    content["gram"] = ConfigRecord({"sha256": gram_sha256})
    return content


def gram_of(content: RecordDict) -> bytes:
    """Return the hash that `with_gram` added. Raises `DataError` if it is missing or not a hash."""
    return raw_bytes(
        record(content, "gram", ConfigRecord, "gram hash", keys={"sha256"}), "sha256", length=HASH_BYTES
    )


def encode_terms(terms: Terms, clip: float) -> ConfigRecord:
    """Encode what a client needs to make the same terms itself, with hashes that show what differs."""
    return ConfigRecord(
        {
            "run": terms.run,
            "round": terms.round,
            "attempt": terms.attempt,
            "cohort": list(terms.cohort),
            "threshold": terms.threshold,
            "server_key": terms.server_key,
            "settings_sha256": terms.settings_sha256,
            "roster_sha256": terms.roster_sha256,
            "broadcast_sha256": terms.broadcast_sha256,
            "plan_sha256": digest(terms.plan.canonical()),
            "clip": clip,
        }
    )


@dataclass(frozen=True, kw_only=True)
class ProposedTerms:
    """Terms as they arrived, with the hash of the ring plan, which each side computes from the clip."""

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    threshold: int
    server_key: bytes
    settings_sha256: bytes
    roster_sha256: bytes
    broadcast_sha256: bytes
    plan_sha256: bytes
    clip: float

    def with_plan(self, plan: RingPlan) -> Terms:
        """Return the terms to sign. Raises `ProtocolAborted` if the server proposes another ring."""
        if digest(plan.canonical()) != self.plan_sha256:
            raise ProtocolAborted("ring plan: differs from this client's own")
        fields = {k: v for k, v in self.__dict__.items() if k not in ("clip", "plan_sha256")}
        return Terms(plan=plan, **fields)


def decode_terms(content: RecordDict) -> ProposedTerms:
    """Decode the terms that a server proposes for a round.

    Raises `DataError` for anything missing, unknown, of the wrong type or too long.
    """
    fields = record(content, "terms", ConfigRecord, "terms", keys=_TERMS)
    cohort: Any = fields["cohort"]
    check_names(cohort, "terms: cohort")
    hashes = {name: raw_bytes(fields, name, length=HASH_BYTES) for name in _HASHES}
    return ProposedTerms(
        run=plain_text(fields, "run", most=MOST_NAME),
        round=integer(fields, "round"),
        attempt=integer(fields, "attempt"),
        cohort=tuple(cohort),
        threshold=integer(fields, "threshold"),
        clip=number(fields, "clip"),
        **hashes,
    )


def with_step(content: RecordDict, step: str) -> RecordDict:
    """Mark a message of another package's scheme (type `OTHER`) with its step, and return the message."""
    content["step"] = ConfigRecord({"name": step})
    return content


def step_of(content: RecordDict) -> str:
    """Return the step that `with_step` added. Raises `DataError` if it is missing or not plain text."""
    fields = content.get("step")
    if not isinstance(fields, ConfigRecord) or set(fields) != {"name"}:
        raise DataError("message: record `step` must be there, with the key `name` alone")
    return plain_text(fields, "name", most=MOST_NAME)
