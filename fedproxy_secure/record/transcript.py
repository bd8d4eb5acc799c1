"""The transcript: every message and every state of the server after a round, streamed to disk.

    job.sha256               whose transcript this is: a hash of the job and of where its run lies
    events.jsonl             one line per event: index, round, kind, sender, receiver, values, blob
    blobs/SHA256.safetensors an event's arrays; equal arrays are stored once
    clients/NAME/            that client's own state (`fedproxy_secure.record.private`)

Guarantees: memory is bounded (one event's arrays at a time), a line is whole or absent, and events are in
the order in which the server sent and received. The transcript holds what protection hides, so its folders
are 0700 and its files 0600 under any umask: only the user who ran it, and root, can read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.record.private import CLIENTS, forget_rounds
from fedproxy_secure.runtime.artifacts import RunFolder, private_folder, read_file, write_bytes

EVENTS = "events.jsonl"
JOB = "job.sha256"
BLOBS = "blobs"
SERVER = "server"
STATE = "state"  # the kind of the server's state after a round; all other kinds are messages

Values = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One message, or the server's state after a round.

    `values` holds its plain values; its arrays are read only by `arrays`.
    """

    index: int
    round: int
    kind: str
    sender: str
    receiver: str
    values: Values
    blob: str | None
    folder: Path

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the event's arrays by `record/name`; {} if it has none.

        Raises `RunFolderError` if they cannot be read.
        """
        if self.blob is None:
            return {}
        file = self.folder / BLOBS / f"{self.blob}.safetensors"
        try:
            return dict(load_file(file))
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{file}: is not a transcript's blob: {error}") from error


class Recorder:
    """Writes events; whoever runs the rounds sets `round`.

    Raises `RunFolderError` if its folder cannot be created, or made private.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = RunFolder(path=private_folder(folder), private=True)
        self._index = len(self._folder.read_jsonl(EVENTS))
        self.round = 0

    def claim(self, owner_sha256: str) -> None:
        """Mark the folder as a run's; raise `RunFolderError` if it holds the transcript of another."""
        file = self._folder.path / JOB
        if not file.exists() and not (self._index or (self._folder.path / CLIENTS).exists()):
            self._folder.write_text(JOB, owner_sha256)
        elif not file.exists() or read_file(file) != owner_sha256.encode():
            raise RunFolderError(
                f"{self._folder.path}: holds the transcript of another run; delete it, or choose "
                "another audit.folder"
            )

    def forget_from(self, round_number: int) -> None:
        """Delete the rounds from `round_number` on, which did not finish and run again.

        Events are deleted in one step, then the clients' rounds, then the arrays that no event names any
        more. After a crash in between, the next call deletes the remaining files.
        """
        lines = self._folder.read_jsonl(EVENTS)
        kept_lines = [line for line in lines if line["round"] < round_number]
        if len(kept_lines) < len(lines):
            text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept_lines)
            self._folder.write_text(EVENTS, text)
        self._index = len(kept_lines)
        forget_rounds(self._folder.path, round_number)
        named = {line["blob"] for line in kept_lines}
        for file in (self._folder.path / BLOBS).glob("*.safetensors"):
            if file.stem not in named:
                file.unlink()

    def note(self, kind: str, *, sender: str, receiver: str, values: Values, arrays: Arrays) -> None:
        """Write one event: its arrays first, then its line; `values` must be plain and finite.

        Raises `RunFolderError` if the disk is full.
        """
        blob = None
        if arrays:
            data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
            blob = hashlib.sha256(data).hexdigest()
            file = private_folder(self._folder.path / BLOBS) / f"{blob}.safetensors"
            if not file.exists():
                write_bytes(file, data, private=True)
        line = {
            "index": self._index,
            "round": self.round,
            "kind": kind,
            "sender": sender,
            "receiver": receiver,
            "values": dict(values),
            "blob": blob,
        }
        self._folder.append_jsonl(EVENTS, line)
        self._index += 1

    def note_state(
        self,
        *,
        adapter: np.ndarray,
        sums: Mapping[str, np.ndarray],
        clients: list[str],
        updates: Mapping[str, np.ndarray],
    ) -> None:
        """Write the server's state after a round: the new adapter, and what messages do not contain.

        Args:
            adapter: the new adapter, float32 [d].
            sums: the sums from which it was made, by segment; empty without protection.
            clients: names of the clients whose updates were fused.
            updates: updates of single clients, as the server decoded them, if messages hold them in another
                form.
        """
        arrays = {
            "adapter": adapter,
            **{f"sums/{name}": value for name, value in sums.items()},
            **{f"updates/{name}": value for name, value in updates.items()},
        }
        self.note(STATE, sender=SERVER, receiver=SERVER, values={"clients": clients}, arrays=arrays)


def read_events(folder: Path) -> Iterator[Event]:
    """Yield the transcript's events in order.

    Raises `RunFolderError` if there is no transcript in `folder`, or it is damaged.
    """
    if not (folder / EVENTS).is_file():
        raise RunFolderError(f"{folder}: holds no transcript; run with --record")
    for line in RunFolder(path=folder).read_jsonl(EVENTS):
        try:
            yield Event(folder=folder, **line)
        except TypeError as error:
            raise RunFolderError(f"{folder / EVENTS}: is damaged: {error}") from error
