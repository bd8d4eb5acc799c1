"""What a disturbed run must end in: the exact state of those who took part, in files that are whole."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Error, Message
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedproxy_secure.experiments.sweeps.method_cells import one_thread
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.client_app import app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import INITIAL, PROXY, serve
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.record.saved_rounds import STATE
from fedproxy_secure.runtime.files.names import JOB, ROUNDS

Taking = tuple[tuple[str, ...], ...]  # for each round, who took part


class SilentGrid(InProcessGrid):
    """In-process clients of which some do not answer in some rounds."""

    def __init__(self, names: Sequence[str], taking: Taking) -> None:
        super().__init__(app, len(names))
        self._names, self._taking = names, taking

    def _answer(self, message: Message) -> Message:
        name = self._names[message.metadata.dst_node_id - 2]
        if message.metadata.message_type == "train":
            number = re.fullmatch(r"round (\d+), train", message.metadata.group_id)
            assert number is not None
            if name not in self._taking[int(number[1])]:
                return Message(Error(code=0, reason="it is away"), reply_to=message)
        return super()._answer(message)


class Exactness:
    """The states that runs of one job must end in, computed in this process and remembered."""

    def __init__(self) -> None:
        self._known: dict[Taking, dict[str, np.ndarray]] = {}

    def holds(self, federation: Path) -> bool:
        """Whether the state in a run's folder is, bit for bit, that of the clients who took part."""
        taking = taken(federation)
        if taking not in self._known:
            self._known[taking] = arrays(_in_process(federation, taking))
        found, wanted = arrays(ServerState.load(federation / STATE)), self._known[taking]
        return all(np.array_equal(found[name], wanted[name]) for name in wanted)


def taken(federation: Path) -> Taking:
    """Return who took part in each round of a run."""
    lines = (federation / ROUNDS).read_text(encoding="utf-8").splitlines()
    return tuple(tuple(sorted(json.loads(line)["participants"])) for line in lines)


def arrays(state: ServerState) -> dict[str, np.ndarray]:
    """Return what of a state must be equal."""
    return {"round": np.asarray(state.round), "adapter": np.asarray(state.adapter)}


def _in_process(federation: Path, taking: Taking) -> ServerState:
    job = FederationJob.from_json((federation / JOB).read_text(encoding="utf-8"))
    job = job.changed(protect=job.protect.model_copy(update={"keys": None}))
    proxy = Path((federation / PROXY).read_text(encoding="utf-8"))
    grid = SilentGrid([client.name for client in job.clients], taking)
    # on one thread, as a deployed site (`deployed.ENVIRONMENT`): the order of a sum follows the threads
    with proxy_store.offered_on_this_host(proxy), with_keys(job) as keyed, one_thread():
        return serve(grid, keyed, proxy, ServerState.load(federation / INITIAL))


def half_written(folder: Path) -> list[str]:
    """Return each file below a folder that is not whole, with the reason; leaves out Flower's own files."""
    found = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not file.is_file() or "flwr" in parts or "flower" in parts or ".partial" in file.name:
            continue
        try:
            _read(file)
        except (ValueError, sqlite3.Error, SafetensorError) as error:
            found.append(f"{file.relative_to(folder)}: {error}")
    return found


def _read(file: Path) -> None:
    if file.suffix == ".json" and file.name != "running.json":  # empty while nothing runs
        json.loads(file.read_bytes())
    elif file.suffix == ".jsonl":
        text = file.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            raise ValueError("ends within a line")
        for line in text.splitlines():
            json.loads(line)
    elif file.suffix == ".safetensors":
        load_file(file)
    elif file.suffix == ".journal":
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            said = database.execute("PRAGMA integrity_check").fetchone()[0]
        database.close()
        if said != "ok":
            raise ValueError(said)
