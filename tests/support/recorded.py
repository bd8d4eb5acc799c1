"""A recorded federation of seconds, laid out as `run` lays out a seed's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedproxy_secure.config import parse_config
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, initial_state
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from tests.support.tiny import save_tiny, tiny_settings

AUDIT = {"record": True, "holdout": 0.3, "canaries": [1, 2]}


def prepared(folder: Path, *, clients: int = 4, **changes: Any) -> tuple[FederationJob, Path, ServerState]:
    """A job that records, the proxy's folder `seed-0/proxy` and the initial state; nothing has run yet."""
    changes["audit"] = AUDIT | changes.get("audit", {})
    settings = tiny_settings(folder, clients=clients, **changes)
    job = FederationJob.from_config(parse_config(settings), seed=0)
    proxy = save_tiny(folder / "seed-0" / "proxy", blocks=2)
    save_tiny(folder / "seed-0" / "fused")
    (folder / "seed-0" / "federation").mkdir()
    model, _ = load_llm(proxy, device="cpu")
    return job, proxy, initial_state(attach(model, job.adapter, seed=0, blocks=job.blocks))


def record_run(folder: Path, *, clients: int = 4, **changes: Any) -> Path:
    """Run it; returns `seed-0`, the transcript below `seed-0/federation/transcript`."""
    job, proxy, initial = prepared(folder, clients=clients, **changes)
    federate(job, proxy, initial, run_folder=folder / "seed-0" / "federation")
    return folder / "seed-0"
