"""`deploy start`: a site's SuperNode, started again whenever it ends, until it is told to stop.

A node is two processes: Flower's SuperNode, which takes messages from the owner's SuperLink, and a worker,
which answers them with this installation's client app under the site's own policy. No code that the owner
sends is run. The node reaches out to the SuperLink, follows no redirect (`flower.internals.transport`), and
listens on loopback alone, for its own user's processes where the system tells them apart. An owner who is
away, or who starts again, is waited for.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fedproxy_secure.deploy.kit import needed_kit
from fedproxy_secure.deploy.kit_content import Kit
from fedproxy_secure.deploy.policy import write_effective_policy
from fedproxy_secure.deploy.preflight import local_checks, network_checks
from fedproxy_secure.deploy.running import events_file, page_of, the_only_one
from fedproxy_secure.deploy.site import Site, remember
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.flower.launch.kept import KeptProgram
from fedproxy_secure.flower.launch.processes import (
    ORPHANS_S,
    POLL_S,
    alone_in,
    free_port,
    module,
    quiet_environment,
    terminated_like_interrupted,
)
from fedproxy_secure.monitor.event_log import EventLog
from fedproxy_secure.monitor.noting import note_in
from fedproxy_secure.protect.secure_sum.attempt import ONE_MACHINE_VARIABLE
from fedproxy_secure.runtime.artifacts import private_folder, write_bytes

log = logging.getLogger(__name__)
PAUSE_S = 20.0  # until certificate and clocks are looked at again
AGAIN_S = 300.0  # until what is still wrong with them is told again
NODE, WORKER = "fedproxy_secure.flower.launch.supernode", "fedproxy_secure.flower.launch.worker"


def run_node(
    site: Site,
    *,
    status_port: int | None = None,
    status_for_all: bool = False,
    tell: Callable[[str], None] = log.info,
) -> None:
    """Run a site's SuperNode until this process is told to stop.

    `status_port`: where page and metrics are served on loopback; None: they are not. `status_for_all`:
    other users of this machine may read them (`page_of`).

    Raises `ConfigError` if something at this site is not in order, `ProtocolAborted` if a journal cannot be
    used, `FolderInUse` if a node runs here already.
    """
    with the_only_one(site.folder, "a SuperNode"), terminated_like_interrupted():
        kit = needed_kit(site)
        for check in local_checks(site):
            if not check.ok:
                raise ConfigError(f"{check.name}: {check.line}")
            tell(f"{check.name}: {check.line}")
        policy = write_effective_policy(site)
        environment = quiet_environment(private_folder(site.folder / "flower"))
        environment["FEDPROXY_CACHE"] = str(private_folder(site.folder / "cache"))
        environment.pop(ONE_MACHINE_VARIABLE, None)
        logs = private_folder(site.folder / "logs")
        environment["FEDPROXY_EVENTS"] = str(events_file(site.folder).resolve())
        kept: list[KeptProgram] = []
        with ExitStack() as stack:
            lock = stack.enter_context(alone_in(logs, wait_s=ORPHANS_S))
            remember(site)  # only now: until here a killed node's worker may have gone on answering
            events = EventLog(file=events_file(site.folder))
            note_in(events, "site", "start")
            stack.callback(note_in, events, "site", "stop")
            page = page_of(site.folder, status_port, everybody=status_for_all)
            if (url := stack.enter_context(page)) is not None:
                tell(f"status: {url}")
            wait_for_owner(kit, tell, events=events)
            for name, arguments in _programs(site, kit, policy).items():
                file = logs / f"{name}.log"
                one = KeptProgram(name, arguments, log=file, environment=environment, lock=lock, tell=tell)
                stack.callback(one.stop)
                kept.append(one)
            while True:
                for one in kept:
                    one.look()
                time.sleep(POLL_S)


def wait_for_owner(
    kit: Kit,
    tell: Callable[[str], None],
    *,
    events: EventLog | None = None,
    pause_s: float = PAUSE_S,
    again_s: float = AGAIN_S,
) -> None:
    """Return when the owner's certificate and both clocks are right, or she is away.

    What is wrong there may be mended elsewhere: by the owner, who renews a certificate, or by this machine,
    which has started before its clock was set. Until then nothing is sent to the owner but requests for her
    health page. An owner who is away is left to the SuperNode, which asks again and again.

    `tell` is called with a line for each check, when the line has changed, and every `again_s`. `events` is
    told when something is wrong, by the name of the check, and when it no longer is: so page and metrics
    of the site say that somebody should look.
    """
    said: dict[str, str] = {}
    again_at, noted = time.monotonic() + again_s, None
    while True:
        checks = list(network_checks(kit))
        if time.monotonic() >= again_at:
            said, again_at = {}, time.monotonic() + again_s
        for check in checks:
            if said.get(check.name) != check.line:
                tell(f"{check.name}: {check.line}")
        said = {check.name: check.line for check in checks}
        wrong = next((check.name for check in checks if not (check.ok or check.waits)), None)
        if wrong != noted and events is not None:
            outcome = "done" if wrong is None else "aborted"
            note_in(events, "site", "setup", outcome=outcome, reason=wrong)
            noted = wrong
        if wrong is None:
            return
        time.sleep(pause_s)


def _programs(site: Site, kit: Kit, policy: Path) -> dict[str, list[str]]:
    """Write what worker and SuperNode share, and return the arguments of both."""
    secret, root = site.folder / "flower" / "worker.secret", site.folder / "authority.pem"
    port = free_port()
    write_bytes(secret, os.urandom(32), private=True)
    write_bytes(root, kit.authority_pem.encode())
    node = module(NODE, "--superlink", kit.address, "--root-certificates", str(root.resolve()))
    node += ["--auth-supernode-private-key", str(site.node_key.resolve())]
    node += ["--port", str(port), "--isolation", "process"]
    node += ["--superexec-auth-secret-file", str(secret.resolve())]
    worker = module(WORKER, f"127.0.0.1:{port}", str(secret.resolve()), str(policy.resolve()))
    return {"worker": worker, "supernode": node}
