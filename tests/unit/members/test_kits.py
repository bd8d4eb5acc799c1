"""A site takes its owner's newest kit of its own installation, and nothing else."""

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.deploy.authority import check_server, renew_all
from fedproxy_secure.deploy.federation import init
from fedproxy_secure.deploy.kit import KIT, accept, check_kits, make_kit, needed_kit
from fedproxy_secure.deploy.members import approve, next_epoch
from fedproxy_secure.deploy.owner import run_owner
from fedproxy_secure.deploy.policy import effective_policy
from fedproxy_secure.deploy.preflight import local_checks
from fedproxy_secure.deploy.signed import read_document, write_document
from fedproxy_secure.deploy.site import (
    open_site,
    rotate_site,
)
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.journal.newest import sequence_file
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.secagg.terms import Roster
from tests.support.members import (
    NAMES,
    all_in,
    owner_of,
    policy_check,
    proposing,
    remade,
    request_of,
    take_changed,
)


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
    assert needed_kit(sites["clinic"]).epoch == 2


def test_a_site_that_took_the_kit_of_a_new_authority_takes_none_of_the_old_one(federation, sites):
    """Of the same members: whoever has stolen the old authority's key may send the old kit again."""
    epoch = all_in(federation, sites)
    site = sites["clinic"]
    old = make_kit(federation, epoch, "clinic").read_bytes()
    (site.folder / "old.json").write_bytes(old)
    renew_all(federation.folder / "authority", federation.name, [federation.host])
    check_server(federation.tls, [federation.host])
    with pytest.raises(ConfigError, match=r"names another authority than .*; `deploy kit`"):
        check_kits(federation, NAMES)
    newer = next_epoch(federation)
    assert (newer.number, newer.roster) == (epoch.number + 1, epoch.roster)
    assert next_epoch(federation) == newer
    kits = {name: make_kit(federation, newer, name) for name in NAMES}
    check_kits(federation, NAMES)
    accept(site, kits["clinic"], owner=None)
    assert needed_kit(site).authority_pem == federation.tls.authority.read_text()
    with pytest.raises(ConfigError, match=r"epoch=1: must be >= 2"):
        accept(site, site.folder / "old.json", owner=None)


def test_a_site_goes_to_an_owner_with_new_keys_with_its_own_keys_journal_and_ledger(
    config, federation, sites, tmp_path
):
    """As docs/deployment.md says to do when the owner's machine was stolen."""
    all_in(federation, sites)
    other = init(config, tmp_path / "other", address="owner.example:9443")
    for site in sites.values():
        approve(other, request_of(site))
    site, kit = sites["clinic"], make_kit(other, next_epoch(other), "clinic")
    stolen = make_kit(federation, next_epoch(federation), "clinic")
    identity = signing_public(site.identity())
    for name in ("owner.pub", "kit.json"):
        (site.folder / name).unlink()
    accept(site, kit, owner=owner_of(other))
    assert needed_kit(site).authority_pem == other.tls.authority.read_text()
    assert signing_public(open_site(site.folder).identity()) == identity
    with pytest.raises(ConfigError, match="is signed by"):
        accept(site, stolen, owner=None)


def test_a_kit_of_another_owner_is_refused_even_if_it_names_this_site(config, federation, sites, tmp_path):
    all_in(federation, sites)
    other = init(config, tmp_path / "other", address="owner.example:9443")
    for site in sites.values():
        approve(other, request_of(site))
    foreign = make_kit(other, next_epoch(other), "clinic")
    with pytest.raises(ConfigError, match="is signed by"):
        accept(sites["clinic"], foreign, owner=None)
    with pytest.raises(ConfigError, match="the owner pinned at this site"):
        accept(sites["clinic"], foreign, owner=owner_of(other))


def test_the_first_kit_needs_the_owners_key_from_another_channel(federation, sites):
    for site in sites.values():
        approve(federation, request_of(site))
    kit = make_kit(federation, next_epoch(federation), "clinic")
    with pytest.raises(ConfigError, match="owner: must be given with the first kit"):
        accept(sites["clinic"], kit, owner=None)


def test_a_kit_for_another_site_is_refused(federation, sites):
    epoch = all_in(federation, sites)
    with pytest.raises(ConfigError, match="is for site bank"):
        accept(sites["clinic"], make_kit(federation, epoch, "bank"), owner=None)


def test_a_sites_own_file_is_kept_and_decides(federation, sites):
    epoch = all_in(federation, sites)
    file = sites["clinic"].client_file
    file.write_text(file.read_text().replace("rounds: 4", "rounds: 2"))
    accept(sites["clinic"], make_kit(federation, epoch, "clinic"), owner=None)
    assert effective_policy(sites["clinic"]).rounds == 2


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("sources_sha256", r"must be '0\.1\.0', sources '[0-9a-f]{12}', the version installed here"),
        (
            "app_sha256",
            r"has the app '000000000000': must be '[0-9a-f]{12}', .*; install Flower from the same lock",
        ),
    ],
)
def test_a_site_takes_no_kit_of_another_installation(federation, sites, tmp_path, field, line):
    """Two commits of one version may differ in the protocol."""
    epoch = all_in(federation, sites)
    other = remade(federation, epoch, tmp_path / "kit.json", **{field: "0" * 64})
    with pytest.raises(ConfigError, match=line):
        accept(sites["clinic"], other, owner=None)


def test_a_kit_of_newer_code_stops_neither_its_refusal_nor_the_way_back(federation, sites, tmp_path):
    """Whose policies have settings that this code does not know, and whose kits have lost a field."""
    epoch = all_in(federation, sites)
    site = sites["clinic"]
    body = read_document(make_kit(federation, epoch, "clinic"), KIT).body
    newer = {**body, "sources_sha256": "0" * 64, "proposal": {**body["proposal"], "later": 1}}
    del newer["authority_pem"]
    for file in (tmp_path / "kit.json", site.folder / "kit.json"):
        write_document(file, KIT, newer, federation.owner_key())
    write_document(federation.folder / "kits" / "clinic.kit.json", KIT, newer, federation.owner_key())
    for refused in (
        lambda: accept(site, tmp_path / "kit.json", owner=None),
        lambda: needed_kit(site),
        lambda: check_kits(federation, NAMES),
    ):
        with pytest.raises(ConfigError, match="install the same commit at the owner and at every site"):
            refused()
    accept(site, make_kit(federation, epoch, "clinic"), owner=None)
    assert needed_kit(site).epoch == epoch.number


def test_a_site_that_was_upgraded_does_not_start_with_its_earlier_kit(federation, sites, tmp_path):
    epoch = all_in(federation, sites)
    earlier = remade(federation, epoch, tmp_path / "kit.json", sources_sha256="0" * 64)
    (sites["clinic"].folder / "kit.json").write_bytes(earlier.read_bytes())
    with pytest.raises(ConfigError, match="install the same commit at the owner and at every site"):
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
        ConfigError, match=r"clinic\.kit\.json: was made by fedproxy-secure '0\.1\.0', sources"
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
            "; encrypted_gram: cosines are hidden only from a server",
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
        ({"site": "bank"}, "is for site bank"),
        ({"version": "x"}, "is no kit"),
        ({"authority_pem": ""}, "is no kit"),
        ({"authority_pem": "rubbish"}, "is no kit"),
        ({"authority_pem": "# é"}, "is no kit: authority_pem: has characters beyond ASCII"),
        ({"roster": {"../../x": "00" * 32}}, "is no kit"),
        ({"address": "a b"}, "address="),
        ({"proposal": {}}, "is no kit"),
        ({"proposal": {"later": 1}}, "is no kit"),
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
