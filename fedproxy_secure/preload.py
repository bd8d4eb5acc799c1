"""A server of processes that has imported what they need: torch and transformers take seconds to import.

`warm_up` starts it; processes of `multiprocessing`'s context "forkserver" are forked from it, at once. It
holds no secret and draws nothing: randomness comes from named streams or from the operating system.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def warm_up(modules: Sequence[str]) -> None:
    """Start the server and have it import those of `modules` that there are, without waiting for it.

    The program's main module comes first: each process would otherwise import it again. Each process has
    one thread: two that contend for two cores are many times slower than one.
    """
    for name in THREADS:
        os.environ.setdefault(name, "1")
    forkserver.set_forkserver_preload(["__main__", *modules, "fedproxy_secure.frozen"])
    forkserver.ensure_running()


def end_with_parent() -> None:
    """From now on this worker ends when its parent does: it must not write beside a resumed one."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
