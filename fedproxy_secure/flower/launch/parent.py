"""End this process when the process that started it has ended, for whatever reason."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

POLL_S = 1.0
VARIABLE = "FEDPROXY_STARTED_BY"  # the id of the process that started this one


def with_parent_id(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a process that this one starts, with this process' id added."""
    return {**environment, VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Send this process SIGTERM once its parent is another process than the one that started it.

    A thread checks that at once, and then every second. The environment has the starter's id
    (`with_parent_id`), because the starter may have ended before this is called.
    """
    parent = int(os.environ.pop(VARIABLE, "") or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
