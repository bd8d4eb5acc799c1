"""The training request of a round, and an update that travels in the clear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.secagg.messages import MOST_NAME
from fedproxy_secure.wire.records import (
    check_records,
    integer,
    number,
    plain_text,
    record,
    vector,
)

_ROUND = {"round", "pcr_lambda", "prox_mu"}
FARTHEST = 1e6  # the largest norm of an update in the clear, far beyond that of any training
HIGHEST = 2.0**28  # the largest loss in the clear, up or down; masked words hold no higher one either
_METRICS = {"client", "loss", "steps", "seconds", "truncated"}


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """The vectors (float32 [d]) and numbers that a client trains from in one round."""

    round: int
    adapter: np.ndarray
    conflict: np.ndarray | None
    pcr_lambda: float
    prox_mu: float


def encode_broadcast(broadcast: Broadcast) -> RecordDict:
    """Encode a broadcast: its vectors as arrays, the rest as scalars."""
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
    """Return the hash of everything that a client trains from, 32 bytes.

    The terms contain it, so that all clients of a round train from the same broadcast.
    """
    conflict = b"" if broadcast.conflict is None else broadcast.conflict.tobytes()
    numbers = f"{broadcast.round}|{broadcast.pcr_lambda!r}|{broadcast.prox_mu!r}".encode()
    return digest(broadcast.adapter.tobytes(), conflict, numbers)


def decode_broadcast(content: RecordDict, *, d: int | None = None) -> Broadcast:
    """Decode a broadcast. `d`: the adapter's length, if the client knows it.

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


def holds_update(content: RecordDict) -> bool:
    """Return whether a message has an update in the clear, as `encode_update` writes it."""
    return "update" in content.get("vectors", ())


def encode_update(update: ClientUpdate) -> RecordDict:
    """Encode an update: its vector as one array, its metrics as scalars."""
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
    """Decode an update of length `d` that travelled in the clear.

    Raises `DataError` for anything missing, unknown, of the wrong type or shape, or not finite, and for an
    update longer than `FARTHEST` or a loss beyond `HIGHEST`, because a sum of such could be infinite.
    """
    check_records(content, "update", must={"vectors", "metrics"})
    metrics = record(content, "metrics", ConfigRecord, "update", keys=_METRICS)
    vectors = record(content, "vectors", ArrayRecord, "update", keys={"update"})
    update = vector(vectors, "update", d=d)
    length = float(np.linalg.norm(update.astype(np.float64)))
    if length > FARTHEST:
        raise DataError(f"update: is {length:.3g} long; must be <= {FARTHEST:g}")
    loss = number(metrics, "loss")
    if abs(loss) > HIGHEST:
        raise DataError(f"loss={loss:.3g}: must be from -2^28 to 2^28")
    return ClientUpdate(
        client=plain_text(metrics, "client", most=MOST_NAME),
        loss=loss,
        steps=integer(metrics, "steps"),
        seconds=number(metrics, "seconds"),
        truncated=integer(metrics, "truncated"),
        update=update,
    )
