"""A process on a cable: every frame that comes in at one device leaves by the other, later.

    python held_back.py DEVICE DEVICE MILLISECONDS

Frames are held back, not connections: order is kept, nothing is lost, and both ends see each other's
addresses. It prints `holding` when it does, and ends when it is killed. It imports nothing of this project.
"""

import socket
import struct
import sys
import time
from collections import deque
from select import select

EVERY_PROTOCOL = 0x0003
MEMBERSHIP, PROMISCUOUS = 1, 1  # PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC
SOL_PACKET = 263
LONGEST = 65536


def opened(device: str) -> socket.socket:
    """Open a device for whole frames, also those for other machines."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    raw.bind((device, EVERY_PROTOCOL))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    wanted = struct.pack("IHH8s", socket.if_nametoindex(device), PROMISCUOUS, 0, b"")
    raw.setsockopt(SOL_PACKET, MEMBERSHIP, wanted)
    raw.setblocking(False)
    return raw


def hold(one: socket.socket, two: socket.socket, seconds: float) -> None:
    """Carry frames between both devices, without end."""
    others = {one: two, two: one}
    held: deque[tuple[float, socket.socket, bytes]] = deque()
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        for raw in select([one, two], [], [], wait)[0]:
            try:
                frame, (_, _, kind, *_) = raw.recvfrom(LONGEST)
            except OSError:  # the device went down: a cut cable
                continue
            if kind != socket.PACKET_OUTGOING:
                held.append((time.monotonic() + seconds, others[raw], frame))
        while held and held[0][0] <= time.monotonic():
            _, other, frame = held.popleft()
            try:
                other.send(frame)
            except OSError:  # a cut cable, or a full queue: the frame is lost, as it would be
                continue


if __name__ == "__main__":
    ends = opened(sys.argv[1]), opened(sys.argv[2])
    print("holding", flush=True)
    hold(*ends, float(sys.argv[3]) / 1000)
