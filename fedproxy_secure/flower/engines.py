"""Run a job on the engine that its settings name."""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower import proxy_store
from fedproxy_secure.flower.server_app import OnClient, OnRound, serve


def federate(
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,
) -> ServerState:
    """Tune the proxy in `proxy_folder` with the job's clients; returns the server's last state.

    `in_process` (default) calls the apps in this process; `simulation` and `deployment` start Flower's
    own processes, and `on_client` is not called there. See `serve` for what is saved and raised.
    """
    if job.federate.engine != "in_process":
        from fedproxy_secure.flower.launched import federate_launched

        return federate_launched(job, proxy_folder, initial, run_folder=run_folder, on_round=on_round)
    from fedproxy_secure.flower.client_app import app
    from fedproxy_secure.flower.in_process import InProcessGrid

    with proxy_store.offered_on_this_host(proxy_folder):
        return serve(
            InProcessGrid(app, len(job.clients)),
            job,
            proxy_folder,
            initial,
            run_folder=run_folder,
            on_round=on_round,
            on_client=on_client,
        )
