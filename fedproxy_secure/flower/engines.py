"""Run a job on the engine that its settings name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.federate.client_policy import check_keys
from fedproxy_secure.federate.fusion.elections import weighs_clients
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.server_app import OnClient, OnRound, serve
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.protect.secure_sum.failures import forget_failed
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.record.saved_rounds import STATE
from fedproxy_secure.runtime.artifacts import private_folder, write_bytes
from fedproxy_secure.runtime.files.names import PRIVACY, ROSTER, TRANSCRIPT
from fedproxy_secure.secagg.provision import load_roster, provision


class Federate(Protocol):
    """A function that runs a job's rounds: `federate`, or one in its place."""

    def __call__(
        self,
        job: FederationJob,
        proxy_folder: Path,
        initial: ServerState,
        *,
        run_folder: Path | None = None,
        on_round: OnRound | None = None,
        on_client: OnClient | None = None,
    ) -> ServerState:
        """Tune the proxy in `proxy_folder` with the job's clients; return the server's last state."""


@contextmanager
def with_keys(job: FederationJob) -> Iterator[FederationJob]:
    """Yield the job, with fresh keys if it needs keys and names no folder; for engines on one machine.

    Raises `ConfigError` for a named folder without the clients' keys, or with a policy that does not allow
    the job.
    """
    check_keys(job)
    if not protection_of(job.protect).needs_keys or job.protect.keys is not None:
        yield job
        return
    with tempfile.TemporaryDirectory(prefix="fedproxy-keys-") as folder:
        provision([c.name for c in job.clients], Path(folder))
        yield job.changed(protect=job.protect.model_copy(update={"keys": folder}))


def leave_roster(job: FederationJob, run_folder: Path | None) -> None:
    """Write the roster (public keys only) into the run's folder: the audit log says who could take part."""
    keyed = protection_of(job.protect).needs_keys
    if run_folder is not None and keyed and job.protect.keys is not None:
        write_bytes(run_folder / ROSTER, load_roster(Path(job.protect.keys)).to_json().encode())


@contextmanager
def with_ledger(job: FederationJob, run_folder: Path | None) -> Iterator[FederationJob]:
    """Yield the job, with a folder for privacy ledgers if it needs one and names none; on one machine.

    Ledgers in the run's folder survive if the run is killed. Their folder is there before any client is, so
    that an empty one means that no client paid. Without a run folder they are deleted when the block is
    left.
    """
    if job.privacy.unit == "none" or job.privacy.ledger is not None:
        yield job
    elif run_folder is not None:
        ledgers = private_folder(run_folder.resolve() / PRIVACY)
        yield job.changed(privacy=job.privacy.model_copy(update={"ledger": str(ledgers)}))
    else:
        with tempfile.TemporaryDirectory(prefix="fedproxy-privacy-") as folder:
            yield job.changed(privacy=job.privacy.model_copy(update={"ledger": folder}))


def with_transcript(job: FederationJob, run_folder: Path | None) -> FederationJob:
    """Return the job, with a folder for its transcript if it needs one and names none; on one machine."""
    if not job.audit.record or job.audit.folder is not None:
        return job
    if run_folder is None:
        raise ConfigError("audit.record=true: needs a run folder, or audit.folder")
    folder = str(run_folder.resolve() / TRANSCRIPT)
    return job.changed(audit=job.audit.model_copy(update={"folder": folder}))


@contextmanager
def _within_reach(job: FederationJob, proxy_folder: Path) -> Iterator[None]:
    """Let the clients in this process use the proxy's folder itself, without a copy.

    Each gets its own copy of a traced proxy, as on another machine; leaving the block deletes the copies.
    """
    if job.marks is None:
        with proxy_store.offered_on_this_host(proxy_folder):
            yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="fedproxy-copies-") as folder,
        proxy_store.kept_in(Path(folder)),
    ):
        yield


def _check_remembered(job: FederationJob, run_folder: Path | None, initial: ServerState) -> None:
    """Raise `RunFolderError` if a run's clients have forgotten what its next round needs."""
    remembering = weighs_clients(job.fusion) and job.protect.weights == "self"
    if run_folder is None or job.protect.keys is not None or not remembering:
        return
    if not (run_folder / STATE).exists():
        return
    saved = ServerState.load(run_folder / STATE).round
    if initial.round < saved < job.federate.rounds:
        raise RunFolderError(
            f"protect.weights=self: cannot resume from round {saved}: the clients' journals were deleted "
            "after the last call; set protect.keys to a folder made by `provision`, or use a new folder"
        )


def federate(
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,
) -> ServerState:
    """Tune the proxy in `proxy_folder` with the job's clients, and return the server's last state.

    The engine `in_process` (default) calls the apps in this process. `simulation` and `deployment` start
    Flower's own processes, and do not call `on_client`. See `serve` for what is saved and raised.

    H-TIES with `protect.weights=self` also depends on the clients' journals, beside their keys. Unless
    `protect.keys` names a folder, they are deleted with this call, and resuming raises `RunFolderError`.
    """
    _check_remembered(job, run_folder, initial)
    if job.federate.engine != "in_process":
        from fedproxy_secure.flower.launched import federate_launched

        with with_keys(job) as keyed, with_ledger(with_transcript(keyed, run_folder), run_folder) as ready:
            leave_roster(ready, run_folder)
            if job.protect.keys is None:
                forget_failed(ready)
            return federate_launched(ready, proxy_folder, initial, run_folder=run_folder, on_round=on_round)
    from fedproxy_secure.flower.client_app import app
    from fedproxy_secure.flower.in_process import InProcessGrid

    with (
        _within_reach(job, proxy_folder),
        with_keys(job) as keyed,
        with_ledger(with_transcript(keyed, run_folder), run_folder) as ready,
    ):
        leave_roster(ready, run_folder)
        if job.protect.keys is None:
            forget_failed(ready)
        return serve(
            InProcessGrid(app, len(job.clients)),
            ready,
            proxy_folder,
            initial,
            run_folder=run_folder,
            on_round=on_round,
            on_client=on_client,
            one_machine=True,
        )
