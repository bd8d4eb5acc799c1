"""A federation of an owner and four sites, deployed on a network of hosts by the commands that people type.

`Deployed.prepare` makes the folders once (init, join, approve, kit, accept); `Deployed.copied` copies them,
so that every run starts from the same keys and kits and from journals in which nothing is written yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.network.hosts import Host
from tests.support.network.whole import Network

ROOT = Path(__file__).parents[2]
PORT = 9092
STATE = Path("run/seed-0/federation/state.safetensors")  # below the owner's folder
SITES = ("clinic", "bank", "insurer", "council")
CONFIG: dict[str, Any] = {
    "name": "network",
    "seeds": [0],
    "data": {
        "clients": [{"name": name, "task": name, "train_records": 24, "test_records": 8} for name in SITES]
    },
    "local": {"steps": 2, "learning_rate": 3.0e-3},
    "federate": {"rounds": 2, "timeout_s": 120.0},
    "protect": {"scheme": "masking"},
}
_PROGRAM = (sys.executable, "-m", "fedproxy_secure")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "NO_COLOR": "1",
    "COLUMNS": "200",
}


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The folders of a federation: `owner` and one for each site, by its name."""

    folder: Path

    @property
    def owner(self) -> Path:
        """The owner's folder."""
        return self.folder / "owner"

    @property
    def state(self) -> Path:
        """The server's last state, which is the result of the rounds."""
        return self.owner / STATE

    def site(self, name: str) -> Path:
        """The folder of a site."""
        return self.folder / name

    @classmethod
    def prepare(cls, network: Network, folder: Path, config: Mapping[str, Any] = CONFIG) -> Deployed:
        """Make all folders, with the commands that owner and sites type, each on its own host."""
        folder.mkdir(parents=True)
        made = cls(folder=folder)
        (folder / "job.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        address = f"owner:{PORT}"
        deploy(network.owner, "init", folder / "job.yaml", "--address", address, "--out", made.owner)
        requests: list[object] = []
        for host, name in zip(network.sites, SITES, strict=True):
            said = deploy(host, "join", "--name", name, "--out", made.site(name))
            fingerprint = re.search(r"[0-9a-f]{4}(?:-[0-9a-f]{4})+", said)
            assert fingerprint is not None, said
            requests += [made.site(name) / f"{name}.request.json", "--fingerprint", fingerprint[0]]
        deploy(network.owner, "approve", made.owner, *requests)
        deploy(network.owner, "kit", made.owner)
        key = re.search(r"\b[0-9a-f]{64}\b", (made.owner / "card.txt").read_text(encoding="utf-8"))
        assert key is not None
        for host, name in zip(network.sites, SITES, strict=True):
            kit = made.owner / "kits" / f"{name}.kit.json"
            deploy(host, "accept", made.site(name), kit, "--owner", key[0])
        return made

    def copied(self, folder: Path) -> Deployed:
        """Copy the folders, for a run of its own."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Deployed(folder=folder)

    def start_site(self, host: Host, name: str, *, log: Path) -> subprocess.Popen[bytes]:
        """Start a site's node in the background; what it says goes to the end of a file."""
        with log.open("ab") as output:
            return host.popen(
                [*_PROGRAM, "deploy", "start", str(self.site(name))],
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def start_owner(self, host: Host, *, log: Path, wait_s: float = 60) -> subprocess.Popen[bytes]:
        """Start the owner's run in the background; what it says goes to the end of a file."""
        with log.open("ab") as output:
            return host.popen(
                [*_PROGRAM, "deploy", "run", str(self.owner), "--wait", str(wait_s)],
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )


def deploy(host: Host, *words: object, code: int = 0) -> str:
    """Run `fedproxy-secure deploy` with these words on a host, and return all that it said.

    Raises `AssertionError` if it ends with another code.
    """
    ended = host.run([*_PROGRAM, "deploy", *map(str, words)], env=ENVIRONMENT, timeout=120)
    said = ended.stdout + ended.stderr
    assert ended.returncode == code, (
        f"deploy {' '.join(map(str, words))}: ended with {ended.returncode}: {said}"
    )
    return said


def wait_for(happened, *, seconds: float, what: str) -> None:
    """Wait until something has happened; raises `TimeoutError` if it does not in so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: did not happen in {seconds:.0f} s")
        time.sleep(0.05)
