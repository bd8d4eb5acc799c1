"""A small federation to attack: two blocks of the demo LLM, made-up records, clients as installed.

Every client is a node with its own policy, key and journal, and is played by the client app of this
installation. Each attempt gets a stage of its own, because a journal answers a round once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import nn

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import FedProxyError, ProtocolAborted
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, initial_state
from fedproxy_secure.federate.shared_proxy import shared_proxy, with_proxy
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.in_process import CLIENT_APP_FAILED
from fedproxy_secure.flower.selftest.hostile import SnapshotGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.llm import demo_llm_folder, load_llm, with_blocks
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.secagg.provision import provision

CLIENTS = 4  # of which 3 are enough for a sum
TASKS = ("clinic", "bank", "insurer", "council")
RECORDS = 4  # per client; all are in every batch
READ = 0.99  # the cosine with the truth above which a vector counts as read
CACHE = "FEDPROXY_CACHE"  # the variable that says where clients keep proxies
# used if it has room, because on a disk journals wait for every write
MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh folder is made in it
ROOM = 2**28  # bytes that must be free there; a quarter of them is used


def small_job(clients: int = CLIENTS, *, rounds: int = 1, seed: int = 0, **protect: Any) -> FederationJob:
    """Return a job of one local step on four made-up records per client, fused by their mean (FedAvg)."""
    names = [
        {"name": f"c{i}", "task": TASKS[i % len(TASKS)], "train_records": RECORDS, "test_records": 1}
        for i in range(clients)
    ]
    raw = {
        "model": {"device": "cpu", "dtype": "float32"},
        "data": {"clients": names, "max_tokens": 64},
        "adapter": {"rank": 2, "alpha": 4, "blocks": [0], "modules": "attention"},
        "local": {"steps": 1, "batch_size": RECORDS},
        "fusion": {"rule": "fedavg"},
        "federate": {"rounds": rounds},
        "protect": protect,
    }
    return FederationJob.from_config(parse_config(raw), seed=seed)


@dataclass(frozen=True, kw_only=True)
class World:
    """What all stages share: a folder for files, and the proxy's folder."""

    folder: Path
    proxy: Path

    def another_proxy(self, change: Callable[[nn.Module, Any], object]) -> Path:
        """Save a copy of the proxy after `change(model, tokenizer)`, and return its folder."""
        model, tokenizer = load_llm(self.proxy, device="cpu", dtype="float32")
        change(model, tokenizer)
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / "proxy"
        save_model(model, tokenizer, copy)
        return copy


@contextlib.contextmanager
def small_world() -> Iterator[World]:
    """Yield a world with two blocks of the demo LLM, in a temporary folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedproxy-selftest-", dir=_place()) as name:
        folder = Path(name)
        model, tokenizer = load_llm(demo_llm_folder(), device="cpu", dtype="float32")
        save_model(with_blocks(model, [0, 1]), tokenizer, folder / "proxy")
        before = os.environ.get(CACHE)
        os.environ[CACHE] = str(folder / "cache")
        try:
            yield World(folder=folder, proxy=folder / "proxy")
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


def _place() -> Path | None:
    """Return where to put the world's folder; None for the folder of temporary files."""
    try:
        room = shutil.disk_usage(MEMORY).free
    except OSError:
        return None
    return MEMORY if room >= ROOM and os.access(MEMORY, os.W_OK | os.X_OK) else None


class PolicyGrid(SnapshotGrid):
    """A grid of nodes as on separate machines: each has a policy that says what it may be asked."""

    def __init__(self, app: ClientApp, policies: Sequence[Path]) -> None:
        super().__init__(app, len(policies))
        for context, policy in zip(self._contexts.values(), policies, strict=True):
            context.node_config = {"policy": str(policy)}


class InstalledApp(ClientApp):
    """The client app of this installation; known-bad and hostile apps derive from it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as installed."""
        return client_app.app(message, context)


class DropsOut(InstalledApp):
    """A client app in which, while `active`, one kind of message does not reach some clients."""

    def __init__(self, kind: str, *nodes: int, active: bool = True) -> None:
        super().__init__()
        self.kind, self.nodes, self.active = kind, nodes, active

    def __call__(self, message: Message, context: Context) -> Message:
        """Return an error for a message that is lost; answer all others as installed."""
        if self.active and message.metadata.message_type == self.kind and context.node_id in self.nodes:
            return Message(Error(code=CLIENT_APP_FAILED, reason="lost"), reply_to=message)
        return super().__call__(message, context)


class TwoFacedJob(FederationJob):
    """A job that a server follows, under the hash of another job, which it shows to its clients."""

    shown: FederationJob

    @classmethod
    def of(cls, own: FederationJob, *, shown: FederationJob) -> TwoFacedJob:
        """Return the job `own` disguised as `shown`, which must have its proxy's hashes already."""
        return cls(**dict(own), shown=shown)

    def agreed_sha256(self) -> bytes:
        """Return the hash of the job that is shown."""
        return self.shown.agreed_sha256()

    def to_json(self) -> str:
        """Return the JSON of the job that is shown."""
        return self.shown.to_json()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A server's job and its clients, whose policies, keys and journals lie in the folder `keys`.

    The last client is the victim.
    """

    world: World
    job: FederationJob
    keys: Path
    policies: tuple[Path, ...]
    initial: ServerState

    @property
    def victim(self) -> str:
        """The victim's name."""
        return self.job.clients[-1].name

    def node(self, index: int) -> int:
        """Return the node that plays client `index`; -1 is the victim's."""
        return 2 + index % len(self.policies)

    def grid(self, app: ClientApp | None = None) -> PolicyGrid:
        """Return a grid as for a new run of Flower, in which all nodes' states are empty."""
        return PolicyGrid(app or InstalledApp(), self.policies)

    def serve(
        self,
        grid: Grid,
        job: FederationJob | None = None,
        state: ServerState | None = None,
        *,
        proxy: Path | None = None,
    ) -> ServerState:
        """Run the installed server's rounds and return its last state.

        Raises what the server raises: `RoundAborted` where clients refuse.
        """
        return serve(grid, job or self.job, proxy or self.world.proxy, state or self.initial)

    def named(self, job: FederationJob) -> FederationJob:
        """Return a job with the proxy's hashes in it."""
        return with_proxy(job, self.world.proxy)

    def without_victim(self) -> FederationJob:
        """Return the job for all clients but the victim."""
        return self.job.changed(clients=self.job.clients[:-1])

    def sum_of(self, state: ServerState, clients: int, start: ServerState | None = None) -> np.ndarray:
        """Return the sum of updates behind a step of FedAvg over `clients` clients, float64 [d]."""
        before = (start or self.initial).adapter.astype(np.float64)
        return clients * (state.adapter.astype(np.float64) - before)

    def update(self, index: int = -1, start: ServerState | None = None) -> np.ndarray:
        """Return the update that client `index` truly sends, float32 [d]; only the scorer knows it."""
        at, job = index % len(self.job.clients), self.named(self.job)
        client, state = build_client(job, at, self.world.proxy), start or self.initial
        return client.train(round=state.round, start=state.adapter).update


@contextlib.contextmanager
def staged(
    world: World, job: FederationJob | None = None, *, seeds: tuple[int, ...] = (0,)
) -> Iterator[Stage]:
    """Yield a stage with new keys, journals and policies, which agree to `job` under `seeds`."""
    job = job or small_job()
    keys = Path(tempfile.mkdtemp(dir=world.folder))
    provision([c.name for c in job.clients], keys)
    job = job.changed(protect=job.protect.model_copy(update={"keys": str(keys)}))
    policies = []
    for index, client in enumerate(job.clients):
        file = keys / f"{client.name}.policy.yaml"
        policy_for(job, index, seeds=seeds).write(file)
        policies.append(file)
    with shared_proxy(job, world.proxy).model.lent() as tuned:
        initial = initial_state(tuned)
    with proxy_store.offered_on_this_host(world.proxy):
        yield Stage(world=world, job=job, keys=keys, policies=tuple(policies), initial=initial)


def read(guess: np.ndarray, truth: np.ndarray, who: str) -> str:
    """Return how well a guess reads a vector [d], as text; raise `ProtocolAborted` if it does not."""
    a, b = guess.astype(np.float64), truth.astype(np.float64)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / scale if scale else 0.0
    if not cosine > READ:
        raise ProtocolAborted(f"what was read is not {who}'s update: cosine {cosine:.2f}")
    return f"reads all {len(a)} numbers of {who}'s update, off by {np.abs(a - b).max():.0e} at most"


class Heard(logging.Handler):
    """A log handler that keeps, in order, the errors in clients' own logs: why they refused."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error of a record that a client logged."""
        if record.name == client_app.__name__ and record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            kind = "" if isinstance(error, FedProxyError) else f"{type(error).__name__}: "
            self.lines.append(f"{kind}{error}")

    def take(self) -> str | None:
        """Return the first line since the last call, or None, and forget all lines."""
        first = self.lines[0] if self.lines else None
        self.lines.clear()
        return first


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Yield a handler that gets the package's log; nothing is printed, because refusals are expected."""
    log, heard = logging.getLogger("fedproxy_secure"), Heard()
    passed_on = log.propagate
    log.addHandler(heard)
    log.propagate = False
    try:
        yield heard
    finally:
        log.removeHandler(heard)
        log.propagate = passed_on
