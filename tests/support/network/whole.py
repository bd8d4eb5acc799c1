"""The whole network: an owner and some sites, each a host with a cable to one switch.

    with Network(sites=5) as network:
        network.owner.popen(["flower-superlink", ...])
        network.sites[0].link.cut()

Hosts reach each other by name and nothing else: there is no way out. All of it is gone at the end, also
after an exception, with every process on it. What a killed test left is removed when the next is made.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.network.capture import captured
from tests.support.network.commands import fresh_name, is_stale, system
from tests.support.network.disks import remove_stale_disks
from tests.support.network.hosts import INTERFACE, Host
from tests.support.network.links import Link, plain

_BRIDGE = "bridge"
_NAMES = Path("/etc/netns")  # where `ip netns exec` finds a host's own /etc/hosts
_SUBNET = ipaddress.ip_network("10.77.0.0/24")


class Network(AbstractContextManager["Network"]):
    """An owner and `sites` sites, called `owner`, `site1`, `site2` and so on.

    Attributes:
        owner: the owner's host.
        sites: the sites' hosts.
    """

    owner: Host
    sites: list[Host]

    def __init__(self, *, sites: int) -> None:
        self._count = sites
        self._stack = ExitStack()
        self._switch = ""

    def __enter__(self) -> Network:
        remove_stale()
        with ExitStack() as stack:
            self._switch = stack.enter_context(_namespace("switch"))
            system("ip", "-n", self._switch, "link", "add", _BRIDGE, "type", "bridge")
            system("ip", "-n", self._switch, "link", "set", _BRIDGE, "up")
            names = ["owner", *(f"site{number}" for number in range(1, self._count + 1))]
            known = {name: str(_SUBNET[number]) for number, name in enumerate(names, start=1)}
            self.owner, *self.sites = [
                stack.enter_context(_host(name, known, self._switch)) for name in names
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def hosts(self) -> list[Host]:
        """The owner, and then the sites."""
        return [self.owner, *self.sites]

    def capture(self, file: Path) -> AbstractContextManager[Path]:
        """Write all that passes the switch to a pcap file, while the `with` block runs; see `captured`."""
        return captured(self._switch, _BRIDGE, file)


@contextmanager
def _namespace(what: str) -> Iterator[str]:
    name = fresh_name(what)
    system("ip", "netns", "add", name)
    try:
        # without IPv6 nothing passes but what is meant to
        system("ip", "netns", "exec", name, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
        system("ip", "netns", "exec", name, "sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
        yield name
    finally:
        _remove(name)


@contextmanager
def _host(name: str, known: dict[str, str], switch: str) -> Iterator[Host]:
    with _namespace(name) as namespace:
        own = _NAMES / namespace
        own.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {other}" for other, address in known.items())]
        (own / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        system(
            *("ip", "-n", switch, "link", "add", name, "type", "veth"),
            *("peer", "name", INTERFACE, "netns", namespace),
        )
        plain(namespace, INTERFACE)
        plain(switch, name)
        system("ip", "-n", switch, "link", "set", name, "master", _BRIDGE)
        system("ip", "-n", switch, "link", "set", name, "up")
        address = f"{known[name]}/{_SUBNET.prefixlen}"
        system("ip", "-n", namespace, "address", "add", address, "dev", INTERFACE)
        for device in ("lo", INTERFACE):
            system("ip", "-n", namespace, "link", "set", device, "up")
        link = Link(namespace=namespace, interface=INTERFACE, switch=switch, port=name, bridge=_BRIDGE)
        host = Host(name, namespace, known[name], link)
        try:
            yield host
        finally:
            link.let_go()
            host.end()


def remove_stale() -> None:
    """Remove networks and disks of tests that were killed, and end the processes that still run on them."""
    for line in system("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if is_stale(name):
            _remove(name)
    if _NAMES.is_dir():
        for folder in _NAMES.iterdir():
            if is_stale(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
    remove_stale_disks()


def _remove(namespace: str) -> None:
    for _ in range(100):  # a process may have started another one meanwhile
        pids = system("ip", "netns", "pids", namespace).split()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.02)
    system("ip", "netns", "delete", namespace)
    shutil.rmtree(_NAMES / namespace, ignore_errors=True)
