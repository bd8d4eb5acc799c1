"""What runs in a deployment's folder: how it stands, the page that shows it, and its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from fedproxy_secure.deploy.authority import read_certificate
from fedproxy_secure.deploy.federation import is_federation, open_federation
from fedproxy_secure.deploy.policy import effective_policy
from fedproxy_secure.deploy.site import open_site
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.flower.launch.same_user import are_users_known, is_of_this_user
from fedproxy_secure.monitor.event_log import EventLog
from fedproxy_secure.monitor.owner import owner_standing
from fedproxy_secure.monitor.serve import served
from fedproxy_secure.monitor.site import site_standing
from fedproxy_secure.monitor.state import FederationStatus
from fedproxy_secure.runtime import only_one
from fedproxy_secure.runtime.files.names import FEDERATION, seed_folder
from fedproxy_secure.runtime.only_one import POLL_S, running

STOP_S = 60.0


def the_only_one(folder: Path, what: str) -> AbstractContextManager[None]:
    """Hold the folder for this process in a `with` block.

    Raises `FolderInUse` if another process holds it, `RunFolderError` if it cannot be written.
    """
    return only_one.the_only_one(folder, what, remedy="`deploy stop` ends it")


def stop(folder: Path) -> bool:
    """End the process that holds a folder, and wait until it has let go; return whether there was one.

    Raises `RunFolderError` if it has not ended after a minute, or is another user's.
    """
    process = running(folder)
    if process is None:
        return False
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:  # it has ended since
        pass
    except PermissionError:
        raise RunFolderError(
            f"{folder}: process {process} is another user's; stop it as that user"
        ) from None
    deadline = time.monotonic() + STOP_S
    while running(folder) is not None:
        if time.monotonic() > deadline:
            raise RunFolderError(f"{folder}: process {process} has not ended in {STOP_S:.0f} s")
        time.sleep(POLL_S)
    return True


def events_file(folder: Path) -> Path:
    """Return the file of a party's events, below an owner's or a site's folder."""
    return folder / "logs" / "events.jsonl"


def standing_of(folder: Path) -> FederationStatus:
    """Return how the federation of an owner's or a site's folder stands.

    An owner's run may be under way with the settings and the certificate that were there when it began. So
    settings that were edited since to what cannot be deployed do not matter here, and a certificate that
    cannot be read makes the standing unhealthy.

    Raises `ConfigError` for a folder that is neither, for settings that cannot be read, and for a site
    whose policy is not in order.
    """
    events = EventLog(file=events_file(folder))
    if is_federation(folder):
        federation = open_federation(folder)
        seed = federation.written_job().seeds[0]
        place = federation.run_folder / seed_folder(seed) / FEDERATION
        standing = owner_standing(place, name=federation.name, events=events)
        try:
            ends = read_certificate(federation.tls.certificate).not_valid_after_utc
        except ConfigError:
            why = f"{standing.why}; the certificate authority/server.pem cannot be read"
            return replace(standing, healthy=False, why=why)
        return replace(standing, certificate_ends=ends)
    return site_standing(effective_policy(open_site(folder)), events=events)


@contextmanager
def page_of(folder: Path, port: int | None, *, everybody: bool = False) -> Iterator[str | None]:
    """Serve page and metrics of a folder in a `with` block, on loopback; yield the address.

    Without a port nothing is served, and None is yielded. A site's page shows its exact epsilon, which
    reveals how many records it has. On Linux it therefore answers only this user, unless `everybody` on
    this machine may read it; other systems do not tell which user opened a connection, so it answers all.

    Raises `ConfigError` for a port that is in use, and for a site's page on a Linux system that cannot tell
    which user opened a connection, because then nobody could read the page.
    """
    if port is None:
        yield None
        return
    own = not is_federation(folder) and not everybody and sys.platform == "linux"
    if own and not are_users_known():
        raise ConfigError(
            f"--status-port={port}: needs a system that tells which user opened a connection (inet_diag); "
            "add --status-for-all to let all users of this machine read the page, or leave out "
            "--status-port"
        )
    may_read = is_of_this_user if own else None
    with served(lambda: standing_of(folder), port=port, may_read=may_read) as url:
        yield url
