"""A server cannot write outside a client's cache, nor make it run files of another hash or kind."""

import os
import time

import pytest

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake import files as proxy_files
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.parts import arrive, packed
from tests.support.tiny import save_tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_shipped_proxy_arrives_whole_under_its_hash(tmp_path, cache):
    folder = save_tiny(tmp_path / "proxy")
    sha256 = proxy_files.folder_sha256(folder)
    arrived = arrive(packed(folder), sha256)
    assert proxy_files.folder_sha256(arrived) == sha256
    assert proxy_store.find(sha256) == arrived


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".hidden", "..", "", "a\n", "a\\b\0"])
def test_a_name_with_a_path_in_it_is_refused_and_nothing_is_kept(cache, name):
    with pytest.raises(DataError, match="plain file name"):
        arrive({"config.json": b"x", name: b"x"}, "0" * 64)
    assert not cache.exists() or not any(cache.iterdir())


def test_files_of_another_hash_are_refused_and_nothing_is_kept(cache):
    with pytest.raises(DataError, match="hash to"):
        arrive({"config.json": b"{}"}, "0" * 64)
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.parametrize("sha256", ["../..", "", "g" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_hash_that_is_none_is_refused(cache, sha256):
    with pytest.raises(DataError, match="64 hex digits"):
        arrive({"config.json": b"{}"}, sha256)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "", "A" * 64])
def test_a_server_cannot_ask_which_folders_a_client_has(cache, name):
    with pytest.raises(DataError, match="must be 64 hex digits"):
        proxy_store.find(name)


NOT_A_PROXY_S = [
    "README.md",
    "Config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "added_tokens.json",
    "config.json.py",
    "consolidated.safetensors",
    "merges.txt",
    "model-00001-of-00002.safetensors.index.json",
    "model-1-of-2.safetensors",
    "modeling_llama.py",
    "pytorch_model.bin",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.4.0.json",
    "vocab.json",
]


@pytest.mark.parametrize("name", NOT_A_PROXY_S)
def test_a_file_that_no_proxy_has_is_neither_offered_nor_taken(tmp_path, cache, name):
    folder = save_tiny(tmp_path / "proxy")
    files = packed(folder)
    (folder / name).write_bytes(b"{}")
    for offered in (packed, proxy_files.folder_sha256, offer):
        with pytest.raises(DataError, match="must be one that a causal LM saved as safetensors has"):
            offered(folder)
    with pytest.raises(DataError, match="must be one that a causal LM saved as safetensors has"):
        arrive({**files, name: b"{}"}, "0" * 64)
    assert not cache.exists() or not any(cache.iterdir())


def offer(folder):
    with proxy_store.offered_on_this_host(folder):
        pass


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_neither_offered_nor_kept(tmp_path, cache, name):
    folder = save_tiny(tmp_path / "proxy")
    (folder / name).unlink()
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    for offered in (packed, offer):
        with pytest.raises(DataError, match=r"^proxy: (has no|must have)"):
            offered(folder)
    with pytest.raises(DataError, match=r"^proxy: (has no|must have)"):
        arrive(files, proxy_files.folder_sha256(folder))
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_is_no_plain_file_is_not_offered(tmp_path, what):
    folder = save_tiny(tmp_path / "proxy")
    place = folder / "generation_config.json"
    place.rename(tmp_path / "elsewhere.json")
    if what == "link":
        place.symlink_to(tmp_path / "elsewhere.json")
    elif what == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(DataError, match="must be a plain file"):
        offer(folder)


def test_more_files_than_a_proxy_has_are_not_taken(cache):
    shards = {f"model-{i:05}-of-02000.safetensors": b"x" for i in range(1, 2001)}
    with pytest.raises(DataError, match="proxy of 2000 files: must have at most 1024"):
        arrive(shards, "0" * 64)


def arrived(tmp_path):
    folder = save_tiny(tmp_path / "proxy")
    sha256 = proxy_files.folder_sha256(folder)
    return arrive(packed(folder), sha256), sha256


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: flip(kept / "model.safetensors"),
        lambda kept: (kept / "generation_config.json").unlink(),
        lambda kept: (kept / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}'),
        lambda kept: (kept / "chat_template.jinja").write_text(""),
        lambda kept: (kept / "custom_generate").mkdir(),
    ],
    ids=["a bit", "a file less", "an adapter", "a file more", "a folder"],
)
def test_files_that_changed_on_the_disk_after_they_came_are_not_used(tmp_path, cache, change):
    kept, sha256 = arrived(tmp_path)
    change(kept)
    line = "its files have changed since they came|must be one that a causal LM"
    with pytest.raises(DataError, match=line):
        proxy_store.find(sha256)
    with pytest.raises(DataError, match=line):  # and what is sent again does not hide it
        arrive(packed(tmp_path / "proxy"), sha256)


def test_a_link_in_the_cache_is_not_followed(tmp_path, cache):
    kept, sha256 = arrived(tmp_path)
    kept.rename(tmp_path / "moved")
    kept.symlink_to(tmp_path / "moved")
    with pytest.raises(DataError, match="is a link in the cache"):
        proxy_store.find(sha256)


def test_a_hash_that_was_computed_before_is_not_believed_of_files_that_changed(
    tmp_path, cache, monkeypatch
):
    monkeypatch.setattr(proxy_files, "_SETTLED_NS", 0)
    kept, sha256 = arrived(tmp_path)
    time.sleep(0.05)
    assert proxy_store.find(sha256) == proxy_store.find(sha256) == kept
    assert (kept.resolve(), None) in proxy_files._verified
    before = (kept / "model.safetensors").stat()
    flip(kept / "model.safetensors")
    os.utime(kept / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="have changed since they came"):
        proxy_store.find(sha256)


def test_files_that_changed_just_now_are_read_again(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(proxy_files, "_SETTLED_NS", 10**18)  # a busy machine may take long
    kept, sha256 = arrived(tmp_path)
    assert proxy_store.find(sha256) == kept
    assert (kept.resolve(), None) not in proxy_files._verified
