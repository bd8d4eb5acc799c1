"""Kits: what a site needs to take part, signed by the owner. A kit contains no secret.

A kit names the site's own keys, so that a site refuses a kit made for another site, and an epoch, so that
it refuses an older kit. It contains the list of members, with the keys by which sites recognise each other.
It proposes a policy; the policy in force is the site's own `client.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import yaml

from fedproxy_secure import __version__
from fedproxy_secure.config import AuditConfig
from fedproxy_secure.crypto.primitives import KEY_BYTES, signing_public
from fedproxy_secure.data.sources import HUB
from fedproxy_secure.data.tasks import BUILT_IN
from fedproxy_secure.deploy.federation import Federation
from fedproxy_secure.deploy.kit_content import (
    Earlier,
    Kit,
    check_version,
    proposed,
    read_earlier,
    read_kit,
)
from fedproxy_secure.deploy.members import Epoch, members
from fedproxy_secure.deploy.signed import (
    FORMAT,
    Document,
    plain,
    read_document,
    write_document,
)
from fedproxy_secure.deploy.site import Site
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy, policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.launch.app import app_sha256, sources_sha256
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg.provision import load_roster

KIT = "kit"
OWNER = "owner.pub"
ACCEPTED = "kit.json"
_PROPOSAL = """\
# What this site agrees to: a job that differs in anything below is refused, and no record is read.
# The owner of {federation} proposed it, and it is yours to change: say where your records lie (client and
# data_root; see "Your own model and data" in the documentation), and read protect and privacy before you
# start. Leave protect.keys and privacy.ledger as they are: they are filled in from this folder.
"""


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
    """Raise `ConfigError` if a kit of one of these sites is of another installation or authority than now.

    A site that has accepted it runs other code than this owner would, or waits for another SuperLink.
    """
    public, authority = signing_public(federation.owner_key()), _ascii(federation.tls.authority)
    for name in names:
        file = _kit_file(federation, name)
        if file.exists():
            body = read_document(file, KIT, by=public).body
            check_version(body, file)
            if body.get("authority_pem") != authority:
                raise ConfigError(
                    f"{file}: names another authority than {federation.tls.authority}; `deploy kit`, and "
                    "have all sites accept their new kits"
                )


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
            f"owner={owner.hex()[:16]}...: must be {pinned.hex()[:16]}..., the owner pinned at this site"
        )
    document = read_document(file, KIT, by=pinned or owner)
    check_version(document.body, file)
    kit = read_kit(document.body, file)
    proposed(kit, file)
    accepted = _accepted(site)
    before = None if accepted is None else read_earlier(accepted.body, site.folder / ACCEPTED)
    if kit.site != site.name or kit.roster.members.get(site.name) != signing_public(site.identity()):
        raise ConfigError(
            f"{file}: is for site {kit.site}, and its keys are not this folder's; the owner must approve "
            "this site's request and then make a kit for it"
        )
    if before is not None and kit.federation != before.federation:
        raise ConfigError(f"{file}: is for the federation {kit.federation}: must be {before.federation}")
    if before is not None and kit.epoch < before.epoch:
        raise ConfigError(
            f"{file}: epoch={kit.epoch}: must be >= {before.epoch}, which this site has; get the newest kit"
        )
    _check_members(kit, file, before, members)
    write_bytes(site.folder / OWNER, document.public.hex().encode() + b"\n")
    new_policy = not site.client_file.exists()
    if new_policy:
        text = yaml.safe_dump(kit.proposal, sort_keys=False)
        write_bytes(site.client_file, (_PROPOSAL.format(federation=kit.federation) + text).encode())
    write_bytes(site.folder / ACCEPTED, document.raw)
    write_bytes(site.keys / ROSTER, kit.roster.to_json().encode())
    return kit, new_policy


def needed_kit(site: Site) -> Kit:
    """Return the kit that a site has accepted.

    Raises `ConfigError` if there is none for its keys, if it was changed since, or if it is of another
    version of this software.
    """
    document = _accepted(site)
    if document is None:
        raise ConfigError(f"{site.folder}: has no kit; `deploy accept` the one that the owner made")
    check_version(document.body, site.folder / ACCEPTED)
    kit = read_kit(document.body, site.folder / ACCEPTED)
    if kit.roster.members.get(site.name) != signing_public(site.identity()):
        raise ConfigError(f"{site.folder}: its kit is for other keys; the owner must make a new one")
    file = site.keys / ROSTER
    if not file.exists() or load_roster(site.keys).sha256() != kit.roster.sha256():
        raise ConfigError(f"{file}: is not its kit's; `deploy accept` the kit again")
    return kit


def _accepted(site: Site) -> Document | None:
    """Return the kit that a site has accepted as it was signed, of whatever version, or None."""
    file = site.folder / ACCEPTED
    return read_document(file, KIT, by=_pinned_owner(site)) if file.exists() else None


def _kit_file(federation: Federation, name: str) -> Path:
    return federation.folder / "kits" / f"{name}.kit.json"


def _proposal(policy: ClientPolicy) -> ClientPolicy:
    """Return a policy without settings local to the owner's machine: folders and the section `audit`."""
    client = policy.client
    if client.source not in BUILT_IN and not client.source.startswith(HUB):
        client = client.model_copy(update={"source": f"{{data}}/{client.name}.{{split}}.jsonl"})
    return policy.model_copy(update={"client": client, "data_root": None, "audit": AuditConfig()})


def _check_members(kit: Kit, file: Path, before: Earlier | None, told: str | None) -> None:
    """Raise `ConfigError` if the list of members is not the stated one, or changed without being stated."""
    found = kit.members_fingerprint
    if told is not None and plain(told) != plain(found):
        raise ConfigError(f"{file}: its list of members has the fingerprint {found}, not the one given")
    if told is None and before is not None and before.roster.sha256() != kit.roster.sha256():
        old, new = before.roster.members, kit.roster.members
        changes = [f"{name} is new" for name in sorted(new.keys() - old.keys())]
        changes += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
        changes += [f"{n} has another key" for n in sorted(new.keys() & old.keys()) if new[n] != old[n]]
        raise ConfigError(
            f"{file}: its list of members differs from the last kit's ({', '.join(changes)}); ask other "
            f"sites whether their list also has the fingerprint {found}, then add --members {found}"
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
        raise ConfigError(f"{file}: byte {error.start} is not ASCII; remove or replace it") from None
