"""Commands of the system that need root, and names that say which process made what.

Everything that outlives a process (namespaces, mounts) is named after the process that made it, so that
what a killed test left behind is told from what a test beside this one uses.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

PREFIX = "fedproxy"
# of Debian's packages iproute2, nftables, ethtool, tcpdump, procps
NEEDED = ("ip", "tc", "nft", "ethtool", "tcpdump", "sysctl")
_COUNT = itertools.count()


def system(*command: str, standard_input: str | None = None) -> str:
    """Run a command to its end, and return what it printed; raises `OSError` with what it said if not."""
    ended = subprocess.run(command, input=standard_input, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise OSError(f"{' '.join(command)}: ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


def missing() -> str | None:
    """Return why this machine cannot hold such a network, in words for a skipped test; None if it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    probe = fresh_name("probe")
    try:
        system("ip", "netns", "add", probe)
        system("ip", "netns", "delete", probe)
    except OSError as error:
        return f"needs network namespaces: {error}"
    return None


def fresh_name(what: str) -> str:
    """Return a name that no other call of this or another process gets: PREFIX-pid-start-number-what."""
    return f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}-{next(_COUNT)}-{what}"


def is_stale(name: str) -> bool:
    """Whether `fresh_name` made this name in a process that has ended."""
    parts = name.split("-")
    if len(parts) < 5 or parts[0] != PREFIX or not parts[1].isdigit():
        return False
    return _started(int(parts[1])) != parts[2]


def _started(pid: int) -> str:
    """Return when the process started, in ticks since boot; empty if there is none.

    The system gives a process's number to another one some day, but not with the same start.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]
