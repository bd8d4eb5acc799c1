"""A program that is kept running: started again when it ends, after a pause that grows."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fedproxy_secure.flower.launch.processes import MOST_LOG_BYTES, keep_bounded, process
from fedproxy_secure.runtime.escape import printable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
STEADY_S = 60.0  # a program that lived so long is started again after the first pause
# A SuperNode tells its SuperLink that it stops, and keeps trying if the SuperLink has stopped before it. It
# may be killed then: what either program must keep is on the disk already.
STOP_S = 4.0


class KeptProgram:
    """A Python program that is started again whenever it ends; `look` must be called regularly.

    Args:
        name: the program's name in the lines for `tell`.
        arguments: the interpreter's arguments.
        log: the file for what the program prints; a log that has grown large is moved aside.
        environment: the process' environment.
        lock: a descriptor that the process holds while it lives (`alone_in`).
        tell: called with a line when the program starts and when it ends.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        lock: int,
        tell: Callable[[str], None],
    ) -> None:
        self._name, self._arguments, self._file = name, arguments, log
        self._environment, self._lock, self._tell = environment, lock, tell
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at, self._began, self._pause = 0.0, 0.0, FIRST_PAUSE_S

    def look(self) -> None:
        """Start the process if it does not run and its pause is over; note whether it has ended.

        If the system refuses to start it, for lack of memory or open files, a later call tries again.
        """
        now = time.monotonic()
        keep_bounded(self._file, most=MOST_LOG_BYTES)
        if self._process is None:
            if now >= self._again_at:
                self._try_to_start(now)
        elif (code := self._process.poll()) is not None:
            self.stop()
            # Flower's SuperNode ends with code 0 when its owner's SuperLink has started again
            steady = code == 0 or now - self._began > STEADY_S
            self._pause = FIRST_PAUSE_S if steady else min(2 * self._pause, LONGEST_PAUSE_S)
            self._again_at = now + self._pause
            self._tell(f"{self._name} ended with code {code}: {_last_line(self._file)}")

    def stop(self) -> None:
        """End the process, if it runs, and all processes that it has started."""
        self._running.close()
        self._process = None

    def _try_to_start(self, now: float) -> None:
        try:
            self._start(now)
        except OSError as error:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            self._again_at = now + self._pause
            self._tell(f"{self._name}: {error.strerror or type(error).__name__}; it is tried again")

    def _start(self, now: float) -> None:
        started = process(
            sys.executable, self._arguments, self._environment, self._file, self._lock, stop_s=STOP_S
        )
        self._process, self._began = self._running.enter_context(started), now
        self._tell(f"{self._name} started, process {self._process.pid}; its log: {self._file}")


def _last_line(file: Path) -> str:
    """Return a log's last line about an error, or else its last line: printable, 200 characters at most."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - 4096))
            lines = [line.strip() for line in opened.read().decode(errors="replace").splitlines()]
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    errors = [line for line in lines if re.search("error|failed", line, flags=re.IGNORECASE)]
    return printable(next((line for line in reversed(errors or lines) if line), ""))[:200]
