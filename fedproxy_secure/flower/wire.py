"""What server and clients say to each other, as Flower records; decoding is strict.

    server -> client  query.setup   the job and the proxy's hash; the proxy's files if the client lacks them
    client -> server  ready or not, and the client's name
    server -> client  train         round, adapter vector, conflict map, weights of the penalties
    client -> server  the update and its metrics, or one line that says what went wrong

Guarantees: a decoded vector has the expected shape and holds finite numbers only. Nothing is secret:
the update travels in the clear (Flower's TLS aside), and the server reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.client import ClientUpdate

SETUP = "query.setup"
TRAIN = "train"


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
                    "records": update.records,
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
            records=_integer(metrics, "records"),
            loss=_number(metrics, "loss"),
            steps=_integer(metrics, "steps"),
            seconds=_number(metrics, "seconds"),
            truncated=_integer(metrics, "truncated"),
        )
    except KeyError as error:
        raise DataError(f"update: lacks {error}") from error


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
