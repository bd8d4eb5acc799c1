"""Start the small programs of `talk.py` on hosts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.network.hosts import Host

_PROGRAM = Path(__file__).with_name("talk.py")


def talk(*words: object) -> list[str]:
    """Return the command that runs one of the programs of `talk.py`."""
    return [sys.executable, str(_PROGRAM), *map(str, words)]


@contextmanager
def listening(host: Host, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that listens, from when it does; it is killed at the end of the block."""
    with host.popen(talk(*words), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()
