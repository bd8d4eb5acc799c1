"""What server and clients say to each other, as Flower records; decoding is strict, both ways.

    server -> client  query.setup   the job and the proxy's hash; the proxy's files if the client lacks them
    client -> server  ready or not, and the client's name
    server -> client  train         round, adapter vector, conflict map, weights of the penalties
    client -> server  the update and its metrics, or one line that says what went wrong

Under masking the training request also carries the round's terms; the client answers with its keys and
keeps the update, and the protocol's messages follow (`query.share` ... `query.unmask`).

Guarantees: whatever arrives, a decoder returns a value whose types, shapes, sizes and ranges were judged
before anything was allocated or copied, or raises `DataError` or `ProtocolAborted` in one bounded line of
printable characters; a decoded vector holds finite numbers only. Without masking nothing is secret: the
update travels in the clear (Flower's TLS aside), and the server reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import ValidationError

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower.records import (
    check_records,
    flag,
    integer,
    number,
    plain_text,
    raw_bytes,
    record,
    text,
    vector,
)
from fedproxy_secure.quoting import one_line, quoted
from fedproxy_secure.secagg.messages import MOST_NAME, Message, check_names, from_fields
from fedproxy_secure.secagg.primitives import digest
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.terms import HASH_BYTES, Terms
from fedproxy_secure.untrusted import parse_json

SETUP = "query.setup"
TRAIN = "train"
SHARE, MASK, CONFIRM, UNMASK = "query.share", "query.mask", "query.confirm", "query.unmask"
GRAM_SHARE, GRAM_SKETCH, GRAM_WEIGH = "query.gram_share", "query.gram_sketch", "query.gram_weigh"
MOST_JOB = 2**20  # characters of a job's JSON
MOST_KIND = 64  # characters of the name of an error class
_ROUND = {"round", "pcr_lambda", "prox_mu"}
_METRICS = {"client", "loss", "steps", "seconds", "truncated"}
_HASHES = ("server_key", "settings_sha256", "roster_sha256", "broadcast_sha256", "plan_sha256")
_TERMS = {"run", "round", "attempt", "cohort", "threshold", "clip", *_HASHES}
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first message to a client: the job, as text and as it reads, and the proxy.

    `sha256`: 64 hex digits. `files`: the proxy's, by name, for `proxy_store.unpack`; None if they did not
    come along.
    """

    job: FederationJob
    job_json: str
    sha256: str
    files: ConfigRecord | None


def encode_setup(job: FederationJob, files: ConfigRecord | None = None) -> RecordDict:
    """The job with the hash of its proxy, and the proxy's files where a client lacks them."""
    asked = RecordDict({"job": ConfigRecord({"json": job.to_json(), "sha256": job.proxy_sha256})})
    if files is not None:
        asked["files"] = files
    return asked


def decode_setup(content: RecordDict) -> Setup:
    """Raises `DataError` for anything missing, unknown, of the wrong type, or no job."""
    check_records(content, "setup", must={"job"}, may={"files"})
    asked = record(content, "job", ConfigRecord, "setup", keys={"json", "sha256"})
    files = content.get("files")
    if files is not None and not isinstance(files, ConfigRecord):
        raise DataError("setup: record `files` must be a ConfigRecord")
    job_json = text(asked, "json", most=MOST_JOB)
    sha256 = text(asked, "sha256")
    if len(sha256) != 2 * HASH_BYTES or not set(sha256) <= set("0123456789abcdef"):
        raise DataError(f"proxy hash {quoted(sha256)}: must be {2 * HASH_BYTES} hex digits")
    return Setup(job=read_job(job_json), job_json=job_json, sha256=sha256, files=files)


def read_job(job_json: str) -> FederationJob:
    """The job in a text of another party. Raises `DataError` for anything but a whole job."""
    try:
        raw = parse_json(job_json)
        if not isinstance(raw, dict):
            raise DataError(f"job: is {quoted(raw)}; must be an object")
        return FederationJob.from_json(job_json)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(one_line(f"job: {where}: {first['msg']}", 200)) from None
    except KeyError as error:
        raise DataError(f"job: lacks {quoted(str(error.args[0]))}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(one_line(f"job: is not one: {type(error).__name__}: {error}", 200)) from None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A client's answer to the setup: whether it has the proxy, and what it is called."""

    ready: bool
    client: str


def encode_ready(ready: Ready) -> RecordDict:
    """As a record of two values."""
    return RecordDict({"setup": ConfigRecord({"ready": ready.ready, "client": ready.client})})


def decode_ready(content: RecordDict) -> Ready:
    """Raises `DataError` for anything missing, unknown or of the wrong type."""
    check_records(content, "setup reply", must={"setup"})
    found = record(content, "setup", ConfigRecord, "setup reply", keys={"ready", "client"})
    return Ready(ready=flag(found, "ready"), client=plain_text(found, "client", most=MOST_NAME))


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What a client needs for one round. Vectors are float32 [d]."""

    round: int
    adapter: np.ndarray
    conflict: np.ndarray | None
    pcr_lambda: float
    prox_mu: float


def encode_broadcast(broadcast: Broadcast) -> RecordDict:
    """Vectors as arrays, the rest as scalars."""
    vectors = {"adapter": Array(broadcast.adapter)}
    if broadcast.conflict is not None:
        vectors["conflict"] = Array(broadcast.conflict)
    return RecordDict(
        {
            "vectors": ArrayRecord(vectors),
            "round": ConfigRecord(
                {
                    "round": broadcast.round,
                    "pcr_lambda": broadcast.pcr_lambda,
                    "prox_mu": broadcast.prox_mu,
                }
            ),
        }
    )


def broadcast_sha256(broadcast: Broadcast) -> bytes:
    """Hash of all that a client trains from; in the terms, so that all clients train from the same."""
    conflict = b"" if broadcast.conflict is None else broadcast.conflict.tobytes()
    numbers = f"{broadcast.round}|{broadcast.pcr_lambda!r}|{broadcast.prox_mu!r}".encode()
    return digest(broadcast.adapter.tobytes(), conflict, numbers)


def decode_broadcast(content: RecordDict, *, d: int | None = None) -> Broadcast:
    """A round as it arrived. `d`: the adapter's length, where the client knows it.

    Raises `DataError` for anything missing, unknown, of the wrong type, shape or range, or not finite.
    """
    check_records(content, "broadcast", must={"vectors", "round"}, may={"terms"})
    numbers = record(content, "round", ConfigRecord, "broadcast", keys=_ROUND)
    conflicted = isinstance(content["vectors"], ArrayRecord) and "conflict" in content["vectors"]
    keys = {"adapter", "conflict"} if conflicted else {"adapter"}
    vectors = record(content, "vectors", ArrayRecord, "broadcast", keys=keys)
    weights = {name: number(numbers, name) for name in ("pcr_lambda", "prox_mu")}
    if (least := min(weights.values())) < 0:
        raise DataError(f"broadcast: has a penalty of weight {least}; must be >= 0")
    round_number = integer(numbers, "round")
    adapter = vector(vectors, "adapter", d=d)
    conflict = vector(vectors, "conflict", d=len(adapter)) if conflicted else None
    return Broadcast(round=round_number, adapter=adapter, conflict=conflict, **weights)


def encode_update(update: ClientUpdate) -> RecordDict:
    """The update as one array, its metrics as scalars."""
    return RecordDict(
        {
            "vectors": ArrayRecord({"update": Array(update.update)}),
            "metrics": ConfigRecord(
                {
                    "client": update.client,
                    "loss": update.loss,
                    "steps": update.steps,
                    "seconds": update.seconds,
                    "truncated": update.truncated,
                }
            ),
        }
    )


def decode_update(content: RecordDict, *, d: int) -> ClientUpdate:
    """Raises `DataError` for anything missing, unknown, of the wrong type or shape, or not finite."""
    check_records(content, "update", must={"vectors", "metrics"})
    metrics = record(content, "metrics", ConfigRecord, "update", keys=_METRICS)
    vectors = record(content, "vectors", ArrayRecord, "update", keys={"update"})
    return ClientUpdate(
        client=plain_text(metrics, "client", most=MOST_NAME),
        loss=number(metrics, "loss"),
        steps=integer(metrics, "steps"),
        seconds=number(metrics, "seconds"),
        truncated=integer(metrics, "truncated"),
        update=vector(vectors, "update", d=d),
    )


def encode_message(message: Message) -> RecordDict:
    """A message of the masking protocol."""
    return RecordDict({"protocol": ConfigRecord(message.to_fields())})


def decode_message(kind: type[M], content: RecordDict) -> M:
    """Raises `DataError` for anything missing, unknown, of the wrong type or too large."""
    check_records(content, kind.__name__, must={"protocol"}, may={"gram"})
    found = content["protocol"]
    if not isinstance(found, ConfigRecord):
        raise DataError(f"{kind.__name__}: record `protocol` must be a ConfigRecord")
    return from_fields(kind, found)


def with_gram(content: RecordDict, gram_sha256: bytes) -> RecordDict:
    """An advertisement together with the hash of the cosines its client opened."""
    content["gram"] = ConfigRecord({"sha256": gram_sha256})
    return content


def gram_of(content: RecordDict) -> bytes:
    """What `with_gram` added. Raises `DataError` if it is missing or no hash."""
    return raw_bytes(
        record(content, "gram", ConfigRecord, "gram hash", keys={"sha256"}), "sha256", length=HASH_BYTES
    )


def encode_terms(terms: Terms, clip: float) -> ConfigRecord:
    """What a client needs to write the same terms itself; hashes, so that it can say what differs."""
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
    """Terms as they arrived; the ring plan is not sent, each side computes it from the clip."""

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
        """The terms that this client would sign; `ProtocolAborted` if the server means another ring."""
        if digest(plan.canonical()) != self.plan_sha256:
            raise ProtocolAborted("ring plan: differs from this client's own")
        fields = {k: v for k, v in self.__dict__.items() if k not in ("clip", "plan_sha256")}
        return Terms(plan=plan, **fields)


def decode_terms(content: RecordDict) -> ProposedTerms:
    """Raises `DataError` for anything missing, unknown, of the wrong type or too long."""
    found = record(content, "terms", ConfigRecord, "terms", keys=_TERMS)
    cohort: Any = found["cohort"]
    check_names(cohort, "terms: cohort")
    hashes = {name: raw_bytes(found, name, length=HASH_BYTES) for name in _HASHES}
    return ProposedTerms(
        run=plain_text(found, "run", most=MOST_NAME),
        round=integer(found, "round"),
        attempt=integer(found, "attempt"),
        cohort=tuple(cohort),
        threshold=integer(found, "threshold"),
        clip=number(found, "clip"),
        **hashes,
    )


def encode_failure(kind: str, line: str) -> RecordDict:
    """A client's one line on what went wrong; `kind` is the name of the error class."""
    return RecordDict({"failure": ConfigRecord({"kind": kind, "line": line})})


def decode_failure(content: RecordDict) -> tuple[str, str] | None:
    """(kind, line), or None if the reply is not a failure. The line is printable and bounded.

    Raises `DataError` for a failure that is malformed itself.
    """
    if "failure" not in content:
        return None
    check_records(content, "failure", must={"failure"})
    failure = record(content, "failure", ConfigRecord, "failure", keys={"kind", "line"})
    line = failure["line"]
    if type(line) is not str:
        raise DataError(f"line={quoted(line)}: must be text")
    return one_line(text(failure, "kind", most=MOST_KIND), MOST_KIND), one_line(line)
