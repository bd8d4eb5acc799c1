"""The fields of a kit, each checked when it is read, because a stranger may have written them.

A kit may come from another version of this software, whose kits have other fields. So the code that made it
is checked first (`check_version`), and its proposed policy only when it is used (`proposed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from packaging.version import Version
from pydantic import ValidationError

from fedproxy_secure import __version__
from fedproxy_secure.deploy.federation import parse_address
from fedproxy_secure.deploy.signed import fingerprint
from fedproxy_secure.deploy.site import check_name
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.flower.launch.app import app_sha256, sources_sha256
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.secagg.terms import Roster

MOST_EPOCHS = 1_000_000  # a site that accepted a huge epoch could never accept another kit


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The part of a kit that is the same in all versions; later kits are compared with it."""

    federation: str
    epoch: int
    roster: Roster

    @property
    def members_fingerprint(self) -> str:
        """The fingerprint that sites compare: 192 bits of a hash over all members' names and keys."""
        return fingerprint(self.roster.sha256())


@dataclass(frozen=True, kw_only=True)
class Kit(Earlier):
    """A kit: the SuperLink's address and authority, the roster of an epoch, the app, and a policy."""

    site: str
    address: str
    authority_pem: str
    app_sha256: str
    sources_sha256: str
    version: str
    proposal: dict[str, Any]


def read_earlier(body: Mapping[str, Any], file: Path) -> Earlier:
    """Return the part that later kits are compared with. Raises `ConfigError` for an invalid kit."""
    with _named(file):
        return Earlier(**_common(body))


def read_kit(body: Mapping[str, Any], file: Path) -> Kit:
    """Return a kit without checking its proposal. Raises `ConfigError` for an invalid kit."""
    with _named(file):
        kit = Kit(
            **_common(body),
            site=str(body["site"]),
            address=str(body["address"]),
            authority_pem=str(body["authority_pem"]),
            app_sha256=str(body["app_sha256"]),
            sources_sha256=str(body["sources_sha256"]),
            version=str(body["version"]),
            proposal=dict(body["proposal"]),
        )
        check_name(kit.site)
        parse_address(kit.address)
        if not kit.authority_pem.isascii():
            raise ValueError("authority_pem: has characters beyond ASCII; must have none, as any PEM")
        if not x509.load_pem_x509_certificates(kit.authority_pem.encode()):
            raise ValueError("it names no authority")
        Version(kit.version)
        return kit


def proposed(kit: Kit, file: Path) -> ClientPolicy:
    """Return the policy that a kit proposes. Raises `ConfigError` if it is invalid in this version."""
    with _named(file):
        return ClientPolicy.model_validate(kit.proposal)


def check_version(body: Mapping[str, Any], file: Path) -> None:
    """Raise `ConfigError` for a kit of code other than the installed one."""
    app, sources = str(body.get("app_sha256", "none")), str(body.get("sources_sha256", "none"))
    again = "at the owner and at every site, then repeat `deploy kit` and `deploy accept`"
    if sources != sources_sha256():
        maker = f"{quoted(str(body.get('version'))[:80])}, sources {quoted(sources[:12])}"
        raise ConfigError(
            f"{file}: was made by fedproxy-secure {maker}: must be {__version__!r}, sources "
            f"{sources_sha256()[:12]!r}, the version installed here; install the same commit {again}"
        )
    if app != app_sha256():
        raise ConfigError(
            f"{file}: has the app {quoted(app[:12])}: must be {app_sha256()[:12]!r}, as Flower packs it "
            f"here; install Flower from the same lock {again}"
        )


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    roster = Roster(members={str(n): bytes.fromhex(k) for n, k in body["roster"].items()})
    for name in roster.members:
        check_name(name)
    return {
        "federation": printable(str(body["federation"]))[:200],
        "epoch": _epoch(body["epoch"]),
        "roster": roster,
    }


def _epoch(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_EPOCHS:
        raise ValueError(f"epoch={quoted(value)}: must be a whole number from 1 to {MOST_EPOCHS}")
    return value


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turn an error in a kit into a `ConfigError` of one line that names its file."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{file}: is no kit: {str(error).splitlines()[0]}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: is no kit: {error}") from None
