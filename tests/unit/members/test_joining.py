"""Sites join and are approved; what does not fit is refused in one line."""

import json
import stat

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.deploy.federation import init, open_federation
from fedproxy_secure.deploy.kit import KIT, accept, make_kit, needed_kit
from fedproxy_secure.deploy.members import approve, members, next_epoch
from fedproxy_secure.deploy.policy import effective_policy
from fedproxy_secure.deploy.signed import read_document, write_document
from fedproxy_secure.deploy.site import (
    _NODE_PROOF,
    REQUEST,
    check_request,
    join,
    open_site,
)
from fedproxy_secure.errors import ConfigError
from tests.support.members import (
    NAMES,
    all_in,
    owner_of,
    request_of,
)


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
    with pytest.raises(ConfigError, match="its signature is invalid"):
        read_document(tmp_path / "changed.json", REQUEST)


def test_one_node_key_written_in_two_ways_is_one_key(federation, sites, tmp_path):
    """OpenSSH takes a comment behind a key; the SuperLink would find out when the run begins."""
    approve(federation, request_of(sites["clinic"]))
    body, bank = request_of(sites["clinic"]).body, sites["bank"].identity()
    node = load_ssh_private_key(sites["clinic"].node_key.read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    proof = node.sign(_NODE_PROOF + signing_public(bank), ec.ECDSA(hashes.SHA384()))
    body |= {"name": "bank", "node_public": f"{body['node_public']} bank@host", "node_proof": proof.hex()}
    twice = write_document(tmp_path / "twice.json", REQUEST, body, bank)
    with pytest.raises(ConfigError, match="has the node key of clinic"):
        approve(federation, twice)


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


def test_a_number_that_json_does_not_have_is_one_line(tmp_path):
    (tmp_path / "kit.json").write_text(
        '{"kind": "kit", "body": {"a": 1e999}, "public": "%s", "signature": ""}' % ("00" * 32)
    )
    with pytest.raises(ConfigError, match="is no kit"):
        read_document(tmp_path / "kit.json", KIT)
