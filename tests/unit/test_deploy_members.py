"""Sites join, are approved, get kits, rotate and are revoked; what does not fit is refused in one line."""

import json
import shutil
import stat
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.deploy.authority import TlsFiles, make_authority, make_server
from fedproxy_secure.deploy.federation import init, open_federation, parse_address
from fedproxy_secure.deploy.kit import KIT, accept, accepted_kit, check_kits, make_kit, needed_kit
from fedproxy_secure.deploy.members import approve, current_epoch, members, next_epoch, revoke, taking_part
from fedproxy_secure.deploy.owner import run_owner
from fedproxy_secure.deploy.policy import effective_policy
from fedproxy_secure.deploy.preflight import local_checks
from fedproxy_secure.deploy.signed import read_document, write_document
from fedproxy_secure.deploy.site import (
    _NODE_PROOF,
    REQUEST,
    check_request,
    join,
    open_site,
    remember,
    rotate_site,
)
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.journal.newest import sequence_file
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.secagg.terms import Roster

NAMES = ("clinic", "bank", "insurer")


@pytest.fixture
def config():
    clients = [{"name": name, "task": "clinic"} for name in (*NAMES, "council")]
    return parse_config(
        {
            "name": "three",
            "seeds": [0],
            "data": {"clients": clients},
            "protect": {"scheme": "masking"},
            "federate": {"min_clients": 3},
        }
    )


@pytest.fixture
def federation(config, tmp_path):
    return init(config, tmp_path / "federation", address="owner.example:9443")


@pytest.fixture
def sites(tmp_path):
    return {name: join(name, tmp_path / name)[0] for name in NAMES}


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


def test_every_site_ends_with_the_same_roster_and_its_own_policy(federation, sites):
    epoch = all_in(federation, sites)
    assert {needed_kit(site).roster.sha256() for site in sites.values()} == {epoch.roster.sha256()}
    policy = effective_policy(sites["clinic"])
    assert (policy.client.name, policy.protect.keys) == ("clinic", str(sites["clinic"].keys.resolve()))


def test_no_private_key_is_in_what_a_site_or_an_owner_sends(federation, sites):
    epoch = all_in(federation, sites)
    sent = [site.request.read_bytes() for site in sites.values()]
    sent += [make_kit(federation, epoch, name).read_bytes() for name in NAMES]
    secrets = [site.identity().reveal().hex().encode() for site in sites.values()]
    secrets += [site.node_key.read_bytes().split(b"\n")[1] for site in sites.values()]
    secrets += [federation.owner_key().reveal().hex().encode()]
    secrets += [(federation.folder / "authority" / "authority.key").read_bytes().split(b"\n")[1]]
    assert not [secret for secret in secrets for text in sent if secret in text]


def test_private_keys_are_readable_by_their_owner_alone(federation, sites):
    keys = [federation.folder / "owner.key", *federation.folder.glob("authority/*.key")]
    keys += [file for site in sites.values() for file in site.keys.glob("*.key")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}
    assert len(keys) == 9


def test_doing_it_twice_changes_nothing(config, federation, sites, tmp_path):
    epoch = all_in(federation, sites)
    again = init(config, federation.folder, address="owner.example:9443")
    assert owner_of(again) == owner_of(federation)
    assert join("clinic", tmp_path / "clinic")[0] == sites["clinic"]
    for site in sites.values():
        approve(federation, request_of(site))
    assert next_epoch(federation) == epoch
    first = make_kit(federation, epoch, "clinic").read_bytes()
    assert make_kit(federation, epoch, "clinic").read_bytes() == first
    before = sites["clinic"].client_file.read_bytes()
    assert accept(sites["clinic"], make_kit(federation, epoch, "clinic"), owner=None)[1] is False
    assert sites["clinic"].client_file.read_bytes() == before


def test_a_folder_of_something_else_is_not_taken_over(config, federation, sites, tmp_path):
    with pytest.raises(ConfigError, match="another federation"):
        init(config, federation.folder, address="elsewhere.example")
    with pytest.raises(ConfigError, match="belongs to the site clinic"):
        join("bank", tmp_path / "clinic")
    with pytest.raises(ConfigError, match="not an owner's folder"):
        open_federation(tmp_path / "clinic")
    with pytest.raises(ConfigError, match="not a site's folder"):
        open_site(federation.folder)


def test_a_name_that_the_job_does_not_have_is_not_approved(federation, tmp_path):
    stranger = join("stranger", tmp_path / "stranger")[0]
    with pytest.raises(ConfigError, match="must be one of the job's clients"):
        approve(federation, request_of(stranger))


def test_somebody_elses_keys_do_not_take_a_sites_place(federation, sites, tmp_path):
    approve(federation, request_of(sites["clinic"]))
    impostor = join("clinic", tmp_path / "impostor")[0]
    with pytest.raises(ConfigError, match="has other keys already"):
        approve(federation, request_of(impostor))
    assert members(federation)["clinic"].identity == signing_public(sites["clinic"].identity())


def test_a_request_must_prove_that_its_signer_holds_the_nodes_key(sites, tmp_path):
    body = read_document(sites["bank"].request, REQUEST).body
    stolen = write_document(tmp_path / "stolen.json", REQUEST, {**body, "name": "clinic"}, fresh_secret())
    with pytest.raises(ConfigError, match="does not prove that it holds its node key"):
        check_request(stolen)


@pytest.mark.parametrize("field", ["name", "node_public", "node_proof", "version"])
def test_a_request_that_was_changed_on_its_way_is_refused(federation, sites, tmp_path, field):
    raw = json.loads(sites["clinic"].request.read_text())
    raw["body"][field] = "bank"
    (tmp_path / "changed.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="its signature does not fit"):
        read_document(tmp_path / "changed.json", REQUEST)


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
    with pytest.raises(ProtocolAborted, match="it is fixed for a run"):
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
    with pytest.raises(ProtocolAborted, match="it is fixed for a run"):
        new.agree(policy=b"policy", seed=0, run="job", roster_sha256=b"second")
    with pytest.raises(ProtocolAborted, match="an earlier sum differs by one client"):
        new.check_survivors(run="other", round=0, survivors=("bank", "clinic"), refuse_differencing=True)
    with pytest.raises(ProtocolAborted):
        new.check_not_older(sequence=0, run="job", ledger_events=2)


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


@pytest.mark.parametrize(
    "left", [None, Roster(members={"clinic": bytes(32)})], ids=["none", "an older one"]
)
def test_a_kit_that_was_taken_in_half_is_taken_again(federation, sites, left):
    epoch = all_in(federation, sites)
    site = sites["clinic"]
    (site.keys / "roster.json").unlink()
    if left is not None:
        (site.keys / "roster.json").write_text(left.to_json())
    with pytest.raises(ConfigError, match="is not its kit's; `deploy accept` the kit again"):
        needed_kit(site)
    accept(site, make_kit(federation, epoch, "clinic"), owner=None)
    assert needed_kit(site).roster == epoch.roster


def test_two_sites_do_not_share_a_nodes_key(federation, sites, monkeypatch):
    approve(federation, request_of(sites["clinic"]))
    shared = request_of(sites["clinic"]).body["node_public"]
    theirs = check_request(request_of(sites["bank"]))
    monkeypatch.setattr(
        "fedproxy_secure.deploy.members.check_request",
        lambda document: (
            replace(theirs, node=shared.encode())
            if document.body["name"] == "bank"
            else check_request(document)
        ),
    )
    with pytest.raises(ConfigError, match="has the node key of clinic"):
        approve(federation, request_of(sites["bank"]))


def test_one_node_key_written_in_two_ways_is_one_key(federation, sites, tmp_path):
    """OpenSSH takes a comment behind a key; the SuperLink would find out when the run begins."""
    approve(federation, request_of(sites["clinic"]))
    body, bank = request_of(sites["clinic"]).body, sites["bank"].identity()
    node = load_ssh_private_key(sites["clinic"].node_key.read_bytes(), None)
    proof = node.sign(_NODE_PROOF + signing_public(bank), ec.ECDSA(hashes.SHA384()))
    body |= {"name": "bank", "node_public": f"{body['node_public']} bank@host", "node_proof": proof.hex()}
    twice = write_document(tmp_path / "twice.json", REQUEST, body, bank)
    with pytest.raises(ConfigError, match="has the node key of clinic"):
        approve(federation, twice)


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


def test_a_replayed_kit_is_refused(federation, sites):
    epoch = all_in(federation, sites)
    old = make_kit(federation, epoch, "clinic").read_bytes()
    bank, _ = rotate_site(sites["bank"])
    approve(federation, request_of(bank))
    newer = next_epoch(federation)
    take_changed(sites["clinic"], make_kit(federation, newer, "clinic"))
    replayed = sites["clinic"].folder / "replayed.json"
    replayed.write_bytes(old)
    with pytest.raises(ConfigError, match=r"epoch=1: must be >= 2"):
        accept(sites["clinic"], replayed, owner=None)
    assert accepted_kit(sites["clinic"]).epoch == 2


def test_a_kit_of_another_owner_is_refused_even_if_it_names_this_site(config, federation, sites, tmp_path):
    all_in(federation, sites)
    other = init(config, tmp_path / "other", address="owner.example:9443")
    for site in sites.values():
        approve(other, request_of(site))
    foreign = make_kit(other, next_epoch(other), "clinic")
    with pytest.raises(ConfigError, match="is signed by"):
        accept(sites["clinic"], foreign, owner=None)
    with pytest.raises(ConfigError, match="whose kits this site takes"):
        accept(sites["clinic"], foreign, owner=owner_of(other))


def test_the_first_kit_needs_the_owners_key_from_another_channel(federation, sites):
    for site in sites.values():
        approve(federation, request_of(site))
    kit = make_kit(federation, next_epoch(federation), "clinic")
    with pytest.raises(ConfigError, match="owner: must be given with the first kit"):
        accept(sites["clinic"], kit, owner=None)


def test_a_kit_for_another_site_is_refused(federation, sites):
    epoch = all_in(federation, sites)
    with pytest.raises(ConfigError, match="is for the site bank"):
        accept(sites["clinic"], make_kit(federation, epoch, "bank"), owner=None)


def test_a_sites_own_file_is_kept_and_decides(federation, sites):
    epoch = all_in(federation, sites)
    file = sites["clinic"].client_file
    file.write_text(file.read_text().replace("rounds: 4", "rounds: 2"))
    accept(sites["clinic"], make_kit(federation, epoch, "clinic"), owner=None)
    assert effective_policy(sites["clinic"]).rounds == 2


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


@pytest.mark.parametrize("field", ["sources_sha256", "app_sha256"])
def test_a_site_takes_no_kit_of_another_installation(federation, sites, tmp_path, field):
    """Two commits of one version may differ in the protocol."""
    epoch = all_in(federation, sites)
    other = remade(federation, epoch, tmp_path / "kit.json", **{field: "0" * 64})
    with pytest.raises(
        ConfigError, match=r"must be '0\.1\.0', sources '[0-9a-f]{12}', which is installed here"
    ):
        accept(sites["clinic"], other, owner=None)


def test_a_site_that_was_upgraded_does_not_start_with_its_earlier_kit(federation, sites, tmp_path):
    epoch = all_in(federation, sites)
    earlier = remade(federation, epoch, tmp_path / "kit.json", sources_sha256="0" * 64)
    (sites["clinic"].folder / "kit.json").write_bytes(earlier.read_bytes())
    with pytest.raises(ConfigError, match="install the same commit at the owner and every site"):
        needed_kit(sites["clinic"])
    accept(sites["clinic"], make_kit(federation, epoch, "clinic"), owner=None)
    assert needed_kit(sites["clinic"]).epoch == epoch.number


def test_a_kit_of_before_there_was_a_hash_of_the_sources_is_of_another_installation(
    federation, sites, tmp_path
):
    epoch = all_in(federation, sites)
    body = read_document(make_kit(federation, epoch, "clinic"), KIT).body
    del body["sources_sha256"]
    write_document(tmp_path / "kit.json", KIT, body, federation.owner_key())
    with pytest.raises(ConfigError, match="sources 'none'"):
        accept(sites["clinic"], tmp_path / "kit.json", owner=None)


def test_an_owner_who_was_upgraded_makes_new_kits_before_she_runs(federation, sites, tmp_path):
    epoch = all_in(federation, sites)
    check_kits(federation, NAMES)
    remade(federation, epoch, federation.folder / "kits" / "clinic.kit.json", sources_sha256="0" * 64)
    with pytest.raises(
        ConfigError, match=r"clinic\.kit\.json: is made by fedproxy-secure '0\.1\.0', sources"
    ):
        run_owner(federation)
    make_kit(federation, epoch, "clinic")
    check_kits(federation, NAMES)


def test_a_kit_does_not_tell_a_site_where_files_lie_at_the_owner(config, sites, tmp_path):
    clients = [
        {"name": name, "task": "clinic", "source": f"/home/owner/{name}.{{split}}.csv"} for name in NAMES
    ]
    raw = config.model_dump(mode="json")
    raw["data"] |= {"root": "/home/owner/records", "clients": clients}
    raw["audit"]["signing_key"] = "/home/owner/audit.key"
    federation = init(parse_config(raw), tmp_path / "federation", address="owner.example")
    all_in(federation, sites)
    assert b"/home/owner" not in (federation.folder / "kits" / "clinic.kit.json").read_bytes()
    policy = effective_policy(sites["clinic"])
    assert (policy.client.source, policy.data_root) == ("{data}/clinic.{split}.jsonl", None)
    assert policy_check(sites["clinic"]).ok


def test_a_kit_that_proposes_noise_which_the_owner_can_compute_is_no_policy(federation, sites, tmp_path):
    for site in sites.values():
        approve(federation, request_of(site))
    private = {"unit": "record", "target_epsilon": 1.0, "randomness": "unsafe_simulated"}
    kit = proposing(federation, next_epoch(federation), tmp_path / "kit.json", privacy=private)
    accept(sites["clinic"], kit, owner=owner_of(federation))
    with pytest.raises(ConfigError, match=r"privacy\.randomness=unsafe_simulated: must be os"):
        effective_policy(sites["clinic"])
    assert not policy_check(sites["clinic"]).ok


def test_a_site_without_the_file_beside_its_journal_is_told_before_it_starts(federation, sites):
    all_in(federation, sites)
    site = sites["clinic"]
    keys = next(check for check in local_checks(site) if check.name == "keys")
    assert keys.ok
    sequence_file(journal_file(site.keys, site.name)).unlink()
    keys = next(check for check in local_checks(site) if check.name == "keys")
    assert not keys.ok
    assert "make new keys" in keys.line


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"privacy": {"unit": "record", "target_epsilon": 1.0, "target_delta": 0.5}},
            "record-level differential privacy, epsilon at most 1 at delta 0.5, same as the owner's job",
        ),
        (
            {"protect": {"weights": "encrypted_gram"}},
            "; encrypted_gram: cosines are hidden from a server",
        ),
        ({"protect": {"scheme": "ckks"}}, "; ckks: "),
        ({"protect": {"scheme": "unsafe_plaintext"}}, "; unsafe_plaintext: the server sees every client's"),
    ],
)
def test_a_sites_check_of_its_policy_says_what_does_not_protect(
    federation, sites, tmp_path, sections, said
):
    for site in sites.values():
        approve(federation, request_of(site))
    kit = proposing(federation, next_epoch(federation), tmp_path / "kit.json", **sections)
    accept(sites["clinic"], kit, owner=owner_of(federation))
    assert said in policy_check(sites["clinic"]).line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epoch": 1e308}, "epoch="),
        ({"epoch": 0}, "epoch="),
        ({"epoch": 10**30}, "epoch=an integer of 100 bits: must be a whole number from 1 to 1000000"),
        ({"epoch": True}, "epoch=True"),
        ({"site": "bank"}, "is for the site bank"),
        ({"version": "x"}, "is no kit"),
        ({"authority_pem": ""}, "is no kit"),
        ({"authority_pem": "rubbish"}, "is no kit"),
        ({"authority_pem": "# é"}, "is no kit: authority_pem: has characters beyond ASCII"),
        ({"roster": {"../../x": "00" * 32}}, "is no kit"),
        ({"address": "a b"}, "address="),
        ({"proposal": {}}, "is no kit"),
    ],
)
def test_a_kit_that_its_owner_filled_with_rubbish_is_one_line_and_leaves_nothing(
    federation, sites, tmp_path, change, line
):
    epoch = all_in(federation, sites)
    body = read_document(make_kit(federation, epoch, "clinic"), KIT).body
    write_document(tmp_path / "kit.json", KIT, {**body, **change}, federation.owner_key())
    before = {file: file.read_bytes() for file in sites["clinic"].folder.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=line):
        accept(sites["clinic"], tmp_path / "kit.json", owner=None)
    after = {file: file.read_bytes() for file in sites["clinic"].folder.rglob("*") if file.is_file()}
    assert after == before


def test_a_federations_name_writes_no_line_of_its_own_into_a_sites_policy(federation, sites, tmp_path):
    for site in sites.values():
        approve(federation, request_of(site))
    body = read_document(make_kit(federation, next_epoch(federation), "clinic"), KIT).body
    name = "quiet\nprotect: {}\n\x1b[2J"
    write_document(tmp_path / "kit.json", KIT, {**body, "federation": name}, federation.owner_key())
    accept(sites["clinic"], tmp_path / "kit.json", owner=owner_of(federation))
    assert effective_policy(sites["clinic"]).protect.scheme == "masking"
    assert "\x1b" not in sites["clinic"].client_file.read_text()


def test_a_number_that_json_does_not_have_is_one_line(tmp_path):
    (tmp_path / "kit.json").write_text(
        '{"kind": "kit", "body": {"a": 1e999}, "public": "%s", "signature": ""}' % ("00" * 32)
    )
    with pytest.raises(ConfigError, match="is no kit"):
        read_document(tmp_path / "kit.json", KIT)


def test_what_is_kept_of_a_request_is_what_was_checked(federation, sites, tmp_path):
    document = request_of(sites["clinic"])
    sites["clinic"].request.write_text("something else by now")
    approve(federation, document)
    kept = read_document(federation.folder / "sites" / "clinic.json", REQUEST)
    assert kept.public == signing_public(sites["clinic"].identity())


def test_a_folder_is_an_owners_or_a_sites(config, federation, sites):
    with pytest.raises(ConfigError, match="is an owner's folder"):
        join("clinic", federation.folder)
    with pytest.raises(ConfigError, match="is a site's folder"):
        init(config, sites["clinic"].folder, address="owner.example")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("owner.example", ("owner.example", 9092)),
        ("owner.example:1", ("owner.example", 1)),
        ("10.0.0.1:9443", ("10.0.0.1", 9443)),
    ],
)
def test_an_address_is_a_host_with_or_without_a_port(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":9092",
        "owner.example:0",
        "owner.example:70000",
        "a b",
        "x:y",
        "fd00::1",
        "[fd00::1]:1",
        "owner.example:²",
    ],
)
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="address="):
        parse_address(text)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seeds": [0, 1]}, "a deployment trains once"),
        ({"audit": {"record": True}}, "all records in one place"),
        ({"privacy": {"randomness": "unsafe_simulated"}}, "noise that the owner could compute"),
        ({"protect": {"scheme": "masking", "keys": "keys"}}, "each site's own"),
    ],
)
def test_settings_for_one_machine_are_not_deployed(config, tmp_path, change, line):
    settings = parse_config({**config.model_dump(mode="json"), **change})
    with pytest.raises(ConfigError, match=line):
        init(settings, tmp_path / "federation", address="owner.example")
    assert not (tmp_path / "federation").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seeds:\n- 0\n", "seeds:\n- 0\n- 1\n", "a deployment trains once"),
        ("record: false", "record: true", "all records in one place"),
    ],
)
def test_settings_that_were_edited_to_what_cannot_be_deployed_are_refused(
    federation, sites, old, new, line
):
    epoch = all_in(federation, sites)
    file = federation.folder / "job.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=rf"job\.yaml: .*{line}"):
        make_kit(federation, epoch, "clinic")
    with pytest.raises(ConfigError, match=line):
        run_owner(federation)


# --- damaged files, and folders of something else


@pytest.mark.parametrize("content", [b"zz", b"00" * 31, b"\xff" * 64, b""])
def test_a_damaged_owners_key_is_one_line(federation, sites, content):
    all_in(federation, sites)
    (sites["clinic"].folder / "owner.pub").write_bytes(content)
    with pytest.raises(ConfigError, match=r"owner\.pub: ") as raised:
        accepted_kit(sites["clinic"])
    assert "\n" not in str(raised.value)


def test_a_nodes_key_that_is_gone_is_one_line_of_the_checks(federation, sites):
    all_in(federation, sites)
    sites["clinic"].node_key.unlink()
    keys = next(check for check in local_checks(sites["clinic"]) if check.name == "keys")
    assert not keys.ok
    assert "node.key: cannot be read: No such file or directory; put it back" in keys.line


def test_an_authority_with_characters_beyond_ascii_is_refused_before_it_is_in_a_kit(federation, sites):
    epoch = all_in(federation, sites)
    file = federation.tls.authority
    file.write_bytes("# Zoë\n".encode() + file.read_bytes())
    with pytest.raises(ConfigError, match=r"authority\.pem: byte 4 is beyond ASCII"):
        make_kit(federation, epoch, "clinic")


def test_a_folder_that_is_no_epoch_is_passed_over(federation, sites):
    epoch = all_in(federation, sites)
    shutil.copytree(epoch.folder, epoch.folder.with_name("1-backup"))
    assert current_epoch(federation) == epoch


def test_a_folder_with_other_files_is_not_taken_over_and_keeps_its_mode(config, tmp_path):
    for make in (lambda f: init(config, f, address="owner.example"), lambda f: join("clinic", f)):
        (tmp_path / "thesis.tex").write_text("mine")
        tmp_path.chmod(0o755)
        with pytest.raises(ConfigError, match=r"holds thesis\.tex; must be empty; choose another --out"):
            make(tmp_path)
        assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_what_a_killed_call_left_does_not_stop_the_next_one(config, tmp_path):
    owner, site = tmp_path / "owner", tmp_path / "site"
    (owner / "authority").mkdir(parents=True)
    (owner / ".partial-abc").write_text("")
    init(config, owner, address="owner.example")
    (site / "generations").mkdir(parents=True)
    join("clinic", site)


def test_another_certificate_for_a_federation_that_is_there_is_refused_not_ignored(config, tmp_path):
    make_authority(tmp_path, "own")
    make_server(tmp_path, ["owner.example"])
    own = TlsFiles.below(tmp_path)
    without = init(config, tmp_path / "a", address="owner.example")
    with pytest.raises(ConfigError, match=r"is not the certificate of .*/a, .*leave out --certificate"):
        init(config, without.folder, address="owner.example", own_certificate=own)
    made = init(config, tmp_path / "b", address="owner.example", own_certificate=own)
    assert init(config, made.folder, address="owner.example", own_certificate=own) == made
