"""Write all messages into the transcript, and let a client write its own state.

With every engine, all messages pass through the server app's grid, which `WatchedGrid` wraps to record
them. A client writes its own state into the folder that its settings name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.planted import draw_canaries
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.federate.client import LocalClient
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.models.llm import load_tokenizer
from fedproxy_secure.record import private
from fedproxy_secure.record.transcript import SERVER, Recorder
from fedproxy_secure.wire.records import vector


def recorder_of(job: FederationJob, first_round: int, run_folder: Path | None) -> Recorder | None:
    """Return the recorder of the transcript from `first_round` on, or None if nothing is recorded.

    Raises `RunFolderError` for a folder that holds the transcript of another run, which would be lost.
    """
    if not job.audit.record or job.audit.folder is None:
        return None
    recorder = Recorder(Path(job.audit.folder))
    recorder.claim(_owner_sha256(job, Path(job.audit.folder), run_folder))
    recorder.forget_from(first_round)
    recorder.round = first_round
    return recorder


def _owner_sha256(job: FederationJob, transcript: Path, run_folder: Path | None) -> str:
    """Return the SHA-256, hex, of whose transcript it is: the run, what its parties agree on, its records.

    A run is known by the way to its folder from the transcript, which stays the same if both are moved. A
    run without a folder cannot go on, so that nothing else is the same run.
    """
    if run_folder is None:
        run = secrets.token_hex(16)
    else:
        run = os.path.relpath(run_folder.resolve(), transcript.resolve())
    clients = [client.model_dump(mode="json") for client in job.clients]
    truth = [run, job.agreed(), clients, job.data_root, job.audit.holdout, job.audit.canaries]
    return hashlib.sha256(json.dumps(truth, sort_keys=True).encode()).hexdigest()


class WatchedGrid(GridAround):
    """A grid that records messages as they are sent and as they arrive.

    A node has the name that it gave at set-up, and keeps it, whatever later answers say.
    """

    def __init__(self, grid: Grid, recorder: Recorder) -> None:
        super().__init__(grid)
        self._recorder = recorder
        self._names: dict[int, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Record the messages, pass them on, and return their ids."""
        outgoing = []
        for message in messages:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            self._note(kind, SERVER, self._name(node), message.content)
            outgoing.append(message)
        return self._grid.push_messages(outgoing)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield replies one by one as they arrive, and record each first."""
        for reply in self._grid.pull_messages(message_ids):
            node, kind = reply.metadata.src_node_id, reply.metadata.message_type
            if reply.has_error():
                self._recorder.note(
                    f"{kind}.failed",
                    sender=self._name(node),
                    receiver=SERVER,
                    values={"error/reason": reply.error.reason},
                    arrays={},
                )
                yield reply
                continue
            if kind in (wire.SETUP, wire.PART):  # the only answers that say whose they are
                with suppress(DataError):
                    self._names.setdefault(node, wire.decode_ready(reply.content).client)
            self._note(f"{kind}.reply", self._name(node), SERVER, reply.content)
            yield reply

    def _name(self, node: int) -> str:
        return self._names.get(node, f"node {node}")

    def _note(self, kind: str, sender: str, receiver: str, content: RecordDict) -> None:
        values, arrays = as_plain(content)
        self._recorder.note(kind, sender=sender, receiver=receiver, values=values, arrays=arrays)


def as_plain(content: RecordDict) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values and the arrays of Flower records by `record/key`; bytes become uint8 arrays.

    Of the bytes of the proxy only the hash is kept. Content that only a malicious party sends is kept in
    another form: numbers that are not finite become text, since JSON has no such numbers, and arrays that
    are not vectors become the bytes received.
    """
    values: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, vectors in content.array_records.items():
        for key, array in vectors.items():
            try:
                arrays[f"{name}/{key}"] = vector(vectors, key)
            except DataError:  # from a malicious party: keep the bytes, not the array that they claim to be
                arrays[f"{name}/{key}"] = _numbers(bytes(array.data))
    for name, record in content.config_records.items():
        for key, value in record.items():
            full_key = f"{name}/{key}"
            if isinstance(value, bytes) and name == wire.PART_DATA:
                values[full_key] = hashlib.sha256(value).hexdigest()
            elif isinstance(value, bytes):
                arrays[full_key] = _numbers(value)
            elif isinstance(value, list) and value and isinstance(value[0], bytes):
                arrays |= {f"{full_key}/{i}": _numbers(part) for i, part in enumerate(value)}
            else:
                values[full_key] = _as_json(value)
    return values, {k: v for k, v in arrays.items() if v.size}


def _numbers(raw: Any) -> np.ndarray:
    assert isinstance(raw, bytes)
    return np.frombuffer(raw, dtype=np.uint8)


def _as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [str(v) for v in value] if any(map(_is_not_finite, value)) else value
    return str(value) if _is_not_finite(value) else value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def watched(client: LocalClient, job: FederationJob, index: int, proxy: Path) -> LocalClient:
    """Return the client; with `audit.record`, it writes its state to `audit.folder` after every round."""
    if not job.audit.record:
        return client
    if job.audit.folder is None:
        raise ConfigError("audit.folder: must name the folder in which to write what the client holds")
    folder = Path(job.audit.folder)
    if not private.has_records(folder, client.name):
        task = load_task(job.clients[index], root=job.data_root, audit=job.audit, seed=job.seed)
        holdout = encode_records(task.holdout, load_tokenizer(proxy), max_tokens=job.max_tokens)
        private.write_records(
            folder,
            client.name,
            train=client.items,
            holdout=holdout.items,
            canaries=draw_canaries(client.name, job.audit.canaries, seed=job.seed),
        )

    def write(round_number: int, update: ClientUpdate, used: list[int]) -> None:
        private.write_round(folder, client.name, round_number, update.update, used)

    return replace(client, on_trained=write)
