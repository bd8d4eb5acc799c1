"""What server and clients say to each other, as Flower records; decoding is strict.

    server -> client  query.setup   the job and the proxy's hash; the proxy's files if the client lacks them
    client -> server  ready or not, and the client's name
    server -> client  train         round, adapter vector, conflict map, weights of the penalties
    client -> server  the update and its metrics, or one line that says what went wrong

Under masking the training request also carries the round's terms; the client answers with its keys and
keeps the update, and the protocol's messages follow (`query.share` ... `query.unmask`).

Guarantees: a decoded vector has the expected shape and holds finite numbers only. Without masking nothing
is secret: the update travels in the clear (Flower's TLS aside), and the server reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.secagg.messages import Message, from_fields
from fedproxy_secure.secagg.primitives import digest
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.terms import HASH_BYTES, Terms

SETUP = "query.setup"
TRAIN = "train"
SHARE, MASK, CONFIRM, UNMASK = "query.share", "query.mask", "query.confirm", "query.unmask"
GRAM_SHARE, GRAM_SKETCH, GRAM_WEIGH = "query.gram_share", "query.gram_sketch", "query.gram_weigh"
M = TypeVar("M", bound=Message)


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


def decode_broadcast(content: RecordDict) -> Broadcast:
    """Raises `DataError` for anything missing, of the wrong type or not finite."""
    try:
        vectors, numbers = content.array_records["vectors"], content.config_records["round"]
        adapter = _vector(vectors, "adapter")
        conflict = _vector(vectors, "conflict") if "conflict" in vectors else None
        if conflict is not None and conflict.shape != adapter.shape:
            raise DataError(f"broadcast: conflict map {conflict.shape}; must be {adapter.shape}")
        return Broadcast(
            round=_integer(numbers, "round"),
            adapter=adapter,
            conflict=conflict,
            pcr_lambda=_number(numbers, "pcr_lambda"),
            prox_mu=_number(numbers, "prox_mu"),
        )
    except KeyError as error:
        raise DataError(f"broadcast: lacks {error}") from error


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
    """Raises `DataError` for anything missing, of the wrong type or shape, or not finite."""
    try:
        metrics = content.config_records["metrics"]
        update = _vector(content.array_records["vectors"], "update")
        if update.shape != (d,):
            raise DataError(f"update of shape {update.shape}: must be ({d},)")
        return ClientUpdate(
            client=_text(metrics, "client"),
            update=update,
            loss=_number(metrics, "loss"),
            steps=_integer(metrics, "steps"),
            seconds=_number(metrics, "seconds"),
            truncated=_integer(metrics, "truncated"),
        )
    except KeyError as error:
        raise DataError(f"update: lacks {error}") from error


def encode_message(message: Message) -> RecordDict:
    """A message of the masking protocol."""
    return RecordDict({"protocol": ConfigRecord(message.to_fields())})


def decode_message(kind: type[M], content: RecordDict) -> M:
    """Raises `DataError` for anything missing, unknown or of the wrong type."""
    if "protocol" not in content.config_records:
        raise DataError(f"{kind.__name__}: lacks the record `protocol`")
    return from_fields(kind, dict(content.config_records["protocol"]))


def with_gram(content: RecordDict, gram_sha256: bytes) -> RecordDict:
    """An advertisement together with the hash of the cosines its client opened."""
    content["gram"] = ConfigRecord({"sha256": gram_sha256})
    return content


def gram_of(content: RecordDict) -> bytes:
    """What `with_gram` added. Raises `DataError` if it is missing or no hash."""
    record = content.config_records.get("gram")
    value = None if record is None else record.get("sha256")
    if not isinstance(value, bytes) or len(value) != HASH_BYTES:
        raise DataError(f"gram hash: must be {HASH_BYTES} bytes")
    return value


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
    """Raises `DataError` for anything missing or of the wrong type."""
    try:
        record = content.config_records["terms"]
        cohort = record["cohort"]
        if not isinstance(cohort, list) or not all(isinstance(c, str) for c in cohort):
            raise DataError(f"cohort={cohort!r}: must be a list of names")
        hashes = {}
        for name in ("server_key", "settings_sha256", "roster_sha256", "broadcast_sha256", "plan_sha256"):
            value = record[name]
            if not isinstance(value, bytes):
                raise DataError(f"{name}: must be bytes")
            hashes[name] = value
        return ProposedTerms(
            run=_text(record, "run"),
            round=_integer(record, "round"),
            attempt=_integer(record, "attempt"),
            cohort=tuple(str(c) for c in cohort),
            threshold=_integer(record, "threshold"),
            clip=_number(record, "clip"),
            **hashes,
        )
    except KeyError as error:
        raise DataError(f"terms: lack {error}") from error


def encode_failure(kind: str, line: str) -> RecordDict:
    """A client's one line on what went wrong; `kind` is the name of the error class."""
    return RecordDict({"failure": ConfigRecord({"kind": kind, "line": line})})


def decode_failure(content: RecordDict) -> tuple[str, str] | None:
    """(kind, line), or None if the reply is not a failure."""
    failure = content.config_records.get("failure")
    return None if failure is None else (_text(failure, "kind"), _text(failure, "line"))


def _vector(record: ArrayRecord, name: str) -> np.ndarray:
    vector = record[name].numpy()
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise DataError(f"{name}: {vector.dtype} {vector.shape}; must be float32 of one dimension")
    if not np.isfinite(vector).all():
        raise DataError(f"{name}: holds NaN or infinity; must be finite")
    return vector


def _number(record: ConfigRecord, name: str) -> float:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise DataError(f"{name}={value!r}: must be a finite number")
    return float(value)


def _integer(record: ConfigRecord, name: str) -> int:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{name}={value!r}: must be an integer >= 0")
    return value


def _text(record: ConfigRecord, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{name}={value!r}: must be text")
    return value
