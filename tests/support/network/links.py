"""The cable between a host and the switch: it can be cut, slowed, made to lose frames and to delay them.

Rate and loss are the kernel's: a token bucket (`tc tbf`) and a random drop where frames come in (nftables).
The kernels of build machines often lack `netem`, so delay is a process of ours on the cable, which holds
whole frames back; connections still go from host to host, with their own addresses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.network.commands import system

_HOLDER = Path(__file__).with_name("held_back.py")
_BURST = "32kb"
_QUEUE = "300ms"  # how much a slow cable's queue holds, as time


@dataclass(frozen=True, kw_only=True)
class Passed:
    """How many bytes of frames have passed a cable, in each direction, since it was laid."""

    to_host: int
    from_host: int


class Link:
    """One host's cable. Every setting holds until it is changed, and in both directions alike.

    Args:
        namespace: the host's network namespace, whose end is called `interface`.
        switch: the switch's namespace, whose end, a port of `bridge`, is called `port`.
    """

    def __init__(self, *, namespace: str, interface: str, switch: str, port: str, bridge: str) -> None:
        self._namespace, self._interface = namespace, interface
        self._switch, self._port, self._bridge = switch, port, bridge
        self._loss = 0.0
        self._holder: subprocess.Popen[bytes] | None = None

    def cut(self) -> None:
        """Take the cable's carrier away: nothing passes, and neither end is told; connections stay open."""
        system("ip", "-n", self._switch, "link", "set", self._port, "down")

    def restore(self) -> None:
        """Give the carrier back."""
        system("ip", "-n", self._switch, "link", "set", self._port, "up")

    def rate(self, mbit: float | None) -> None:
        """Let at most so many megabits a second pass in each direction; None: as fast as it goes."""
        for namespace, device in ((self._namespace, self._interface), (self._switch, self._port)):
            if mbit is None:
                system("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "pfifo")
            else:
                bucket = ("rate", f"{round(mbit * 1000)}kbit", "burst", _BURST, "latency", _QUEUE)
                system("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *bucket)

    def loss(self, share: float) -> None:
        """Lose this share of the frames, at random, in each direction; from 0 to 1."""
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}: must be from 0 to 1")
        self._loss = share
        self._drop()

    def delay(self, milliseconds: float) -> None:
        """Hold every frame back so long, in each direction: a round trip takes twice that. 0: no delay."""
        self.let_go()
        if milliseconds > 0:
            self._hold(milliseconds)
        self._drop()

    def clear(self) -> None:
        """Make it a good cable again."""
        self.rate(None)
        self.delay(0)
        self.loss(0)
        self.restore()

    def passed(self) -> Passed:
        """Return how many bytes have passed."""
        text = system("ip", "-n", self._switch, "-j", "-s", "link", "show", "dev", self._port)
        counts = json.loads(text)[0]["stats64"]
        return Passed(to_host=counts["tx"]["bytes"], from_host=counts["rx"]["bytes"])

    @property
    def _inner(self) -> str:
        """The device by which the host's frames reach the bridge."""
        return self._port if self._holder is None else f"{self._port}-in"

    def _drop(self) -> None:
        for namespace, device in ((self._namespace, self._interface), (self._switch, self._inner)):
            table = f"netdev loss_{self._port}"
            rules = f"table {table}\ndelete table {table}\n"
            if self._loss:
                hook = f'type filter hook ingress device "{device}" priority 0'
                drop = f"numgen random mod 100000 < {round(self._loss * 100_000)} drop"
                rules += f"table {table} {{\n chain lost {{\n {hook};\n {drop}\n }}\n}}\n"
            system("ip", "netns", "exec", namespace, "nft", "-f", "-", standard_input=rules)

    def _hold(self, milliseconds: float) -> None:
        """Put a process between port and bridge: port - process - far end - near end - bridge."""
        near, far = f"{self._port}-in", f"{self._port}-out"
        inside = ("ip", "-n", self._switch, "link")
        system(*inside, "add", near, "type", "veth", "peer", "name", far)
        for device in (near, far):
            plain(self._switch, device)
            system(*inside, "set", device, "up")
        system(*inside, "set", self._port, "nomaster")
        arguments = [sys.executable, str(_HOLDER), self._port, far, str(milliseconds)]
        holder = subprocess.Popen(
            ["ip", "netns", "exec", self._switch, *arguments],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._holder = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != b"holding\n":
            raise OSError(f"{_HOLDER.name}: ended with {holder.wait()}")
        system(*inside, "set", near, "master", self._bridge)

    def let_go(self) -> None:
        """End the process that holds frames back, if there is one."""
        if self._holder is None:
            return
        self._holder.send_signal(signal.SIGKILL)
        self._holder.communicate()
        self._holder = None
        system("ip", "-n", self._switch, "link", "delete", f"{self._port}-in")
        system("ip", "-n", self._switch, "link", "set", self._port, "master", self._bridge)


def plain(namespace: str, device: str) -> None:
    """Make a device send frames of the size and with the check sums that a real cable would carry.

    Without this the kernel hands frames of up to 64 KB from one end to the other, and a share of lost
    frames would be a share of something else.
    """
    off = [word for feature in ("tx", "tso", "gso", "gro") for word in (feature, "off")]
    quiet = {**os.environ, "LC_ALL": "C"}
    command = ["ip", "netns", "exec", namespace, "ethtool", "-K", device, *off]
    subprocess.run(command, check=True, capture_output=True, env=quiet)
