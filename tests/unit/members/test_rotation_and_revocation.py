"""Keys are rotated and sites revoked, and what old keys promised holds for the new ones."""

from dataclasses import replace

import pytest

from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.deploy.kit import accept, make_kit, needed_kit
from fedproxy_secure.deploy.members import approve, members, next_epoch, revoke, taking_part
from fedproxy_secure.deploy.site import (
    join,
    open_site,
    remember,
    rotate_site,
)
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.secagg.terms import Roster
from tests.support.members import all_in, answer, asked_of, request_of, take_changed


def test_rotated_keys_are_vouched_for_by_the_old_ones(federation, sites):
    all_in(federation, sites)
    before = signing_public(sites["clinic"].identity())
    site, _ = rotate_site(sites["clinic"])
    with pytest.raises(ConfigError, match="its kit is for other keys"):
        needed_kit(site)
    approve(federation, request_of(site))
    epoch = next_epoch(federation)
    assert epoch.number == 2
    take_changed(site, make_kit(federation, epoch, "clinic"))
    assert needed_kit(site).roster.members["clinic"] != before
    assert open_site(site.folder).generation == 2
    assert (site.folder / "generations" / "1" / "clinic.journal").exists()


def test_keys_are_rotated_once_before_the_owner_has_seen_them(federation, sites, tmp_path):
    with pytest.raises(ConfigError, match="are in no kit yet"):
        rotate_site(sites["clinic"])
    all_in(federation, sites)
    site, _ = rotate_site(sites["clinic"])
    with pytest.raises(ConfigError, match="are in no kit yet"):
        rotate_site(site)


def test_new_keys_do_not_free_a_seed_that_was_bound_to_other_sites(federation, sites):
    all_in(federation, sites)
    site = sites["clinic"]
    old = Journal(folder=site.keys, client="clinic")
    old.agree(policy=b"policy", seed=0, run="job", roster_sha256=b"first")
    site, _ = rotate_site(site)
    new = Journal(folder=site.keys, client="clinic")
    with pytest.raises(
        ProtocolAborted, match="must be the one that run job began with; a run's roster is fixed"
    ):
        new.agree(policy=b"policy", seed=0, run="job", roster_sha256=b"second")
    new.agree(policy=b"policy", seed=1, run="other", roster_sha256=b"second")


def test_what_old_keys_promise_after_new_ones_are_made_holds_for_the_new_ones_too(federation, sites):
    """The old node goes on until it is started again, and the owner may ask it until then."""
    all_in(federation, sites)
    old = Journal(folder=sites["clinic"].keys, client="clinic")
    site, _ = rotate_site(sites["clinic"])
    old.agree(policy=b"policy", seed=0, run="job", roster_sha256=b"first")
    answer(old, survivors=("bank", "clinic", "insurer"))
    old.note_ledger(run="job", events=3)
    new = Journal(folder=site.keys, client="clinic")
    new.begin(asked_of("bank", "clinic", "insurer"))  # begun there, unmasked here
    remember(site)
    remember(site)
    with pytest.raises(
        ProtocolAborted, match="must be the one that run job began with; a run's roster is fixed"
    ):
        new.agree(policy=b"policy", seed=0, run="job", roster_sha256=b"second")
    with pytest.raises(ProtocolAborted, match="must not differ by one client from those of an earlier"):
        new.check_survivors(run="other", round=0, survivors=("bank", "clinic"), refuse_differencing=True)
    with pytest.raises(ProtocolAborted):
        new.check_not_older(sequence=0, run="job", ledger_events=lambda: 2)


def test_a_list_of_members_does_not_change_unless_the_site_names_the_new_one(federation, sites):
    """The owner makes the list: with keys of her own for the others she would learn this site's update."""
    all_in(federation, sites)
    clinic, before = sites["clinic"], needed_kit(sites["clinic"]).roster
    forged = {name: signing_public(fresh_secret()) for name in ("bank", "council")}
    members = {"clinic": before.members["clinic"], **forged}
    newer = replace(next_epoch(federation), number=2, roster=Roster(members=members))
    kit = make_kit(federation, newer, "clinic")
    with pytest.raises(ConfigError, match=r"council is new, insurer is gone, bank has another key"):
        accept(clinic, kit, owner=None)
    with pytest.raises(ConfigError, match="not the one given"):
        accept(clinic, kit, owner=None, members="0000-0000")
    assert needed_kit(clinic).roster == before
    taken, _ = take_changed(clinic, kit)
    assert needed_kit(clinic).roster == taken.roster != before


def test_all_sites_of_an_epoch_have_one_fingerprint_to_compare(federation, sites):
    all_in(federation, sites)
    kits = [needed_kit(site) for site in sites.values()]
    assert len({kit.members_fingerprint for kit in kits}) == 1
    other = replace(kits[0], roster=Roster(members={**kits[0].roster.members, "bank": bytes(32)}))
    assert other.members_fingerprint != kits[0].members_fingerprint


def test_a_rotation_that_was_killed_leaves_the_old_keys_in_use(federation, sites):
    all_in(federation, sites)
    site = sites["clinic"]
    before = signing_public(site.identity())
    (site.folder / "generations" / "2").mkdir()
    (site.folder / "generations" / "2" / "clinic.key").write_text("half")
    assert signing_public(open_site(site.folder).identity()) == before
    after, _ = rotate_site(open_site(site.folder))
    assert (after.generation, signing_public(after.identity()) == before) == (2, False)


def test_a_revoked_site_is_out_at_once_and_stays_out(federation, sites):
    epoch = all_in(federation, sites)
    revoke(federation, "clinic")
    revoke(federation, "clinic")
    assert sorted(taking_part(federation, epoch)) == ["bank", "insurer"]
    with pytest.raises(ConfigError, match="these keys are revoked"):
        approve(federation, request_of(sites["clinic"]))
    with pytest.raises(ConfigError, match="2 sites are approved: must be >= 3"):
        next_epoch(federation)
    with pytest.raises(ConfigError, match="was never approved"):
        revoke(federation, "council")


def test_a_revoked_site_whose_request_is_put_back_stays_out_and_may_come_with_new_keys(
    federation, sites, tmp_path
):
    """By a backup, or by a power cut that undid what was removed last."""
    epoch = all_in(federation, sites)
    place = federation.folder / "sites" / "clinic.json"
    before = place.read_bytes()
    revoke(federation, "clinic")
    place.write_bytes(before)
    assert sorted(taking_part(federation, epoch)) == ["bank", "insurer"]
    with pytest.raises(ConfigError, match="is not approved"):
        make_kit(federation, epoch, "clinic")
    with pytest.raises(ConfigError, match="these keys are revoked"):
        approve(federation, request_of(sites["clinic"]))
    new = join("clinic", tmp_path / "new")[0]
    approve(federation, request_of(new))
    assert members(federation)["clinic"].identity == signing_public(new.identity())
