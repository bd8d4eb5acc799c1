"""Connections are put together again from frames in any order, sent twice, with numbers that start anew."""

import struct

from tests.support.network.capture import search, streams

CLIENT, SERVER = (bytes([10, 0, 0, 1]), 4000), (bytes([10, 0, 0, 2]), 7000)
SYN, ACK = 0x02, 0x10


def frame(number: int, payload: bytes, *, flags: int = ACK, source=CLIENT, target=SERVER) -> bytes:
    """A frame of TCP over IPv4, padded as short frames are."""
    tcp = struct.pack("!HHIIBBHHH", source[1], target[1], number % 2**32, 0, 5 << 4, flags, 0, 0, 0)
    length = 20 + len(tcp) + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 6, 0, source[0], target[0])
    return (bytes(12) + b"\x08\x00" + ip + tcp + payload).ljust(60, b"\0")


def pcap(file, *frames: bytes):
    head = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    file.write_bytes(head + b"".join(struct.pack("=IIII", 0, 0, len(f), len(f)) + f for f in frames))
    return file


def pieces(file) -> list[tuple[bytes, ...]]:
    return [stream.pieces for stream in streams(file)]


def test_segments_in_order_are_one_piece(tmp_path):
    file = pcap(tmp_path / "c", frame(99, b"", flags=SYN), frame(100, b"hello "), frame(106, b"world"))
    assert pieces(file) == [(b"hello world",)]


def test_segments_out_of_order_and_sent_twice_are_put_in_order(tmp_path):
    frames = [frame(106, b"world"), frame(100, b"hello "), frame(100, b"hello wor"), frame(111, b"!")]
    file = pcap(tmp_path / "c", frame(99, b"", flags=SYN), *frames)
    assert pieces(file) == [(b"hello world!",)]


def test_what_did_not_pass_splits_a_stream_and_nothing_is_found_across_the_gap(tmp_path):
    file = pcap(tmp_path / "c", frame(99, b"", flags=SYN), frame(100, b"hello "), frame(107, b"orld"))
    assert pieces(file) == [(b"hello ", b"orld")]
    assert search(file, {"across": b"hello orld"}) == []


def test_sequence_numbers_wrap_around(tmp_path):
    start = 2**32 - 3
    frames = [frame(start + 6, b"world"), frame(start, b"hello ")]
    file = pcap(tmp_path / "c", frame(start - 1, b"", flags=SYN), *frames)
    assert pieces(file) == [(b"hello world",)]


def test_a_connection_that_began_before_the_capture_is_put_together_too(tmp_path):
    file = pcap(tmp_path / "c", frame(106, b"world"), frame(100, b"hello "))
    assert pieces(file) == [(b"hello world",)]


def test_both_directions_and_a_later_connection_between_the_same_ends_are_apart(tmp_path):
    back = {"source": SERVER, "target": CLIENT}
    frames = [frame(99, b"", flags=SYN), frame(100, b"one"), frame(5, b"", flags=SYN, **back)]
    frames += [frame(6, b"two", **back), frame(7000, b"", flags=SYN), frame(7001, b"three")]
    assert pieces(pcap(tmp_path / "c", *frames)) == [(b"one",), (b"two",), (b"three",)]


def test_a_needle_is_found_where_it_was_cut_in_two_and_in_other_frames(tmp_path):
    other = bytes(12) + b"\x08\x06" + b"a needle in a frame of another kind"
    file = pcap(tmp_path / "c", frame(100, b"a nee"), other, frame(105, b"dle"))
    found = search(file, {"needle": b"a needle"})
    assert [(f.source, f.target) for f in found] == [("10.0.0.1:4000", "10.0.0.2:7000"), ("?", "?")]
