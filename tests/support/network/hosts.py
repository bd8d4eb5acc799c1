"""A host: a network namespace with one interface, an address and names, in which processes run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.network.commands import system
from tests.support.network.links import Link

INTERFACE = "eth0"


class Host:
    """A machine of the network. Files and process numbers are those of this machine; sockets are its own.

    Args:
        name: what the other hosts call it.
        namespace: its network namespace.
        address: its IPv4 address.
        link: the cable between it and the switch.
    """

    def __init__(self, name: str, namespace: str, address: str, link: Link) -> None:
        self.name, self.namespace, self.address, self.link = name, namespace, address, link
        self._clock = 0.0
        self._started: list[subprocess.Popen[Any]] = []

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a process on this host, in a session of its own; its number is that of the command."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env={**(os.environ if env is None else env), **self._shifted()},
            start_new_session=True,
            **options,
        )
        self._started.append(process)
        entering = b"\0".join([b"ip", b"netns", b"exec", self.namespace.encode()])
        while process.poll() is None and _command_line(process.pid).startswith(entering):
            time.sleep(0.002)
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end, and return what it printed; raises nothing if it fails."""
        process = self.popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Return the command line of each process that runs here, by its number."""
        found = {}
        for pid in system("ip", "netns", "pids", self.namespace).split():
            line = _command_line(int(pid)).replace(b"\0", b" ").decode(errors="replace").strip()
            if line:  # what has ended has none
                found[int(pid)] = line
        return found

    def kill(self, containing: str = "", number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Signal each process of this host whose command line contains a text; return their numbers."""
        chosen = [pid for pid, line in self.processes().items() if containing in line]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return chosen

    def end(self) -> None:
        """End every process of this host, also those that start while this runs."""
        deadline = time.monotonic() + 10
        while self.kill() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self._started:
            process.wait(10)
        self._started.clear()

    def wrong_clock(self, seconds: float) -> None:
        """Let the clock of processes that start here from now on be off by so many seconds; 0: be right.

        The wall clock is shifted, for Python and for the TLS libraries in its processes (libfaketime); time
        that is measured, such as time-outs, is not. Processes that already run keep their clock, and so do
        the file system's times and statically linked programs.
        """
        self._clock = seconds

    def _shifted(self) -> dict[str, str]:
        if not self._clock:
            return {}
        return {
            "LD_PRELOAD": faketime(),
            "FAKETIME": f"{self._clock:+f}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _command_line(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def faketime() -> str:
    """Return where the package libfaketime keeps its library; raises `FileNotFoundError` without it.

    Debian's own libfaketime 0.9.10 lets `time.sleep` of Python 3.11 fail.
    """
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        raise FileNotFoundError("libfaketime: is not installed; pip install libfaketime")
    return str(Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1")
