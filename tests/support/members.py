"""Steps of an owner and her sites: join, approve, make and take kits."""

import pytest

from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.deploy.kit import KIT, accept, make_kit
from fedproxy_secure.deploy.members import approve, next_epoch
from fedproxy_secure.deploy.preflight import local_checks
from fedproxy_secure.deploy.signed import read_document, write_document
from fedproxy_secure.deploy.site import REQUEST
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.journal.rounds import Attempt

NAMES = ("clinic", "bank", "insurer")


def request_of(site):
    return read_document(site.request, REQUEST)


def owner_of(federation):
    return signing_public(federation.owner_key())


def all_in(federation, sites):
    for site in sites.values():
        approve(federation, request_of(site))
    epoch = next_epoch(federation)
    for site in sites.values():
        accept(site, make_kit(federation, epoch, site.name), owner=owner_of(federation))
    return epoch


def asked_of(*cohort):
    return Attempt(
        run="job", round=0, attempt=1, context=b"c", clip=0.5, broadcast_sha256=b"b" * 32, cohort=cohort
    )


def answer(journal, survivors):
    journal.begin(asked_of(*survivors))
    journal.release(b"c", run="job", round=0, survivors=survivors, refuse_differencing=False)


def take_changed(site, file):
    """Accept a kit that changes the members, with the fingerprint that its refusal shows."""
    with pytest.raises(ConfigError, match="then add --members") as refused:
        accept(site, file, owner=None)
    return accept(site, file, owner=None, members=str(refused.value).split()[-1])


def proposing(federation, epoch, file, **sections):
    """A kit of the site clinic whose proposal differs in these sections."""
    body = read_document(make_kit(federation, epoch, "clinic"), KIT).body
    proposal = body["proposal"]
    changed = {name: proposal[name] | changes for name, changes in sections.items()}
    write_document(file, KIT, {**body, "proposal": proposal | changed}, federation.owner_key())
    return file


def policy_check(site):
    return next(check for check in local_checks(site) if check.name == "policy")


def remade(federation, epoch, file, **changes):
    """A kit of the site clinic with other values in it, signed by the owner."""
    body = read_document(make_kit(federation, epoch, "clinic"), KIT).body
    write_document(file, KIT, {**body, **changes}, federation.owner_key())
    return file
