"""End this process when the process that started it has ended, whatever ended it."""

from __future__ import annotations

import os
import signal
import threading
import time

POLL_S = 1.0


def end_with_parent() -> None:
    """Send this process SIGTERM when its parent changes; a thread checks once a second."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
