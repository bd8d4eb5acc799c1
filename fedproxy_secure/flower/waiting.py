"""What a server app waits for, and which clients it left out, in lines for the person who runs it.

waits.json      in the control folder, while a server app waits: for what, for whom, since when, until when

Names come from the owner's own list, or are node ids. Text that clients wrote is already bounded and
printable (`flower.asking`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import WAITS
from fedproxy_secure.runtime.progress import duration
from fedproxy_secure.runtime.quoting import one_line

log = logging.getLogger(__name__)
NOTED_EVERY_S = 2.0  # a wait that is over sooner is not noted at all
MOST_NAMED = 8
MOST_REASON = 160  # characters of one reason in a line of several


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A wait that is under way.

    Attributes:
        what: what is waited for, such as `round 1, query.mask`.
        names: the clients that are waited for.
        since, until: when the wait began, and when it is given up; seconds since the epoch.
    """

    what: str
    names: tuple[str, ...]
    since: float
    until: float

    def save(self, folder: Path) -> None:
        """Write this wait into a control folder, whole or not at all, in place of an earlier one."""
        write_bytes(folder / WAITS, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, folder: Path) -> Wait | None:
        """Return the wait noted in a control folder; None if there is none, or it cannot be read now."""
        try:
            raw = json.loads((folder / WAITS).read_bytes())
        except OSError:
            return None
        return cls(**{**raw, "names": tuple(raw["names"])})

    def sentence(self, now: float) -> str:
        """Return this wait as one line, at the time `now` (seconds since the epoch).

        >>> Wait(what="setup", names=("bank",), since=0, until=120).sentence(30)
        'has waited 30 s for bank (setup), and waits at most 90 s more'
        """
        waited, left = (duration(max(0.0, s)) for s in (now - self.since, self.until - now))
        return f"has waited {waited} for {listed(self.names)} ({self.what}), and waits at most {left} more"


class WaitNotes:
    """Writes waits into a folder, at most one every `every_s` seconds; without a folder it writes none."""

    def __init__(self, folder: Path | None, *, every_s: float = NOTED_EVERY_S) -> None:
        self._folder, self._every_s, self._noted = folder, every_s, time.monotonic()

    def note(self, what: str, names: Sequence[str], *, began: float, timeout_s: float) -> None:
        """Note a wait for these clients, from `began` (monotonic time) on and for at most `timeout_s`."""
        now = time.monotonic()
        if self._folder is None or min(now - began, now - self._noted) < self._every_s:
            return
        self._noted, since = now, time.time() - (now - began)
        wait = Wait(what=what, names=tuple(sorted(names)), since=since, until=since + timeout_s)
        try:
            wait.save(self._folder)
        except RunFolderError as error:  # the note is only for people; failing to write it ends no run
            log.warning("a wait is not noted: %s", error)

    def over(self) -> None:
        """Note that nothing is waited for any more."""
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / WAITS).unlink(missing_ok=True)


def listed(names: Sequence[str]) -> str:
    """Return names as one text, separated by commas; from the ninth on they are only counted.

    >>> listed(["bank", "clinic"])
    'bank, clinic'
    """
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def with_reasons(line: str, left_out: Mapping[str, str]) -> str:
    """Return an error's line, followed by the clients that were left out, each with the reason.

    >>> with_reasons("1 client answered: must be >= 2", {"bank": "did not answer in 60 s"})
    '1 client answered: must be >= 2; left out: bank (did not answer in 60 s)'
    """
    if not left_out:
        return line
    reasons = [f"{name} ({one_line(why, MOST_REASON)})" for name, why in sorted(left_out.items())]
    return f"{line}; left out: {listed(reasons)}"
