"""Whether a process of somebody else has ended."""

import os
import time


def ends_within(pid: int, seconds: float) -> bool:
    """Wait at most so long for it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().split()[2] == "Z":  # it ended, and whoever inherited it has not looked yet
                return True
        time.sleep(0.05)
    return False
