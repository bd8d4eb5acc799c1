"""Run a job on the engine that its settings name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower import proxy_store
from fedproxy_secure.flower.recording import Tamper
from fedproxy_secure.flower.server_app import OnClient, OnRound, serve
from fedproxy_secure.record.view import TRANSCRIPT
from fedproxy_secure.secagg.provision import ROSTER, load_roster, provision

PRIVACY = "privacy"  # folder of the ledgers below a run's


@contextmanager
def with_keys(job: FederationJob) -> Iterator[FederationJob]:
    """The job with a folder of fresh keys if it masks and names none; for engines of one machine."""
    if job.protect.scheme == "unsafe_plaintext" or job.protect.keys is not None:
        yield job
        return
    with tempfile.TemporaryDirectory(prefix="fedproxy-keys-") as folder:
        provision([c.name for c in job.clients], Path(folder))
        yield replace(job, protect=job.protect.model_copy(update={"keys": folder}))


def leave_roster(job: FederationJob, run_folder: Path | None) -> None:
    """Put the roster, public keys alone, into the run's folder: the audit log tells who could take part."""
    if run_folder is not None and job.protect.scheme != "unsafe_plaintext" and job.protect.keys is not None:
        write_bytes(run_folder / ROSTER, load_roster(Path(job.protect.keys)).to_json().encode())


@contextmanager
def with_ledger(job: FederationJob, run_folder: Path | None) -> Iterator[FederationJob]:
    """The job with a folder for privacy ledgers if it needs one and names none; on one machine.

    In the run's folder what was spent is remembered over a kill; without one it is a single run.
    """
    if job.privacy.unit == "none" or job.privacy.ledger is not None:
        yield job
    elif run_folder is not None:
        yield replace(
            job, privacy=job.privacy.model_copy(update={"ledger": str(run_folder.resolve() / PRIVACY)})
        )
    else:
        with tempfile.TemporaryDirectory(prefix="fedproxy-privacy-") as folder:
            yield replace(job, privacy=job.privacy.model_copy(update={"ledger": folder}))


def with_transcript(job: FederationJob, run_folder: Path | None) -> FederationJob:
    """The job with a folder for its transcript if it is to be recorded and names none; on one machine."""
    if not job.audit.record or job.audit.folder is not None:
        return job
    if run_folder is None:
        raise ConfigError("audit.record=true: needs a run folder, or audit.folder")
    folder = str(run_folder.resolve() / TRANSCRIPT)
    return replace(job, audit=job.audit.model_copy(update={"folder": folder}))


def federate(
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,
    tamper: Tamper | None = None,
) -> ServerState:
    """Tune the proxy in `proxy_folder` with the job's clients; returns the server's last state.

    `in_process` (default) calls the apps in this process; `simulation` and `deployment` start Flower's
    own processes, and `on_client` is not called there. See `serve` for what is saved and raised.
    """
    if job.federate.engine != "in_process":
        from fedproxy_secure.flower.launched import federate_launched

        if tamper is not None:
            raise ConfigError(f"federate.engine={job.federate.engine}: tampering needs in_process")
        with with_keys(job) as keyed, with_ledger(with_transcript(keyed, run_folder), run_folder) as ready:
            leave_roster(ready, run_folder)
            return federate_launched(ready, proxy_folder, initial, run_folder=run_folder, on_round=on_round)
    from fedproxy_secure.flower.client_app import app
    from fedproxy_secure.flower.in_process import InProcessGrid

    with (
        proxy_store.offered_on_this_host(proxy_folder),
        with_keys(job) as keyed,
        with_ledger(with_transcript(keyed, run_folder), run_folder) as ready,
    ):
        leave_roster(ready, run_folder)
        return serve(
            InProcessGrid(app, len(job.clients)),
            ready,
            proxy_folder,
            initial,
            run_folder=run_folder,
            on_round=on_round,
            on_client=on_client,
            tamper=tamper,
            one_machine=True,
        )
