"""A federation of seconds to be attacked: blocks of the demo LLM, made-up records, clients as installed.

Every client is a node with a policy, a key and a journal of its own, answered by the client app of this
installation. Each attempt gets a stage of its own, since a journal answers a round once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from fedproxy_secure.federate.client import build_client, shared_model, with_proxy
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, initial_state
from fedproxy_secure.flower import client_app, proxy_store
from fedproxy_secure.flower.hostile import SnapshotGrid
from fedproxy_secure.flower.in_process import CLIENT_APP_FAILED
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.llm import demo_llm_folder, load_llm, with_blocks
from fedproxy_secure.secagg.provision import provision

CLIENTS = 4  # of which 3 make a sum
TASKS = ("clinic", "bank", "insurer", "council")
RECORDS = 4  # a client; all are in every batch
READ = 0.99  # cosine with the truth from which on a vector counts as read
CACHE = "FEDPROXY_CACHE"  # the variable that says where clients keep proxies
MEMORY = Path("/dev/shm")  # where the machine has room there: elsewhere journals wait for the disk
ROOM = 2**28  # bytes; a quarter of it is used


def small_job(clients: int = CLIENTS, *, rounds: int = 1, seed: int = 0, **protect: Any) -> FederationJob:
    """One local step on four made-up records a client; FedAvg, so that the step is the mean."""
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
    """What all stages share: a folder for their files, and the proxy."""

    folder: Path
    proxy: Path

    def another_proxy(self, change: Callable[[nn.Module, Any], object]) -> Path:
        """A copy of the proxy after `change(model, tokenizer)`."""
        model, tokenizer = load_llm(self.proxy, device="cpu", dtype="float32")
        change(model, tokenizer)
        made = Path(tempfile.mkdtemp(dir=self.folder)) / "proxy"
        save_model(model, tokenizer, made)
        return made


@contextlib.contextmanager
def small_world() -> Iterator[World]:
    """Two blocks of the demo LLM in a temporary folder, which goes away with the keys in it."""
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
    """Where to put the world's folder; None for where temporary files go."""
    try:
        room = shutil.disk_usage(MEMORY).free
    except OSError:
        return None
    return MEMORY if room >= ROOM and os.access(MEMORY, os.W_OK | os.X_OK) else None


class PolicyGrid(SnapshotGrid):
    """Nodes as on machines of their own: what each may be asked is in the policy that it names."""

    def __init__(self, app: ClientApp, policies: Sequence[Path]) -> None:
        super().__init__(app, len(policies))
        for context, policy in zip(self._contexts.values(), policies, strict=True):
            context.node_config = {"policy": str(policy)}


class InstalledApp(ClientApp):
    """The client app of this installation; what is known-bad or hostile derives from it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as installed."""
        return client_app.app(message, context)


class DropsOut(InstalledApp):
    """Some clients cannot be reached by one kind of message, while `active`."""

    def __init__(self, kind: str, *nodes: int, active: bool = True) -> None:
        super().__init__()
        self.kind, self.nodes, self.active = kind, nodes, active

    def __call__(self, message: Message, context: Context) -> Message:
        """An error in the place of an answer."""
        if self.active and message.metadata.message_type == self.kind and context.node_id in self.nodes:
            return Message(Error(code=CLIENT_APP_FAILED, reason="lost"), reply_to=message)
        return super().__call__(message, context)


@dataclass(frozen=True, kw_only=True)
class TwoFacedJob(FederationJob):
    """What a server does, under the hashes of another job: the one that it shows to its clients."""

    shown: FederationJob

    @classmethod
    def of(cls, own: FederationJob, *, shown: FederationJob) -> TwoFacedJob:
        """`own` in the clothes of `shown`, which must name its proxy already."""
        return cls(**vars(own), shown=shown)

    def agreed_sha256(self) -> bytes:
        """As shown."""
        return self.shown.agreed_sha256()

    def to_json(self) -> str:
        """As shown."""
        return self.shown.to_json()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A server's job, and clients whose policies, keys and journals lie in `keys`.

    The last client is the victim.
    """

    world: World
    job: FederationJob
    keys: Path
    policies: tuple[Path, ...]
    initial: ServerState

    @property
    def victim(self) -> str:
        """Its name."""
        return self.job.clients[-1].name

    def node(self, index: int) -> int:
        """The node that plays client `index`; -1 is the victim's."""
        return 2 + index % len(self.policies)

    def grid(self, app: ClientApp | None = None) -> PolicyGrid:
        """One of Flower's runs: all nodes' states are new."""
        return PolicyGrid(app or InstalledApp(), self.policies)

    def serve(
        self,
        grid: Grid,
        job: FederationJob | None = None,
        state: ServerState | None = None,
        *,
        proxy: Path | None = None,
    ) -> ServerState:
        """The installed server's rounds. Raises what it raises, so `RoundAborted` where clients refuse."""
        return serve(grid, job or self.job, proxy or self.world.proxy, state or self.initial)

    def named(self, job: FederationJob) -> FederationJob:
        """A job with the hashes of the proxy."""
        return with_proxy(job, self.world.proxy)

    def without_victim(self) -> FederationJob:
        """The job for all other clients."""
        return replace(self.job, clients=self.job.clients[:-1])

    def sum_of(self, state: ServerState, clients: int, start: ServerState | None = None) -> np.ndarray:
        """The sum of updates behind a step of FedAvg over so many clients, float64 [d]."""
        before = (start or self.initial).adapter.astype(np.float64)
        return clients * (state.adapter.astype(np.float64) - before)

    def update(self, index: int = -1, start: ServerState | None = None) -> np.ndarray:
        """What client `index` truly sends, float32 [d]: known to the scorer alone."""
        at, job = index % len(self.job.clients), self.named(self.job)
        client, state = build_client(job, at, self.world.proxy), start or self.initial
        return client.train(round=state.round, start=state.adapter).update


@contextlib.contextmanager
def staged(
    world: World, job: FederationJob | None = None, *, seeds: tuple[int, ...] = (0,)
) -> Iterator[Stage]:
    """New keys, journals and policies, which agree to `job` under `seeds`."""
    asked = job or small_job()
    keys = Path(tempfile.mkdtemp(dir=world.folder))
    provision([c.name for c in asked.clients], keys)
    asked = replace(asked, protect=asked.protect.model_copy(update={"keys": str(keys)}))
    policies = []
    for index, client in enumerate(asked.clients):
        file = keys / f"{client.name}.policy.yaml"
        policy_for(asked, index, seeds=seeds).write(file)
        policies.append(file)
    initial = initial_state(shared_model(asked, world.proxy).model)
    with proxy_store.offered_on_this_host(world.proxy):
        yield Stage(world=world, job=asked, keys=keys, policies=tuple(policies), initial=initial)


def read(guess: np.ndarray, truth: np.ndarray, who: str) -> str:
    """What an attack read of a vector [d]. Raises `ProtocolAborted` if it is not the truth."""
    a, b = guess.astype(np.float64), truth.astype(np.float64)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / scale if scale else 0.0
    if not cosine > READ:
        raise ProtocolAborted(f"what was read is not {who}'s update: cosine {cosine:.2f}")
    return f"reads all {len(a)} numbers of {who}'s update, off by {np.abs(a - b).max():.0e} at most"


class Heard(logging.Handler):
    """What clients wrote into their own logs, in order: why they refused."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a client's own error."""
        if record.name == client_app.__name__ and record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            kind = "" if isinstance(error, FedProxyError) else f"{type(error).__name__}: "
            self.lines.append(f"{kind}{error}")

    def take(self) -> str | None:
        """The first line since the last call."""
        first = self.lines[0] if self.lines else None
        self.lines.clear()
        return first


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Meanwhile, what the package logs is heard here and printed nowhere: refusals are expected."""
    log, heard = logging.getLogger("fedproxy_secure"), Heard()
    passed_on = log.propagate
    log.addHandler(heard)
    log.propagate = False
    try:
        yield heard
    finally:
        log.removeHandler(heard)
        log.propagate = passed_on
