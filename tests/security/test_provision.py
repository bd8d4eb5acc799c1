"""Keys are their owner's alone, whole or not there, never overwritten, and the roster's or refused."""

import os
import stat

import pytest

from fedproxy_secure.crypto.key_file import PRIVATE_KEY, read_key, write_key
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.secagg.provision import load_identity, load_roster, provision


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "keys"


def test_provisioned_keys_are_private_and_the_rosters_own(folder):
    roster = provision(["a", "b"], folder)
    assert load_roster(folder) == roster
    assert sorted(f.name for f in folder.iterdir()) == [
        "a.journal",
        "a.key",
        "a.sequence",
        "b.journal",
        "b.key",
        "b.sequence",
        "roster.json",
    ]
    for name in ("a", "b"):
        assert (folder / f"{name}.key").stat().st_mode & 0o777 == 0o600
        assert Journal(folder=folder, client=name).sequence() == 0
        assert signing_public(load_identity(folder, name, roster)) == roster.members[name]
    assert roster.members["a"] != roster.members["b"]


@pytest.mark.parametrize("there", ["roster.json", "z.key", "z.journal", "z.sequence"])
def test_keys_are_never_overwritten(folder, there):
    folder.mkdir(parents=True)
    (folder / there).write_text("mine")
    (folder / "notes.txt").write_text("others may lie here")
    with pytest.raises(ConfigError, match=f"has {there} already; keys are never overwritten"):
        provision(["a"], folder)
    assert (folder / there).read_text() == "mine"
    assert not (folder / "a.key").exists()


def test_keys_can_be_made_in_a_folder_that_is_there_and_holds_other_files(folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert load_identity(folder, "a", provision(["a"], folder))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be written: File exists"):
        provision(["a"], tmp_path / "file")


def test_a_key_that_is_not_the_rosters_is_refused(folder):
    roster = provision(["a", "b"], folder)
    (folder / "a.key").write_text((folder / "b.key").read_text())
    with pytest.raises(ConfigError, match="is not the key that the roster has for a"):
        load_identity(folder, "a", roster)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_a_key_that_anyone_else_may_touch_is_refused(tmp_path, mode):
    write_key(tmp_path / "a.key", fresh_secret())
    (tmp_path / "a.key").chmod(mode)
    with pytest.raises(ConfigError, match=f"has mode {mode:o}; must be 600"):
        read_key(tmp_path / "a.key")


def test_a_key_file_is_read_back_and_not_written_twice(tmp_path):
    key = fresh_secret()
    write_key(tmp_path / "a.key", key)
    assert read_key(tmp_path / "a.key").reveal() == key.reveal()
    (tmp_path / "a.key").chmod(0o400)
    assert read_key(tmp_path / "a.key").reveal() == key.reveal()
    with pytest.raises(ConfigError, match=r"a\.key: is there already; keys are never overwritten"):
        write_key(tmp_path / "a.key", fresh_secret())
    assert read_key(tmp_path / "a.key").reveal() == key.reveal()
    assert os.listdir(tmp_path) == ["a.key"]  # no partial file is left
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_key(tmp_path / "none" / "a.key", key)


def test_a_key_is_on_the_disk_before_it_has_its_name_and_then_so_is_the_name(tmp_path, monkeypatch):
    seen = []

    def synced(descriptor):
        found = os.fstat(descriptor)
        what = "folder" if stat.S_ISDIR(found.st_mode) else found.st_size
        seen.append((what, (tmp_path / "a.key").exists()))

    monkeypatch.setattr(os, "fsync", synced)
    write_key(tmp_path / "a.key", fresh_secret())
    assert seen == [(86, False), ("folder", True)]


@pytest.mark.parametrize("content", [b"zz", b"00", b"00" * 31, b"00" * 33, b"", b"\xff", b"PK\x03\x04"])
def test_a_file_that_is_no_key_is_refused(tmp_path, content):
    for word in (b"", PRIVATE_KEY.encode() + b" "):
        (tmp_path / "a.key").write_bytes(word + content)
        with pytest.raises(
            ConfigError, match=rf"a\.key: is not a private key; must hold {PRIVATE_KEY} and 64"
        ):
            read_key(tmp_path / "a.key")


def test_a_public_key_in_the_place_of_a_private_one_is_named_as_that_and_not_by_its_mode(tmp_path):
    (tmp_path / "me.key.pub").write_text("ab" * 32 + "\n")
    (tmp_path / "me.key.pub").chmod(0o644)
    with pytest.raises(ConfigError, match=r"me\.key\.pub: is not a private key"):
        read_key(tmp_path / "me.key.pub")


def test_a_key_file_that_is_not_there_is_one_line_with_its_name_once(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.key: cannot be read as a key: No such file or directory$"):
        read_key(tmp_path / "a.key")


def test_what_write_key_left_half_done_is_cleared_away(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        write_key(tmp_path / "a.key", Secret(bytes(32)))
    assert not os.listdir(tmp_path)
