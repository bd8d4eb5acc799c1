"""`deploy start`: a site's SuperNode, started again whenever it ends, until it is told to stop.

A node is two processes: Flower's SuperNode, which takes messages from the owner's SuperLink, and a worker,
which answers them with this installation's client app under the site's own policy. No code that the owner
sends is run. The node reaches out to the SuperLink and listens on loopback alone. An owner who is away, or
who starts again, is waited for.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from fedproxy_secure.deploy.kit import Kit, needed_kit
from fedproxy_secure.deploy.policy import write_effective_policy
from fedproxy_secure.deploy.preflight import local_checks, network_checks
from fedproxy_secure.deploy.running import the_only_one
from fedproxy_secure.deploy.site import Site
from fedproxy_secure.deploy.watching import events_file, page_of
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.flower.launch.processes import (
    POLL_S,
    alone_in,
    free_port,
    process,
    quiet_environment,
    terminated_like_interrupted,
)
from fedproxy_secure.protect.secure_sum.attempt import ONE_MACHINE_VARIABLE
from fedproxy_secure.runtime.artifacts import private_folder, write_bytes

log = logging.getLogger(__name__)
NODE, WORKER = "fedproxy_secure.flower.launch.supernode", "fedproxy_secure.flower.launch.worker"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
STEADY_S = 60.0  # a node that lived so long is started again at once
MOST_LOG_BYTES = 2**24


def run_node(site: Site, *, status_port: int | None = None, tell: Callable[[str], None] = log.info) -> None:
    """Run a site's SuperNode until this process is told to stop.

    `status_port`: where page and metrics are served on loopback; None: they are not.

    Raises `ConfigError` if something at this site is not in order, or the owner's certificate is not the
    kit's; `RunFolderError` if a node runs here already.
    """
    with the_only_one(site.folder, "a SuperNode"), terminated_like_interrupted():
        kit = needed_kit(site)
        for check in (*local_checks(site), *network_checks(kit)):
            if not check.ok and not check.waits:
                raise ConfigError(f"{check.name}: {check.line}")
            tell(f"{check.name}: {check.line}")
        policy = write_effective_policy(site)
        environment = quiet_environment(private_folder(site.folder / "flower"))
        environment["FEDPROXY_CACHE"] = str(private_folder(site.folder / "cache"))
        environment.pop(ONE_MACHINE_VARIABLE, None)
        logs = private_folder(site.folder / "logs")
        environment["FEDPROXY_EVENTS"] = str(events_file(site.folder).resolve())
        pause = FIRST_PAUSE_S
        with alone_in(logs) as lock, page_of(site.folder, status_port) as page:
            if page is not None:
                tell(f"status: {page}")
            while True:
                began = time.monotonic()
                what, code = _run_once(site, kit, policy, environment, lock, tell)
                steady = time.monotonic() - began > STEADY_S
                pause = FIRST_PAUSE_S if steady else min(2 * pause, LONGEST_PAUSE_S)
                tell(f"{what} ended with code {code}: {_last_line(logs / f'{what}.log')}")
                time.sleep(pause)


def _run_once(
    site: Site,
    kit: Kit,
    policy: Path,
    environment: Mapping[str, str],
    lock: int,
    tell: Callable[[str], None],
) -> tuple[str, int]:
    """Run SuperNode and worker until one of them ends; return which, and its code. Both have then ended."""
    logs, port = site.folder / "logs", free_port()
    secret, root = site.folder / "flower" / "worker.secret", site.folder / "authority.pem"
    write_bytes(secret, os.urandom(32), private=True)
    write_bytes(root, kit.authority_pem.encode())
    node = ["-m", NODE, "--superlink", kit.address, "--root-certificates", str(root.resolve())]
    node += ["--auth-supernode-private-key", str(site.node_key.resolve())]
    node += ["--node-config", f'policy="{policy.resolve()}"', "--port", str(port)]
    node += ["--isolation", "process", "--superexec-auth-secret-file", str(secret.resolve())]
    worker = ["-m", WORKER, f"127.0.0.1:{port}", str(secret.resolve())]
    with ExitStack() as stack:
        started = {}
        for name, arguments in (("supernode", node), ("worker", worker)):
            _rotate(logs / f"{name}.log")
            running = process(sys.executable, arguments, environment, logs / f"{name}.log", lock)
            started[name] = stack.enter_context(running)
            tell(f"{name} started, process {started[name].pid}; its log: {logs / f'{name}.log'}")
        while True:
            for name, one in started.items():
                if (code := one.poll()) is not None:
                    return name, code
            time.sleep(POLL_S)


def _rotate(file: Path) -> None:
    """Move a log that has grown large aside; the one before that is dropped."""
    if file.exists() and file.stat().st_size > MOST_LOG_BYTES:
        file.replace(file.with_name(file.name + ".1"))


def _last_line(file: Path) -> str:
    """Return the last line of a log that is not empty, without colours, at most 200 characters."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 4096))
        lines = [line.strip() for line in opened.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:200]
