"""A server cannot write outside a client's cache, nor make it run files of another hash."""

import pytest
from flwr.app import ConfigRecord

from fedproxy_secure.errors import DataError
from fedproxy_secure.flower import proxy_store
from tests.support.tiny import save_tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_shipped_proxy_arrives_whole_under_its_hash(tmp_path, cache):
    folder = save_tiny(tmp_path / "proxy")
    sha256 = proxy_store.folder_sha256(folder)
    arrived = proxy_store.unpack(proxy_store.pack(folder), sha256)
    assert proxy_store.folder_sha256(arrived) == sha256
    assert proxy_store.find(sha256) == arrived


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".hidden", "..", "", "a\n", "a\\b\0"])
def test_a_name_with_a_path_in_it_is_refused_and_nothing_is_kept(cache, name):
    with pytest.raises(DataError, match="plain file name"):
        proxy_store.unpack(ConfigRecord({"ok.json": b"x", name: b"x"}), "0" * 64)
    assert not any(cache.iterdir())


def test_files_of_another_hash_are_refused_and_nothing_is_kept(cache):
    with pytest.raises(DataError, match="hash to"):
        proxy_store.unpack(ConfigRecord({"config.json": b"{}"}), "0" * 64)
    assert not any(cache.iterdir())


@pytest.mark.parametrize("sha256", ["../..", "", "g" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_hash_that_is_none_is_refused(cache, sha256):
    with pytest.raises(DataError, match="64 hex digits"):
        proxy_store.unpack(ConfigRecord({"config.json": b"{}"}), sha256)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "", "A" * 64])
def test_a_server_cannot_ask_which_folders_a_client_has(cache, name):
    with pytest.raises(DataError, match="must be 64 hex digits"):
        proxy_store.find(name)
