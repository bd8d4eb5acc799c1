"""A proxy that arrives in parts is whole or not there, whatever is cut, repeated or changed on the way."""

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake import arriving
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.arriving import arrived_bytes, take
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.parts import Offer, Part
from fedproxy_secure.tracing.copies import copy_of, own_bytes
from tests.support.parts import arrive, packed, parts
from tests.support.tiny import save_tiny
from tests.support.traced import traced_proxy

CLIENT = "clinic"
PART = 10_000  # of some 85,000 bytes


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("parts") / "proxy")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def incoming(cache):
    return list(cache.glob(".incoming-*")) if cache.exists() else []


@pytest.mark.parametrize("most", [1000, 65_536, 10**9])
def test_the_parts_of_an_offer_are_its_files_one_after_another(proxy, most):
    offer, came = Offer.of(proxy), b""
    while part := offer.read(len(came), most):
        assert len(part) == min(most, offer.size - len(came))
        came += part
    assert came == b"".join(packed(proxy).values())


@pytest.mark.parametrize("most", [17, 4096, 10**9])
def test_the_parts_of_a_traced_proxy_are_the_clients_own_copy(tmp_path, most):
    traced = traced_proxy(tmp_path)
    file, changed = own_bytes(traced.folder, traced.marks, traced.key, CLIENT)
    offer = Offer.of(traced.folder, own_file=file, own_bytes=changed)
    name, content = copy_of(traced.folder, traced.marks, traced.key, CLIENT)
    begin = sum(size for n, size in offer.sizes.items() if n < name)
    first = min(changed)  # the marked rows alone differ; the rest need not be read in small steps
    end = begin + max(changed) + len(changed[max(changed)])
    came = b"".join(offer.read(at, min(most, end - at)) for at in range(begin + first, end, most))
    assert came == content[first : end - begin]
    assert came != (traced.folder / file).read_bytes()[first : end - begin]


def test_a_transfer_goes_on_where_it_was_interrupted(proxy, cache):
    sha256 = folder_sha256(proxy)
    pieces = parts(packed(proxy), sha256, part_bytes=PART)
    for part in pieces[:2]:
        assert take(part, client=CLIENT) is None
    assert arrived_bytes(sha256, client=CLIENT) == 2 * PART
    assert proxy_store.find(sha256) is None
    kept = [take(part, client=CLIENT) for part in pieces[2:]][-1]
    assert kept == proxy_store.find(sha256)
    assert not incoming(cache)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 20), max_size=30))
def test_parts_in_any_order_and_any_number_never_make_anything_but_the_proxy(proxy, cache, order):
    sha256 = folder_sha256(proxy)
    shutil.rmtree(cache, ignore_errors=True)
    pieces = parts(packed(proxy), sha256, part_bytes=PART)
    for number in order:
        before = arrived_bytes(sha256, client=CLIENT)
        part = pieces[number % len(pieces)]
        kept = take(part, client=CLIENT)
        after = arrived_bytes(sha256, client=CLIENT)
        assert kept is not None or after == (before + len(part.data) if part.at == before else before)
    while proxy_store.find(sha256) is None:
        take(pieces[arrived_bytes(sha256, client=CLIENT) // PART], client=CLIENT)
    assert folder_sha256(proxy_store.find(sha256)) == sha256


def test_a_file_that_was_cut_in_the_middle_of_a_part_is_gone_on_with(proxy, cache):
    """A process may be killed while it writes."""
    files, sha256 = packed(proxy), folder_sha256(proxy)
    whole, sizes = b"".join(files.values()), {name: len(data) for name, data in files.items()}
    take(parts(files, sha256, part_bytes=PART)[0], client=CLIENT)
    (place,) = incoming(cache)
    place.write_bytes(place.read_bytes()[:7_777])
    has = arrived_bytes(sha256, client=CLIENT)
    assert has == 7_777
    assert take(Part(sha256=sha256, sizes=sizes, at=has, data=whole[has:]), client=CLIENT) is not None


def test_a_client_that_was_killed_before_it_put_the_proxy_in_place_does_so_at_the_last_part(
    proxy, cache, monkeypatch
):
    sha256 = folder_sha256(proxy)
    pieces = parts(packed(proxy), sha256)

    def killed(*_args, **_more):
        raise KeyboardInterrupt

    for part in pieces[:-1]:
        take(part, client=CLIENT)
    with monkeypatch.context() as while_killed:
        while_killed.setattr(arriving, "_divide", killed)
        with pytest.raises(KeyboardInterrupt):
            take(pieces[-1], client=CLIENT)
    assert arrived_bytes(sha256, client=CLIENT) == sum(pieces[0].sizes.values())
    assert take(pieces[-1], client=CLIENT) == proxy_store.find(sha256)


def test_what_a_killed_client_left_half_done_takes_no_room_from_the_next_try(proxy, cache, monkeypatch):
    sha256 = folder_sha256(proxy)
    *first, last = parts(packed(proxy), sha256)
    for part in first:
        take(part, client=CLIENT)
    (place,) = incoming(cache)
    half_done = place.with_name(place.name.replace("incoming", "partial"))
    half_done.mkdir()
    (half_done / "model.safetensors").write_bytes(b"x" * 1000)
    total = sum(last.sizes.values())

    def free(_folder):
        left = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        return SimpleNamespace(free=2 * total - left)  # a disk that holds the proxy twice, and no more

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert take(last, client=CLIENT) == proxy_store.find(sha256)
    assert [file.name for file in cache.iterdir()] == [sha256]


def test_what_came_of_a_proxy_that_is_in_place_can_be_forgotten(proxy, cache):
    sha256 = folder_sha256(proxy)
    take(parts(packed(proxy), sha256)[0], client=CLIENT)
    arriving.forget(sha256, client="another")
    assert incoming(cache)
    arriving.forget(sha256, client=CLIENT)
    arriving.forget(sha256, client=CLIENT)
    assert not incoming(cache)


def test_what_does_not_hash_to_what_was_named_is_deleted_and_sent_again_from_its_beginning(proxy, cache):
    sha256 = folder_sha256(proxy)
    *first, last = parts(packed(proxy), sha256)
    for part in first:
        take(part, client=CLIENT)
    data = bytes([last.data[0] ^ 1]) + last.data[1:]
    flipped = Part(sha256=sha256, sizes=last.sizes, at=last.at, data=data)
    with pytest.raises(DataError, match=f"must be {sha256[:12]}"):
        take(flipped, client=CLIENT)
    assert not any(cache.iterdir())
    assert arrive(packed(proxy), sha256) == proxy_store.find(sha256)


def test_what_comes_for_one_client_is_not_anothers(proxy, cache):
    sha256 = folder_sha256(proxy)
    take(parts(packed(proxy), sha256)[0], client="clinic")
    assert arrived_bytes(sha256, client="bank") == 0


def test_a_client_keeps_the_beginnings_of_two_proxies_at_most_and_none_of_anothers(proxy, cache):
    files = packed(proxy)
    for letter, client in (("a", "clinic"), ("a", "bank"), ("b", "clinic"), ("c", "clinic")):
        take(parts(files, letter * 64)[0], client=client)
        for place in incoming(cache):  # times of files may be coarse
            os.utime(place, ns=(0, place.stat().st_mtime_ns - 10**9))
    left = {(x, c): arrived_bytes(x * 64, client=c) for x in "abc" for c in ("clinic", "bank")}
    assert {key for key, came in left.items() if came} == {("a", "bank"), ("b", "clinic"), ("c", "clinic")}


def test_the_space_is_checked_for_the_sizes_of_every_part(proxy, cache, monkeypatch):
    files, sha256 = packed(proxy), folder_sha256(proxy)
    take(parts(files, sha256)[0], client=CLIENT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    larger = {**parts(files, sha256)[0].sizes, "model.safetensors": 2**40}
    with pytest.raises(DataError, match="needs 2,199,023 MB more"):
        take(Part(sha256=sha256, sizes=larger, at=PART, data=b"x" * PART), client=CLIENT)
    assert arrived_bytes(sha256, client=CLIENT) == PART


def test_a_part_that_comes_again_needs_no_more_space_than_is_left_to_take(proxy, cache, monkeypatch):
    files, sha256 = packed(proxy), folder_sha256(proxy)
    first, *others = parts(files, sha256)
    for part in (first, *others[:4]):
        take(part, client=CLIENT)
    total = sum(first.sizes.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * total - 5 * PART))
    assert take(first, client=CLIENT) is None
    assert take(others[4], client=CLIENT) is None


def test_parts_of_two_copies_of_a_traced_proxy_are_never_joined(tmp_path, cache):
    traced = traced_proxy(tmp_path)
    sha256 = folder_sha256(traced.folder)
    for copy in ("1" * 64, "2" * 64):
        pieces = [replace(part, copy=copy) for part in parts(traced.files(CLIENT), sha256)]
        assert take(pieces[1], client=CLIENT, marks=traced.marks) is None
        assert arrived_bytes(sha256, client=CLIENT, copy=copy) == 0
        take(pieces[0], client=CLIENT, marks=traced.marks)
        assert arrived_bytes(sha256, client=CLIENT, copy=copy) == PART


def test_the_name_of_a_copy_follows_from_what_differs_in_it(tmp_path):
    traced = traced_proxy(tmp_path)
    offers = []
    for client in ("clinic", "bank"):
        file, changed = own_bytes(traced.folder, traced.marks, traced.key, client)
        offers.append(Offer.of(traced.folder, own_file=file, own_bytes=changed))
    assert len({offer.copy for offer in offers}) == 2
    assert Offer.of(traced.folder).copy == ""


def test_a_proxy_that_another_client_of_the_machine_brought_leaves_nothing_behind(proxy, cache):
    sha256 = folder_sha256(proxy)
    first, second, *_ = parts(packed(proxy), sha256)
    take(first, client="bank")
    kept = arrive(packed(proxy), sha256)
    assert take(second, client="bank") == kept
    assert not incoming(cache)


def test_no_link_is_followed(proxy, cache, tmp_path):
    sha256 = folder_sha256(proxy)
    first, second, *_ = parts(packed(proxy), sha256)
    take(first, client=CLIENT)
    (place,) = incoming(cache)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="cannot be written"):
        take(second, client=CLIENT)
    assert (tmp_path / "elsewhere").read_bytes() == first.data


def test_a_client_may_have_the_longest_name(proxy, cache):
    sha256 = folder_sha256(proxy)
    assert take(parts(packed(proxy), sha256)[0], client="c" * 200) is None
    assert arrived_bytes(sha256, client="c" * 200) == PART


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"at": -1}, "within its"),
        ({"at": 10**12}, "within its"),
        ({"data": b""}, "must be at least one"),
        ({"data": b"x" * 10}, "within its"),
        ({"sizes": {"config.json": -1}}, "size -1: must be"),
        ({"sizes": {"config.json": 2**60}}, "must be 0 to"),
        ({"sizes": {"../config.json": 9}}, "plain file name"),
        ({"sizes": {"evil.py": 9}}, "must be one that a causal LM"),
        ({"sha256": "../.."}, "64 hex digits"),
    ],
)
def test_a_part_that_fits_nowhere_is_refused_before_anything_is_written(cache, changed, says):
    fields = {"sha256": "a" * 64, "sizes": {"config.json": 9}, "at": 0, "data": b"{}", **changed}
    with pytest.raises(DataError, match=says):
        take(Part(**fields), client=CLIENT)
    assert not cache.exists()


def test_a_client_cannot_be_named_so_that_files_lie_elsewhere(cache):
    part = Part(sha256="a" * 64, sizes={"config.json": 9}, at=0, data=b"{}")
    with pytest.raises(DataError, match="must be a name"):
        take(part, client="../clinic")
    assert not cache.exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(proxy, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="twice the rest of the proxy, and has 0; free"):
        arrive(packed(proxy), folder_sha256(proxy))
    assert not incoming(cache)


def test_a_proxy_that_shrinks_while_it_is_sent_is_said(tmp_path):
    folder = save_tiny(tmp_path / "proxy")
    offer = Offer.of(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="has changed while it was sent"):
        offer.read(0, offer.size)
