"""How each disturbance is done to a running federation, and undone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.network.deployed import SITES, Deployed, wait_for
from tests.network.schedule import BEFORE_ROUNDS, Plan
from tests.support.network.disks import Disk
from tests.support.network.hosts import Host
from tests.support.network.whole import Network

HELD_S = 5.0  # how long a cable is cut, a disk is full
AWAY_S = 2.0  # how long a killed host is away
OFF_S = 3600.0  # how wrong a clock is
STOPPING_S = 60.0


@dataclass(kw_only=True)
class Running:
    """A federation that runs on a network: its processes by the name of the party, and what they say.

    `disk` is the small disk that the target's folder lies on, where one is to be filled.
    """

    network: Network
    deployed: Deployed
    disk: Disk | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        """The host of the owner or of a site."""
        return self.network.owner if name == "owner" else self.network.sites[SITES.index(name)]

    def log(self, name: str) -> Path:
        """The file of what a party's command said."""
        return self.deployed.folder / f"{name}.out"

    def start(self, name: str) -> None:
        """Start the owner's run or a site's node."""
        if name == "owner":
            self.processes[name] = self.deployed.start_owner(self.network.owner, log=self.log(name))
        else:
            self.processes[name] = self.deployed.start_site(self.host(name), name, log=self.log(name))

    def start_missing_sites(self) -> None:
        """Start the nodes that do not run."""
        for name in SITES:
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name)

    def kill(self, name: str) -> None:
        """Kill all processes of a party at once, as a power cut would."""
        self.host(name).end()

    def stop_sites(self) -> list[str]:
        """Tell all nodes to stop; return the names of those that did not in time, and had to be killed."""
        for name in SITES:
            if name in self.processes:
                self.processes[name].terminate()
        stuck = []
        for name in SITES:
            if name in self.processes:
                try:
                    self.processes[name].wait(STOPPING_S)
                except subprocess.TimeoutExpired:
                    stuck.append(name)
                wait = time.monotonic() + 5
                while self.host(name).processes() and time.monotonic() < wait:
                    time.sleep(0.1)
                if self.host(name).processes() and name not in stuck:
                    stuck.append(name)
                self.kill(name)
        return stuck


def reached(running: Running, plan: Plan) -> Callable[[], bool]:
    """Return a function that tells whether the target has been asked for the plan's step."""
    log = running.deployed.site(SITES[plan.target]) / "logs" / "supernode.log"
    kind = "train" if plan.step == "train" else f"query.{plan.step}"
    early = plan.step in BEFORE_ROUNDS
    asked = f"Receiving: {kind}" if early else f"ROUND round {plan.round}, {kind}]"

    def has() -> bool:
        with suppress(FileNotFoundError):
            return asked.encode() in log.read_bytes()
        return False

    return has


def disturb(running: Running, plan: Plan) -> None:  # noqa: C901 - a case for each kind
    """Do what the plan says, and undo it after its time; cables stay as bad as the plan makes them."""
    site, owner = SITES[plan.target], running.network.owner
    host = running.host(site)
    match plan.kind:
        case "a site's cable is cut for 5 s":
            _cut(host)
        case "the owner's cable is cut for 5 s":
            _cut(owner)
        case "a site's cable carries 2 Mbit/s":
            host.link.rate(2)
        case "all cables lose 5 % of the frames":
            for each in running.network.hosts:
                each.link.loss(0.05)
        case "a site's cable takes 100 ms":
            host.link.delay(100)
        case "the SuperLink is killed":
            _kill(owner, "flower.launch.superlink")
        case "the server app is killed":
            _kill(owner, "serverapp")
        case "the owner's command is killed":
            running.processes["owner"].kill()
        case "all of the owner's processes are killed":
            running.kill("owner")
        case "a SuperNode is killed":
            _kill(host, "flower.launch.supernode")
        case "a site's worker is killed":
            _kill(host, "flower.launch.worker")
        case "all of a site's processes are killed":
            _restart(running, site)
        case "a site's disk is full for 5 s" | "the owner's disk is full for 5 s":
            assert running.disk is not None
            running.disk.fill()
            time.sleep(HELD_S)
            running.disk.free()
        case "a site starts again with a clock that is an hour off":
            host.wrong_clock(OFF_S if plan.ahead else -OFF_S)
            _restart(running, site)
            time.sleep(20)
            host.wrong_clock(0)
            _restart(running, site)


def undo(running: Running) -> None:
    """Make all cables and clocks good again, and start the sites that do not run."""
    for host in running.network.hosts:
        host.link.clear()
        host.wrong_clock(0)
    if running.disk is not None:
        running.disk.free()
    running.start_missing_sites()


def _cut(host: Host) -> None:
    host.link.cut()
    time.sleep(HELD_S)
    host.link.restore()


def _kill(host: Host, what: str) -> None:
    wait_for(lambda: host.kill(what), seconds=30, what=f"{host.name}: {what} runs")


def _restart(running: Running, site: str) -> None:
    running.kill(site)
    time.sleep(AWAY_S)
    running.start(site)
