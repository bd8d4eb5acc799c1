"""How each disturbance is done to a running federation, and undone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.network.deployed import SITES, Deployed, wait_for
from tests.network.schedule import BEFORE_ROUNDS, STEPS, Plan
from tests.support.network.disks import Disk
from tests.support.network.hosts import Host
from tests.support.network.whole import Network

HELD_S = 5.0  # how long a cable is cut, a disk is full
AWAY_S = 2.0  # how long a killed host is away
OFF_S = 3600.0  # how wrong a clock is
STOPPING_S = 60.0
KIND_OF = {step: "train" if step == "train" else f"query.{step}" for step in STEPS}  # of message, by step


@dataclass(kw_only=True)
class Running:
    """A federation that runs on a network: its processes by the name of the party, and what they say.

    `disks` are the small disks on which the folders of parties lie whose disk is to be filled.
    """

    network: Network
    deployed: Deployed
    disks: Mapping[str, Disk] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _said_before: dict[str, int] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        """The host of the owner or of a site."""
        return self.network.owner if name == "owner" else self.network.sites[SITES.index(name)]

    def log(self, name: str) -> Path:
        """The file of what a party's command said."""
        return self.deployed.folder / f"{name}.out"

    def said(self, name: str) -> str:
        """What a party's command has said since it was started."""
        with self.log(name).open("rb") as file:
            file.seek(self._said_before[name])
            return file.read().decode(errors="replace")

    def start(self, name: str) -> None:
        """Start the owner's run or a site's node."""
        log = self.log(name)
        self._said_before[name] = log.stat().st_size if log.exists() else 0
        if name == "owner":
            self.processes[name] = self.deployed.start_owner(self.network.owner, log=log)
        else:
            self.processes[name] = self.deployed.start_site(self.host(name), name, log=log)

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


def reached(running: Running, plan: Plan) -> Callable[[], str | None]:
    """Return a function that returns the plan's step once the target is asked for it, from now on.

    For a step before the rounds it returns "train" once that is asked for: the step will not come any more.
    """
    log = running.deployed.site(SITES[plan.target]) / "logs" / "supernode.log"
    begin = log.stat().st_size if log.exists() else 0
    steps = (plan.step, "train") if plan.step in BEFORE_ROUNDS else (plan.step,)
    messages = {step: b"Receiving: %s message" % KIND_OF[step].encode() for step in steps}

    def which() -> str | None:
        with suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(begin)
            said = file.read()
            return next((step for step, message in messages.items() if message in said), None)
        return None

    return which


def disturb(running: Running, plan: Plan) -> None:  # noqa: C901 - a case for each kind
    """Do what the plan says, and undo it after its time; bad cables stay bad until `undo`."""
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
            disk = running.disks["owner" if "owner" in plan.kind else site]
            disk.fill()
            time.sleep(HELD_S)
            disk.free()
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
    for disk in running.disks.values():
        disk.free()
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
