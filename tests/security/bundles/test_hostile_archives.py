"""Must fail: archives that are no bundles, or would take too much memory to read, each told in one line."""

import io
import stat
import struct
import zipfile

import pytest

from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.archive import archive_bytes, read_archive
from fedproxy_secure.errors import ConfigError

REGULAR = stat.S_IFREG | 0o644


def zipped(*entries, comment=b"", compression=zipfile.ZIP_STORED):
    """A ZIP file of (name, content, mode) in this order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.comment = comment
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name, archive.DATE)
            entry.external_attr = mode << 16
            entry.compress_type = compression
            made.writestr(entry, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is no bundle"),
        (b"PK\x05\x06" + bytes(10), "is no bundle"),
        (zipped(("../../etc/passwd", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("/etc/passwd", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/../../x", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report\\report.json", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/", b"", stat.S_IFDIR | 0o755)), "is no name for a file of a bundle"),
        (zipped(("a\x1b[2Jb", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/report.json", b"/etc/passwd", stat.S_IFLNK | 0o777)), "is a link"),
        (zipped(("models.json", b"x", stat.S_IFIFO | 0o644)), "is a link, a folder or a device"),
        (zipped(("bomb", bytes(10**7), REGULAR), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped(("models.json", b"x", REGULAR), comment=b"hello"), "something besides its files"),
        (b"#!/bin/sh\n" + archive_bytes({"models.json": b"{}"}), "something besides its files"),
        (archive_bytes({"models.json": b"{}"}) + b"\0" * 8, "is no bundle"),
    ],
)
def test_a_hostile_archive_is_refused_in_one_line(check, raw, says):
    code, lines = check(raw)
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert "\x1b" not in lines[0]


def test_a_name_that_is_there_twice_is_refused(check):
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw = zipped(("models.json", b"{}", REGULAR), ("models.json", b"[]", REGULAR))
    code, lines = check(raw)
    assert code == 2
    assert "models.json: is there twice" in lines[0]


def test_files_that_overlap_so_that_few_bytes_become_many_are_refused(check):
    content = b"x" * 1000
    raw = archive_bytes({"models.json": content})
    at = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    head = raw[at:end]
    again = head.replace(b"models.json", b"claims.json")
    count = (2).to_bytes(2, "little")
    tail = raw[end : end + 8] + count + count + (2 * len(head)).to_bytes(4, "little") + raw[end + 16 :]
    code, lines = check(raw[:at] + head + again + tail)
    assert code == 2
    assert "claim more bytes than the archive has" in lines[0] or "is no bundle" in lines[0]


def test_a_size_that_is_a_lie_is_refused(check):
    raw = bytearray(archive_bytes({"models.json": b"{}"}))
    at = raw.index(b"PK\x01\x02")
    raw[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    assert check(bytes(raw))[0] == 2


def test_an_archive_above_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    (tmp_path / "b.zip").write_bytes(bytes(1001))
    with pytest.raises(ConfigError, match="has more than 1,000 bytes"):
        read_archive(tmp_path / "b.zip")
    with pytest.raises(ConfigError, match="must have at most 1,000"):
        archive.write_archive(tmp_path / "c.zip", {"models.json": bytes(1001)})


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    (tmp_path / "b.zip").write_bytes(archive_bytes(dict.fromkeys("abc", b"")))
    with pytest.raises(ConfigError, match="has 3 files; must have at most 2"):
        read_archive(tmp_path / "b.zip")


def crowded(count, *, named):
    """Return an archive of `count` empty files whose end record claims `named`."""
    raw = bytearray(archive_bytes({f"{n:05}": b"" for n in range(count)}))
    raw[-12:-10] = raw[-14:-12] = named.to_bytes(2, "little")
    return bytes(raw)


def with_a_second_end(raw):
    """Return the archive with a ZIP64 end record before its own, which lists the files again."""
    size, start = (int.from_bytes(raw[a : a + 4], "little") for a in (len(raw) - 10, len(raw) - 6))
    at = len(raw) - 22
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 9, 9, size, start)
    where = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    mark = raw[at : at + 8] + bytes(4)  # no files, in a list without bytes, right before the end
    return raw[:at] + end + where + mark + struct.pack("<2LH", 0, at + len(end + where), 0)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (crowded(10_001, named=10_001), "has 10,001 files; must have at most 10,000"),
        (crowded(10_001, named=1), "something besides its files"),
        (with_a_second_end(archive_bytes({f"{n:05}": b"" for n in range(9)})), "something besides"),
    ],
    ids=["as it says", "though it says one", "in an end before the end"],
)
def test_an_archive_of_more_files_than_a_bundle_has_is_refused_before_they_are_listed(
    tmp_path, monkeypatch, raw, says
):
    listed = []
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", lambda *_, **__: listed.append(1))
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(ConfigError, match=says):
        read_archive(tmp_path / "b.zip")
    assert listed == []


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_no_cut_of_an_archive_ends_in_anything_but_one_line(tmp_path, at):
    raw = archive_bytes({"models.json": b"{}", "claims.json": b"[]"})
    for broken in (raw[:at], raw[at:], raw[:at] + b"\xff" + raw[at + 1 :]):
        (tmp_path / "b.zip").write_bytes(broken)
        if broken != raw and at < len(raw):
            with pytest.raises(ConfigError, match=r"b\.zip"):
                read_archive(tmp_path / "b.zip")
