"""Values kept across attempts at a round: the client's update and the adapter the round began with.

They lie in the client's journal, sealed with the client's identity key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.secagg.terms import Terms


@dataclass(frozen=True, kw_only=True)
class RoundMemory:
    """The values from which this client's part in a round's sums follows: float32 [d], `previous` or None.

    `start`: the adapter at the start of the round. `previous`: the step of the round before, as `last_step`
    returns it.
    """

    update: ClientUpdate
    previous: np.ndarray | None
    start: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RoundMemoryStore:
    """Reads and writes `RoundMemory` in the journal; `run` also names the roster, whose keys seal it."""

    journal: Journal
    identity: Secret
    terms: Terms
    run: str

    def keep(self, kept: RoundMemory) -> RoundMemory:
        """Keep the values unless an earlier attempt at the round did; return what all attempts send."""
        parts = {
            "update": encode_update(kept.update),
            "previous": b"" if kept.previous is None else kept.previous.tobytes(),
            "start": kept.start.tobytes(),
        }
        number = self.terms.round
        sealed = {n: attempt.seal(self.identity, v, f"{n}|{number}") for n, v in parts.items()}
        stored = self.journal.keep_sent(
            attempt.attempt_id(self.terms), run=self.run, round=number, values=sealed
        )
        return self._opened(stored, number)

    def read(self, number: int) -> RoundMemory | None:
        """Return what was kept of a round, or None."""
        stored = self.journal.sent(run=self.run, round=number)
        return self._opened(stored, number) if stored else None

    def last_step(self, adapter: np.ndarray) -> np.ndarray | None:
        """Return what the last round changed in the adapter, as this client saw it; None in round 0.

        It is zeros if the client did not take part in the last round. Its update then counts as unlike the
        last step (`federate.sent.trimmed`), so that no client gains weight by its absence.
        """
        if self.terms.round == 0:
            return None
        before = self.read(self.terms.round - 1)
        if before is None or before.start.shape != adapter.shape:
            return np.zeros_like(adapter)
        step: np.ndarray = adapter - before.start
        return step

    def _opened(self, stored: Mapping[str, bytes], number: int) -> RoundMemory:
        raw = {n: attempt.unseal(self.identity, v, f"{n}|{number}") for n, v in stored.items()}
        previous = np.frombuffer(raw["previous"], dtype=np.float32) if raw["previous"] else None
        return RoundMemory(
            update=decode_update(raw["update"]),
            previous=previous,
            start=np.frombuffer(raw["start"], dtype=np.float32),
        )


def encode_update(update: ClientUpdate) -> bytes:
    """Return an update as bytes: a line of JSON with its numbers, then float32 [d]."""
    numbers = {k: v for k, v in update.__dict__.items() if k != "update"}
    return json.dumps(numbers).encode() + b"\n" + update.update.astype(np.float32).tobytes()


def decode_update(raw: bytes) -> ClientUpdate:
    """Return the update that `encode_update` wrote."""
    numbers, _, vector = raw.partition(b"\n")
    return ClientUpdate(update=np.frombuffer(vector, dtype=np.float32).copy(), **json.loads(numbers))
