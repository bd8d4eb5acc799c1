"""An owner's federation: its address, its settings, its keys and what else lies in its folder."""

import shutil
import stat

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.deploy import authority
from fedproxy_secure.deploy.authority import TlsFiles, check_server, make_authority, make_server
from fedproxy_secure.deploy.federation import init, open_federation, parse_address
from fedproxy_secure.deploy.kit import make_kit, needed_kit
from fedproxy_secure.deploy.members import current_epoch
from fedproxy_secure.deploy.owner import run_owner
from fedproxy_secure.deploy.preflight import local_checks
from fedproxy_secure.deploy.site import (
    join,
)
from fedproxy_secure.errors import ConfigError
from tests.support.members import all_in


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
        ({"audit": {"record": True}}, "work only if one machine has all records"),
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
        ("record: false", "record: true", "work only if one machine has all records"),
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


@pytest.mark.parametrize("content", [b"zz", b"00" * 31, b"\xff" * 64, b""])
def test_a_damaged_owners_key_is_one_line(federation, sites, content):
    all_in(federation, sites)
    (sites["clinic"].folder / "owner.pub").write_bytes(content)
    with pytest.raises(ConfigError, match=r"owner\.pub: ") as raised:
        needed_kit(sites["clinic"])
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
    with pytest.raises(ConfigError, match=r"authority\.pem: byte 4 is not ASCII"):
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


def test_an_owners_folder_is_opened_with_the_certificate_that_a_killed_call_left(federation, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(authority, "_finish_renewal", lambda folder: None)
        make_server(federation.folder / "authority", ["owner.example"])
    before = federation.tls.certificate.read_bytes()
    assert open_federation(federation.folder).tls.certificate.read_bytes() != before
    check_server(federation.tls, [federation.host])


def test_another_certificate_for_a_federation_that_is_there_is_refused_not_ignored(config, tmp_path):
    make_authority(tmp_path, "own")
    make_server(tmp_path, ["owner.example"])
    own = TlsFiles.below(tmp_path)
    without = init(config, tmp_path / "a", address="owner.example")
    with pytest.raises(ConfigError, match=r"is not the certificate of .*/a, .*leave out --certificate"):
        init(config, without.folder, address="owner.example", own_certificate=own)
    made = init(config, tmp_path / "b", address="owner.example", own_certificate=own)
    assert init(config, made.folder, address="owner.example", own_certificate=own) == made
