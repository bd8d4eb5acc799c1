"""What passes the switch, written to a file while it passes, and looked through afterwards.

`search` looks into the bytes that each TCP connection carried in each direction, put together again, so
that a text is found also where it was cut in two or sent twice.
"""

from __future__ import annotations

import re
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ETHERNET, _TCP, _IPV4 = 14, 6, 0x0800
_HALF, _WHOLE = 1 << 31, 1 << 32
_SYN = 0x02
_SNAPSHOT = 2048  # longer than any frame; a longer one would take memory that the buffer lacks then


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The bytes of one direction of a TCP connection.

    Attributes:
        source: address and port of the sender.
        target: address and port of the receiver.
        pieces: runs of bytes without a gap, in order. More than one: bytes between them did not pass while
            the capture ran.
    """

    source: str
    target: str
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A needle that was found.

    Attributes:
        needle: its name.
        source: who sent it, as address and port.
        target: whom it was sent to.
    """

    needle: str
    source: str
    target: str


@contextmanager
def captured(namespace: str, device: str, file: Path) -> Iterator[Path]:
    """Write every frame that passes a device to a pcap file.

    Raises `OSError` at the end if the kernel dropped frames of the capture: what was not written down
    cannot be searched.
    """
    options = [
        "--immediate-mode",
        "-U",
        "-n",
        "-s",
        str(_SNAPSHOT),
        "-B",
        "65536",
        "-i",
        device,
        "-w",
        str(file),
    ]
    log = file.with_suffix(".log")
    with log.open("wb") as output:
        dump = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "tcpdump", "-Z", "root", *options],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(lambda: b"listening on" in log.read_bytes(), dump, log)
        yield file
        time.sleep(0.2)  # frames on their way through the capture's buffer
    finally:
        dump.terminate()
        dump.wait(10)
    dropped = re.search(rb"(\d+) packets? dropped by kernel", log.read_bytes())
    if dropped is None or int(dropped[1]):
        raise OSError(f"{file}: the capture lacks frames: {log.read_text(errors='replace').strip()}")


def search(file: Path, needles: Mapping[str, bytes]) -> list[Found]:
    """Look for byte strings in every TCP stream of a capture, and in the frames that are not TCP.

    Returns what was found, each needle at most once for each direction of a connection.
    """
    found = []
    for stream in streams(file):
        for name, needle in needles.items():
            if any(needle in piece for piece in stream.pieces):
                found.append(Found(needle=name, source=stream.source, target=stream.target))
    for frame in _frames(file):
        if _segment(frame) is None:
            found += [Found(needle=n, source="?", target="?") for n, v in needles.items() if v in frame]
    return found


def streams(file: Path) -> list[Stream]:
    """Put the TCP connections of a capture together again, each direction by itself, as they appeared."""
    parts: dict[tuple[str, str, int], dict[int, bytes]] = {}
    starts: dict[tuple[str, str], int] = {}  # number of the first byte of the connection that is open now
    for frame in _frames(file):
        segment = _segment(frame)
        if segment is None:
            continue
        ends, number, flags, payload = segment
        if flags & _SYN:
            starts[ends] = (number + 1) % _WHOLE
        start = starts.setdefault(ends, number)
        if payload:
            held = parts.setdefault((*ends, start), {})
            # counted from the start and around 2**32; bytes from before the capture began count below 0
            offset = _after(start, number, near=max(held, default=0))
            if len(payload) > len(held.get(offset, b"")):
                held[offset] = payload
    return [
        Stream(source=source, target=target, pieces=_joined(held))
        for (source, target, _), held in parts.items()
    ]


def longest_frame(file: Path) -> int:
    """Return the length of the longest frame of a capture, in bytes."""
    return max((len(frame) for frame in _frames(file)), default=0)


def _after(start: int, number: int, *, near: int) -> int:
    """Return how many bytes after `start` a 32-bit number lies, as the count that is nearest to `near`."""
    return near + (number - start - near + _HALF) % _WHOLE - _HALF


def _joined(held: Mapping[int, bytes]) -> tuple[bytes, ...]:
    pieces: list[bytearray] = []
    end = None
    for offset in sorted(held):
        payload = held[offset]
        if end is None or offset > end:
            pieces.append(bytearray(payload))
            end = offset + len(payload)
        elif offset + len(payload) > end:
            pieces[-1] += payload[end - offset :]
            end = offset + len(payload)
    return tuple(bytes(piece) for piece in pieces)


def _frames(file: Path) -> Iterator[bytes]:
    """Read a pcap file of this machine's byte order; a frame that was still being written is left out."""
    with file.open("rb") as pcap:
        if len(pcap.read(24)) < 24:
            return
        while len(header := pcap.read(16)) == 16:
            length = struct.unpack("=IIII", header)[2]
            if len(frame := pcap.read(length)) == length:
                yield frame


def _segment(frame: bytes) -> tuple[tuple[str, str], int, int, bytes] | None:
    """Return both ends, sequence number, flags and payload of a frame of TCP over IPv4; None for others."""
    if len(frame) < _ETHERNET + 20 or int.from_bytes(frame[12:14], "big") != _IPV4 or frame[23] != _TCP:
        return None
    packet = frame[_ETHERNET : _ETHERNET + int.from_bytes(frame[16:18], "big")]  # short frames are padded
    head = (packet[0] & 0x0F) * 4
    tcp = packet[head:]
    source_port, target_port, number = struct.unpack("!HHI", tcp[:8])
    source = f"{'.'.join(map(str, packet[12:16]))}:{source_port}"
    target = f"{'.'.join(map(str, packet[16:20]))}:{target_port}"
    return (source, target), number, tcp[13], tcp[(tcp[12] >> 4) * 4 :]


def _wait_for(happened, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"tcpdump: does not listen: {log.read_text(errors='replace').strip()}")
        time.sleep(0.02)
