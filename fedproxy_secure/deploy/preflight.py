"""Checks that a site must pass before it takes part in a federation.

`local_checks` examine this machine, `network_checks` the connection to the owner. Each gives one line.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import httpx
from cryptography import x509

from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.deploy.authority import ends_soon
from fedproxy_secure.deploy.federation import parse_address
from fedproxy_secure.deploy.kit import ACCEPTED, needed_kit
from fedproxy_secure.deploy.kit_content import Kit, proposed
from fedproxy_secure.deploy.policy import differences, effective_policy
from fedproxy_secure.deploy.site import Site
from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.flower.launch.processes import LOOPBACK_NAMES
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.quoting import one_line, quoted
from fedproxy_secure.secagg.provision import load_identity, load_roster

MOST_CLOCK_S = 60.0  # Flower refuses signatures more than five minutes old, or in the future
DEVICE_S = 120.0
LEAST_FREE_BYTES = 2**30
CONNECT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check: its name, whether it passed, and what was found or must be done.

    `line` may quote text that the owner sent; it holds only printable characters. `waits`: the check failed
    only because the owner cannot be reached yet.
    """

    name: str
    ok: bool
    line: str
    waits: bool = False


def local_checks(site: Site) -> Iterator[Check]:
    """Check kit, keys, policy, records, device, ledger and disk of a site.

    Records and device are checked only if the policy, which names them, can be read.
    """
    yield _check("kit", lambda: _kit_line(needed_kit(site)))
    yield _check("keys", lambda: _keys_line(site))
    try:
        policy = effective_policy(site)
    except FedProxyError as error:
        yield _found("policy", ok=False, line=str(error))
    else:
        yield _check("policy", lambda: _policy_line(policy, needed_kit(site)))
        yield _check("records", lambda: _records_line(policy))
        yield _check("device", lambda: _device_line(policy.device))
    yield _check("ledger", lambda: _writable_line(site))
    yield _check("disk", lambda: _disk_line(site.folder))


def network_checks(kit: Kit) -> Iterator[Check]:
    """Check that the owner's SuperLink answers, by the kit's certificate, and that the clocks agree.

    The request is sent by the node's own HTTP client, through the same proxy if the environment names one
    (`HTTPS_PROXY`, `NO_PROXY`).
    """
    try:
        began = datetime.now(UTC)
        status, date, ends = _asked_health(kit)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        yield _unreached(kit, error)
        return
    if status != httpx.codes.OK:
        line = (
            f"{kit.address}: answers with HTTP {status}; a SuperLink answers 200; check whether another "
            "server or a proxy listens on that port"
        )
        yield _found("owner", ok=False, line=line, waits=status >= 500)
        return
    soon = ends_soon(ends)
    line = f"{kit.address} answers over TLS"
    yield _found(
        "owner", ok=True, line=line if soon is None else f"{line}; its certificate {soon}; tell the owner"
    )
    yield _check("clock", lambda: _clock_line(began, date))


def _asked_health(kit: Kit) -> tuple[int, str | None, datetime]:
    """Return status and date of the SuperLink's health page, and when its certificate ends."""
    context = ssl.create_default_context(cadata=kit.authority_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    direct = {f"all://{name}": None for name in LOOPBACK_NAMES}  # no proxy, as in the node's environment
    with (
        httpx.Client(verify=context, timeout=CONNECT_S, mounts=direct) as client,
        client.stream("GET", f"https://{kit.address}/health") as answer,  # the body is not read
    ):
        tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
        certificate = x509.load_der_x509_certificate(tls.getpeercert(True))
        return answer.status_code, answer.headers.get("Date"), certificate.not_valid_after_utc


def _unreached(kit: Kit, error: BaseException) -> Check:
    """Return the failed check of an owner who could not be reached, by the error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    proxy = _proxy_variable(kit)
    if cause is not None:
        whose = "its certificate" if proxy is None else f"its certificate, or that of the proxy in {proxy},"
        ask = "the owner" if proxy is None else "who runs the proxy, and the owner"
        line = f"{kit.address}: {whose} is not the kit's ({cause.verify_message}); ask {ask}"
        return _found("certificate", ok=False, line=line)
    why = one_line(str(error) or type(error).__name__, 200)  # may be what the server sent as an answer
    by_way = "" if proxy is None else f", and {proxy} is right"
    line = f"{kit.address}: does not answer ({why}); check that `deploy run` is on, its port open{by_way}"
    return _found("owner", ok=False, line=line, waits=True)


def _proxy_variable(kit: Kit) -> str | None:
    """Return the variable of the environment that names the proxy to the owner; None if there is none."""
    host, _ = parse_address(kit.address)
    if host in LOOPBACK_NAMES or proxy_bypass_environment(host):
        return None
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # the first one holds
    return next((name for name in names if os.environ.get(name)), None)


def _found(name: str, *, ok: bool, line: str, waits: bool = False) -> Check:
    return Check(name=name, ok=ok, line=printable(line), waits=waits)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return _found(name, ok=True, line=look())
    except FedProxyError as error:
        return _found(name, ok=False, line=str(error))


def _kit_line(kit: Kit) -> str:
    count = len(kit.roster.members)
    return f"federation {kit.federation}, epoch {kit.epoch}, {count} sites: {kit.members_fingerprint}"


def _keys_line(site: Site) -> str:
    load_identity(site.keys, site.name, load_roster(site.keys))
    try:
        mode = site.node_key.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(
            f"{site.node_key}: cannot be read: {error.strerror}; put it back, or make new keys by "
            "`deploy rotate`"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{site.node_key}: has mode {mode:o}; must be 600, readable by its owner alone")
    Journal(folder=site.keys, client=site.name).check_not_older()
    return f"generation {site.generation}, readable by their owner alone"


def _policy_line(policy: ClientPolicy, kit: Kit) -> str:
    if lines := differences(proposed(kit, Path(ACCEPTED)), policy):
        raise ConfigError(f"client.yaml differs from the owner's job: {'; '.join(lines)}")
    private = "no differential privacy"
    if policy.privacy.unit != "none":
        private = (
            f"{policy.privacy.unit}-level differential privacy, epsilon at most {policy.privacy.limit:g} "
            f"at delta {policy.privacy.target_delta:g}"
        )
    line = f"{policy.protect.scheme}, {private}, same as the owner's job"
    return "; ".join([line, *protection_of(policy.protect).unsafe(policy.protect)])


def _records_line(policy: ClientPolicy) -> str:
    task = load_task(policy.client, root=policy.data_root)
    return f"{len(task.train)} to train with, from {policy.client.source}"


def _writable_line(site: Site) -> str:
    for folder in (site.folder, site.keys, site.ledger):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder}: must be writable by this user: journal and ledger are kept there")
    return "journal and ledger can be written"


def _disk_line(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise ConfigError(
            f"{folder}: {free / 2**30:.1f} GiB are free; must be >= 1 GiB, and twice the size of the proxy"
        )
    return f"{free / 2**30:.0f} GiB are free"


def _device_line(device: str) -> str:
    if device == "cpu":
        return "cpu"
    # in a process of its own: torch would take 200 MB of this process while the site runs
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.is_available())"]
    try:
        process = subprocess.run(  # noqa: S603 - this Python
            command, capture_output=True, text=True, check=False, timeout=DEVICE_S
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"device={device}: torch has found no devices in {DEVICE_S:.0f} s") from None
    if process.returncode != 0:
        error_lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ConfigError(f"device={device}: torch cannot be imported here: {error_lines[-1]}")
    has_cuda = process.stdout.strip() == "True"
    if device == "cuda" and not has_cuda:
        raise ConfigError("device=cuda: torch finds no CUDA device here; set device: cpu in client.yaml")
    return "cuda" if has_cuda else "cpu"


def _clock_line(began: datetime, date: str | None) -> str:
    try:
        owner_time = parsedate_to_datetime(date or "")
        difference_s = abs((datetime.now(UTC) - began) / 2 + began - owner_time).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, no zone, or a year of many digits
        raise ConfigError(
            f"Date={quoted(date)}: must be a date with its zone; the owner's clock cannot be compared"
        ) from None
    if difference_s > MOST_CLOCK_S:
        raise ConfigError(
            f"differs by {difference_s:.0f} s from the owner's clock; must be <= {MOST_CLOCK_S:.0f} s; use "
            "NTP"
        )
    return f"differs by {difference_s:.0f} s from the owner's clock"
