"""Kits: what a site needs to take part, signed by the owner; nothing in one is anybody's secret.

A kit names the site's own keys, so that one made for another site is refused, and an epoch, so that an
older one is. It has the list of members, by whose keys sites know each other. It proposes a policy; what
holds at the site is the site's own `client.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from packaging.version import Version
from pydantic import ValidationError

from fedproxy_secure import __version__
from fedproxy_secure.config import AuditConfig
from fedproxy_secure.crypto.primitives import KEY_BYTES, signing_public
from fedproxy_secure.data.sources import HUB
from fedproxy_secure.data.tasks import BUILT_IN
from fedproxy_secure.deploy.federation import Federation, parse_address
from fedproxy_secure.deploy.members import Epoch, members
from fedproxy_secure.deploy.signed import (
    FORMAT,
    Document,
    fingerprint,
    plain,
    read_document,
    write_document,
)
from fedproxy_secure.deploy.site import Site, check_name
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy, policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.launch.app import app_sha256, sources_sha256
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.secagg.provision import ROSTER, load_roster
from fedproxy_secure.secagg.terms import Roster

KIT = "kit"
OWNER = "owner.pub"
ACCEPTED = "kit.json"
MOST_EPOCHS = 1_000_000  # an epoch that no later one can follow would end the way of kits to this site
_PROPOSAL = """\
# What this site agrees to: a job that differs in anything below is refused, and no record is read.
# The owner of {federation} proposed it, and it is yours to change: say where your records lie (client and
# data_root; see "Your own model and data" in the documentation), and read protect and privacy before you
# start. Leave protect.keys and privacy.ledger as they are: they are filled in from this folder.
"""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A kit: the SuperLink's address and authority, the roster of an epoch, the app, and a policy."""

    federation: str
    site: str
    epoch: int
    address: str
    authority_pem: str
    roster: Roster
    app_sha256: str
    sources_sha256: str
    version: str
    proposal: dict[str, Any]

    @property
    def members_fingerprint(self) -> str:
        """What sites compare with each other: 192 bits of a hash over all members' names and keys."""
        return fingerprint(self.roster.sha256())


def make_kit(federation: Federation, epoch: Epoch, name: str) -> Path:
    """Write a site's kit of an epoch and return its file; the same kit again if nothing has changed.

    Raises `ConfigError` if the site is not a member of the epoch.
    """
    if name not in members(federation) or name not in epoch.roster.members:
        raise ConfigError(f"site {name}: is not approved; `deploy approve` its request first")
    config = federation.job()
    job = FederationJob.from_config(config, seed=config.seeds[0])
    index = [client.name for client in config.data.clients].index(name)
    body = {
        "format": FORMAT,
        "federation": federation.name,
        "site": name,
        "epoch": epoch.number,
        "address": federation.address,
        "authority_pem": _ascii(federation.tls.authority),
        "roster": json.loads(epoch.roster.to_json()),
        "app_sha256": app_sha256(),
        "sources_sha256": sources_sha256(),
        "version": __version__,
        "proposal": _proposal(policy_for(job, index, seeds=config.seeds)).model_dump(mode="json"),
    }
    file = _kit_file(federation, name)
    write_document(file, KIT, body, federation.owner_key())
    return file


def check_kits(federation: Federation, names: Collection[str]) -> None:
    """Raise `ConfigError` if a kit of one of these sites was made by another installation than this one.

    A site that has accepted it runs other code than this owner would.
    """
    public = signing_public(federation.owner_key())
    for name in names:
        file = _kit_file(federation, name)
        if file.exists():
            _check_version(_read(read_document(file, KIT, by=public), file), file)


def accept(site: Site, file: Path, *, owner: bytes | None, members: str | None = None) -> tuple[Kit, bool]:
    """Take a kit into a site's folder; return it, and whether `client.yaml` was written from its proposal.

    Args:
        owner: the owner's public key, from her card; must be given for the first kit, and is kept.
        members: the fingerprint of the kit's list of members, as other sites have it; must be given for a
            kit whose list is another than the last one's.

    Raises `ConfigError` for a kit of another owner, federation, site or key, of an earlier epoch, of
    another version of this software, or with other members than the site was told.

    Guarantees: no kit replaces the members of the last one unless the caller names the new list. Not
    guaranteed: that the keys in a list are those of the sites that it names. The owner makes the list, and
    only the sites, comparing its fingerprint, can tell that she gave all of them the same.
    """
    pinned = _pinned_owner(site)
    if pinned is None and owner is None:
        raise ConfigError("owner: must be given with the first kit, as --owner KEY from the owner's card")
    if pinned is not None and owner is not None and owner != pinned:
        raise ConfigError(
            f"owner={owner.hex()[:16]}...: must be {pinned.hex()[:16]}..., whose kits this site takes"
        )
    document = read_document(file, KIT, by=pinned or owner)
    kit = _read(document, file)
    before = accepted_kit(site)
    if kit.site != site.name or kit.roster.members.get(site.name) != signing_public(site.identity()):
        raise ConfigError(
            f"{file}: is for the site {kit.site} with other keys than this folder's; the owner must "
            "approve this site's request, then make it a kit"
        )
    if before is not None and kit.federation != before.federation:
        raise ConfigError(f"{file}: is for the federation {kit.federation}: must be {before.federation}")
    if before is not None and kit.epoch < before.epoch:
        raise ConfigError(
            f"{file}: epoch={kit.epoch}: must be >= {before.epoch}, which this site has; get the newest kit"
        )
    _check_version(kit, file)
    _check_members(kit, file, before, members)
    write_bytes(site.folder / OWNER, document.public.hex().encode() + b"\n")
    new_policy = not site.client_file.exists()
    if new_policy:
        text = yaml.safe_dump(kit.proposal, sort_keys=False)
        write_bytes(site.client_file, (_PROPOSAL.format(federation=kit.federation) + text).encode())
    write_bytes(site.folder / ACCEPTED, document.raw)
    write_bytes(site.keys / ROSTER, kit.roster.to_json().encode())
    return kit, new_policy


def accepted_kit(site: Site) -> Kit | None:
    """Return the kit that a site has accepted, or None. Raises `ConfigError` if it was changed since."""
    file = site.folder / ACCEPTED
    if not file.exists():
        return None
    return _read(read_document(file, KIT, by=_pinned_owner(site)), file)


def needed_kit(site: Site) -> Kit:
    """Return the kit that a site has accepted.

    Raises `ConfigError` if there is none for its keys, or if it is of another version of this software.
    """
    kit = accepted_kit(site)
    if kit is None:
        raise ConfigError(f"{site.folder}: has no kit; `deploy accept` the one that the owner made")
    if kit.roster.members.get(site.name) != signing_public(site.identity()):
        raise ConfigError(f"{site.folder}: its kit is for other keys; the owner must make a new one")
    file = site.keys / ROSTER
    if not file.exists() or load_roster(site.keys).sha256() != kit.roster.sha256():
        raise ConfigError(f"{file}: is not its kit's; `deploy accept` the kit again")
    _check_version(kit, site.folder / ACCEPTED)
    return kit


def _read(document: Document, file: Path) -> Kit:
    body = document.body
    try:
        kit = Kit(
            federation=printable(str(body["federation"]))[:200],
            site=str(body["site"]),
            epoch=_epoch(body["epoch"]),
            address=_address(str(body["address"])),
            authority_pem=str(body["authority_pem"]),
            roster=Roster(members={str(n): bytes.fromhex(k) for n, k in body["roster"].items()}),
            app_sha256=str(body["app_sha256"]),
            sources_sha256=str(body.get("sources_sha256", "none")),  # the first kits had none
            version=str(body["version"]),
            proposal=dict(body["proposal"]),
        )
        for name in (kit.site, *kit.roster.members):
            check_name(name)
        if not kit.authority_pem.isascii():
            raise ValueError("authority_pem: has characters beyond ASCII; must have none, as any PEM")
        if not x509.load_pem_x509_certificates(kit.authority_pem.encode()):
            raise ValueError("it names no authority")
        ClientPolicy.model_validate(kit.proposal)
        Version(kit.version)
    except (KeyError, ValueError, TypeError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{file}: is no kit: {str(error).splitlines()[0]}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: is no kit: {error}") from None
    return kit


def _kit_file(federation: Federation, name: str) -> Path:
    return federation.folder / "kits" / f"{name}.kit.json"


def _proposal(policy: ClientPolicy) -> ClientPolicy:
    """Return a policy without what it says of the owner's own machine: folders, and how she audits."""
    client = policy.client
    if client.source not in BUILT_IN and not client.source.startswith(HUB):
        client = client.model_copy(update={"source": f"{{data}}/{client.name}.{{split}}.jsonl"})
    return policy.model_copy(update={"client": client, "data_root": None, "audit": AuditConfig()})


def _address(text: str) -> str:
    parse_address(text)
    return text


def _epoch(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_EPOCHS:
        raise ValueError(f"epoch={quoted(value)}: must be a whole number from 1 to {MOST_EPOCHS}")
    return value


def _check_version(kit: Kit, file: Path) -> None:
    """Raise `ConfigError` for a kit of other code than is installed here."""
    if (kit.app_sha256, kit.sources_sha256) != (app_sha256(), sources_sha256()):
        theirs = f"{quoted(kit.version)}, sources {quoted(kit.sources_sha256[:12])}"
        raise ConfigError(
            f"{file}: is made by fedproxy-secure {theirs}: must be {__version__!r}, sources "
            f"{sources_sha256()[:12]!r}, which is installed here; install the same commit at the owner and "
            "every site, then `deploy kit` and `deploy accept` again"
        )


def _check_members(kit: Kit, file: Path, before: Kit | None, told: str | None) -> None:
    """Raise `ConfigError` for a list of members that was not told, or that changed without being told."""
    found = kit.members_fingerprint
    if told is not None and plain(told) != plain(found):
        raise ConfigError(f"{file}: its list of members has the fingerprint {found}, not the one given")
    if told is None and before is not None and before.roster.sha256() != kit.roster.sha256():
        old, new = before.roster.members, kit.roster.members
        changes = [f"{name} is new" for name in sorted(new.keys() - old.keys())]
        changes += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
        changes += [f"{n} has another key" for n in sorted(new.keys() & old.keys()) if new[n] != old[n]]
        raise ConfigError(
            f"{file}: its list of members is another than the last kit's ({', '.join(changes)}); ask other "
            f"sites whether theirs has the fingerprint {found} too, then add --members {found}"
        )


def _pinned_owner(site: Site) -> bytes | None:
    file = site.folder / OWNER
    if not file.exists():
        return None
    try:
        public = bytes.fromhex(_ascii(file))
    except ValueError:
        public = b""
    if len(public) != KEY_BYTES:
        raise ConfigError(
            f"{file}: is damaged: must hold {2 * KEY_BYTES} hex digits; delete it and accept the kit again "
            "with --owner KEY"
        )
    return public


def _ascii(file: Path) -> str:
    """Return the text of a file. Raises `ConfigError` if it cannot be read or has other characters."""
    try:
        return file.read_bytes().decode("ascii")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is beyond ASCII; must not be; remove it") from None
