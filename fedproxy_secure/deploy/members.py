"""Who takes part: requests that the owner approved, sites that she revoked, and epochs of both.

An epoch is one set of members and the authority by which they know the SuperLink, fixed when its kits are
made. Under masking all clients of a sum hold the same roster, so a change of members takes effect with the
kits of the next epoch. A new authority begins one, too, because sites refuse kits of an earlier epoch than
theirs. A revoked site's node is refused from the next start of `deploy run` on, and until the next epoch
the others go on without it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.deploy.federation import Federation
from fedproxy_secure.deploy.signed import Document, read_document
from fedproxy_secure.deploy.site import REQUEST, Request, check_request
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.artifacts import read_file, write_bytes
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.runtime.files.whole import remove_private
from fedproxy_secure.secagg.provision import load_roster
from fedproxy_secure.secagg.terms import Roster


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A set of members: its number, from 1 on, and their roster."""

    number: int
    folder: Path
    roster: Roster


def approve(federation: Federation, document: Document) -> Request:
    """Let a site take part by its request; approving the same one again changes nothing.

    Raises `ConfigError` for an invalid request, a name that the job does not have, a revoked key, or keys
    other than the site's approved ones unless the approved keys vouch for the new ones.
    """
    request = check_approvable(federation, document)
    write_bytes(federation.folder / "sites" / f"{request.name}.json", document.raw)
    return request


def check_approvable(federation: Federation, document: Document) -> Request:
    """Return what a request says, if it can be approved; raise what `approve` raises."""
    request = check_request(document)
    expected = [client.name for client in federation.job().data.clients]
    if request.name not in expected:
        raise ConfigError(f"site {request.name}: must be one of the job's clients: {', '.join(expected)}")
    revoked = {one.public for one in _revoked(federation)}
    if document.public in revoked:
        raise ConfigError(f"site {request.name}: these keys are revoked; the site must make new ones")
    for name, other in members(federation).items():
        if other.node == request.node and name != request.name:
            raise ConfigError(f"site {request.name}: has the node key of {name}; each site makes its own")
    place = federation.folder / "sites" / f"{request.name}.json"
    if place.exists():
        approved = read_document(place, REQUEST)
        if approved.public in revoked:
            return request
        if document.public != approved.public and request.replaces != approved.public:
            raise ConfigError(
                f"site {request.name}: has other keys already; revoke them first, or have the site run "
                "`deploy rotate`, so that the old keys vouch for the new ones"
            )
    return request


def revoke(federation: Federation, name: str) -> None:
    """Revoke a site: its keys are refused from the next start of `deploy run`. Repeating it has no effect.

    Raises `ConfigError` if no such site was approved.
    """
    place = federation.folder / "sites" / f"{name}.json"
    if place.exists():
        document = read_document(place, REQUEST)
        kept = federation.folder / "revoked" / f"{name}-{document.public.hex()[:16]}.json"
        write_bytes(kept, document.raw)
        remove_private(place)  # for good: no power cut brings it back
    elif not any(check_request(document).name == name for document in _revoked(federation)):
        raise ConfigError(f"site {name}: was never approved")


def members(federation: Federation) -> dict[str, Request]:
    """Return the approved sites by name, sorted.

    A revoked key is none of them, even where its request lies among theirs again: put there by a backup, or
    by a power cut that undid its removal.
    """
    revoked = {document.public for document in _revoked(federation)}
    documents = [
        read_document(file, REQUEST) for file in sorted((federation.folder / "sites").glob("*.json"))
    ]
    requests = [check_request(document) for document in documents if document.public not in revoked]
    return {request.name: request for request in requests}


def current_epoch(federation: Federation) -> Epoch | None:
    """Return the epoch whose kits were made last, or None before the first."""
    numbers = [
        int(f.name)
        for f in (federation.folder / "epochs").glob("*")
        if re.fullmatch(r"[1-9][0-9]{0,8}", f.name) and (f / ROSTER).is_file()
    ]
    if not numbers:
        return None
    folder = federation.folder / "epochs" / str(max(numbers))
    return Epoch(number=max(numbers), folder=folder, roster=load_roster(folder))


def next_epoch(federation: Federation) -> Epoch:
    """Return the epoch of today's members and authority: the current one if it has both, else a new one.

    Raises `ConfigError` if there are fewer members than a round needs, `RunFolderError` if the authority
    cannot be read.
    """
    sites, least = members(federation), federation.job().federate.min_clients
    if len(sites) < least:
        raise ConfigError(
            f"{len(sites)} sites are approved: must be >= {least} (federate.min_clients); approve more"
        )
    roster = Roster(members={name: request.identity for name, request in sites.items()})
    current, authority = current_epoch(federation), read_file(federation.tls.authority)
    if current is not None and current.roster.sha256() == roster.sha256():
        file = current.folder / federation.tls.authority.name
        if file.exists() and read_file(file) == authority:
            return current
    number = 1 if current is None else current.number + 1
    folder = federation.folder / "epochs" / str(number)
    if folder.exists():
        shutil.rmtree(folder)  # of a call that was killed before it had a roster
    write_bytes(folder / federation.tls.authority.name, authority)
    write_bytes(folder / ROSTER, roster.to_json().encode())
    return Epoch(number=number, folder=folder, roster=roster)


def taking_part(federation: Federation, epoch: Epoch) -> dict[str, Request]:
    """Return the members of an epoch that are still approved with the keys that they had in it."""
    return {
        name: request
        for name, request in members(federation).items()
        if epoch.roster.members.get(name) == request.identity
    }


def _revoked(federation: Federation) -> list[Document]:
    return [read_document(file, REQUEST) for file in (federation.folder / "revoked").glob("*.json")]
