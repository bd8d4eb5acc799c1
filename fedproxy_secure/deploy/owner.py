"""`deploy run`: the owner's SuperLink, and the run of her job over it.

The run is that of `fedproxy-secure run`, with the same folder, audit log and report, and resumes after its
last whole round if it was killed. Only the clients differ: they are the approved sites, each with keys of
its own. The records that `job.yaml` names for a client are the owner's own test records for that task; no
record of a site is ever here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.deploy.authority import check_server, ends_soon, read_certificate
from fedproxy_secure.deploy.federation import Federation
from fedproxy_secure.deploy.kit import check_kits
from fedproxy_secure.deploy.members import Epoch, current_epoch, taking_part
from fedproxy_secure.deploy.running import events_file, page_of, the_only_one
from fedproxy_secure.deploy.site import Request
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.engines import leave_roster
from fedproxy_secure.flower.launch.link import SuperLink, federate_over, superlink
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import OnClient, OnRound
from fedproxy_secure.monitor.event_log import EventLog
from fedproxy_secure.monitor.noting import note_in
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import private_folder
from fedproxy_secure.runtime.progress import Progress

log = logging.getLogger(__name__)
WAIT_S = 120.0  # for sites that are switched off, once enough are connected


def run_owner(
    federation: Federation,
    *,
    wait_s: float = WAIT_S,
    status_port: int | None = None,
    tell: Callable[[str], None] = log.info,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """Start the SuperLink, run the job with the sites of the current epoch, and return the report.

    Args:
        wait_s: how long to wait for the other sites once as many as a round needs are connected.
        status_port: port on loopback for page and metrics; None: they are not served.
        tell: called with a line when the SuperLink has started, and during a long wait.

    Raises `ConfigError` without kits, with kits that another installation has made, or with fewer approved
    sites than a round needs; `FolderInUse` if another process holds the folder; what `run` raises.
    """
    epoch = current_epoch(federation)
    if epoch is None:
        raise ConfigError(f"{federation.folder}: has no kits; approve sites, then `deploy kit`")
    check_server(federation.tls, [federation.host])
    config = _with_members(federation.job(), epoch)
    sites = _checked_sites(federation, epoch, config)
    private_folder(federation.folder / "superlink")
    private_folder(federation.folder / "logs")
    with (
        the_only_one(federation.folder, "the owner's SuperLink"),
        ExitStack() as stack,
        page_of(federation.folder, status_port) as page,
        superlink(
            federation.folder / "superlink",
            port=federation.port,
            certificate=federation.tls.certificate,
            key=federation.tls.key,
            authority=federation.tls.authority,
            events=events_file(federation.folder),
        ) as link,
    ):
        events = EventLog(file=events_file(federation.folder))
        note_in(events, "owner", "start")
        stack.push(partial(_note_stop, events))
        if page is not None:
            tell(f"status: {page}")
        soon = ends_soon(read_certificate(federation.tls.certificate).not_valid_after_utc)
        if soon is not None:
            tell(f"certificate: {soon}; `deploy rotate` renews it, if it is of the authority made here")
        names = ", ".join(sorted(sites))
        tell(f"SuperLink on port {federation.port}; these sites may take part: {names}")
        node_ids = link.register({name: request.node for name, request in sites.items()})
        registered = Registered(names={node: name for name, node in node_ids.items()}, wait_s=wait_s)
        return run(
            config,
            federation.run_folder,
            resume=True,
            progress=progress,
            command=command,
            federate=partial(_federate, link, registered, epoch, tell),
        )


def _checked_sites(federation: Federation, epoch: Epoch, config: Config) -> dict[str, Request]:
    """Return the sites that may take part, by name, with their requests.

    Raises `ConfigError` if their kits are not in order, or they are fewer than a round needs.
    """
    sites = taking_part(federation, epoch)
    check_kits(federation, sorted(sites))
    least = max(config.federate.min_clients, _least_clients(config))
    if len(sites) < least:
        raise ConfigError(f"{len(sites)} sites of epoch {epoch.number} may take part: must be >= {least}")
    return sites


def _federate(
    link: SuperLink,
    registered: Registered,
    epoch: Epoch,
    tell: Callable[[str], None],
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,  # a SuperLink does not say when one client is done
) -> ServerState:
    """Run the rounds of a job over the SuperLink with the keys of an epoch; `run` calls this."""
    assert run_folder is not None
    keyed = job.changed(protect=job.protect.model_copy(update={"keys": str(epoch.folder.resolve())}))
    leave_roster(keyed, run_folder)
    return federate_over(
        link,
        registered,
        keyed,
        proxy_folder,
        initial,
        run_folder=run_folder,
        on_round=on_round,
        tell=tell,
    )


def _note_stop(events: EventLog, kind: type[BaseException] | None, *_: object) -> None:
    """Write the end of the command into the log of events, with the class of the error that ended it."""
    failed = kind is not None and issubclass(kind, Exception)
    reason = kind.__name__ if kind is not None and failed else None
    note_in(events, "owner", "stop", outcome="aborted" if failed else "done", reason=reason)


def _with_members(config: Config, epoch: Epoch) -> Config:
    """Return the job with the epoch's sites as its clients, run by SuperNodes elsewhere."""
    clients = tuple(client for client in config.data.clients if client.name in epoch.roster.members)
    return config.changed(
        data=config.data.changed(clients=clients),
        federate=config.federate.changed(engine="deployment"),
    )


def _least_clients(config: Config) -> int:
    job = FederationJob.from_config(config, seed=config.seeds[0])
    return protection_of(job.protect).least_clients(job)
