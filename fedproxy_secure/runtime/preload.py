"""A server that forks processes that have imported torch and transformers, which takes seconds.

`warm_up` starts the server. Processes of `multiprocessing`'s context "forkserver" are forked from it
without that delay. The server has no secret and draws no randomness; randomness comes from named streams or
from the operating system.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def warm_up(modules: Sequence[str]) -> None:
    """Start the server and make it import those of `modules` that exist, without waiting for it.

    The program's main module comes first, because otherwise each process would import it again. Each
    process gets one thread, because threads contending for cores make all processes many times slower.
    """
    for name in THREADS:
        os.environ.setdefault(name, "1")
    forkserver.set_forkserver_preload(["__main__", *modules, "fedproxy_secure.runtime.frozen"])
    forkserver.ensure_running()


def end_with_parent() -> None:
    """Make this worker end when its parent does, so that it never writes beside a resumed run."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
