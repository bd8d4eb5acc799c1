"""Flower's own programs as processes that are watched and always stopped.

Guarantees: a process started by `process` has ended, with all that it started in its group, when the
`with` block is left. What Flower detaches (a SuperLink's executor and its server app) ends by itself within
two minutes. Two callers never share a folder of logs (`alone_in`). Not guaranteed: anything after a SIGKILL
of the caller, unless the program watches its parent itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedproxy_secure.errors import ConfigError, FolderInUse, RoundAborted
from fedproxy_secure.flower.launch.parent import with_parent_id
from fedproxy_secure.runtime.files.locks import locked, waited_for

POLL_S = 0.5
START_S = 180.0  # how long a SuperLink may take to listen; one that ends before is noticed at once
MOST_LOG_BYTES = 2**24
STOP_S = 15.0  # how long a process may take to stop when asked
LOOPBACK_NAMES = ("127.0.0.1", "localhost")
ORPHANS_S = (
    60.0  # how long processes may take to notice that their owner or site was killed (`launch.parent`)
)


def module(name: str, *arguments: str) -> list[str]:
    """Return the interpreter's arguments that run a module and import nothing from the current folder.

    Without `-P`, a file in the current folder would be imported in place of any package of its name.
    """
    return ["-P", "-m", name, *arguments]


def quiet_environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: quiet, offline, one torch thread each.

    `home` is where Flower keeps its settings and the apps that it unpacks.
    """
    return {
        **os.environ,
        **without_proxy_to_loopback(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # despite its name it has an effect on Linux: Ray takes 127.0.0.1 for this machine's address
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
        # by default glibc gives each of some 40 threads its own heap, which keeps its largest size
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def without_proxy_to_loopback() -> dict[str, str]:
    """Return environment variables that keep HTTP clients from sending loopback requests to a proxy.

    httpx takes proxies from the environment and does not exempt loopback. Hosts that the environment
    exempts already stay exempt.
    """
    settings = [os.environ.get(name, "").split(",") for name in ("NO_PROXY", "no_proxy")]
    exempt = [*LOOPBACK_NAMES, *(host.strip() for hosts in settings for host in hosts)]
    names = ",".join(dict.fromkeys(host for host in exempt if host))
    return {"NO_PROXY": names, "no_proxy": names}


@contextmanager
def alone_in(folder: Path, *, wait_s: float = 0.0) -> Iterator[int]:
    """Lock a folder and yield the lock's descriptor, which processes inherit and hold while they live.

    `wait_s`: how long to wait for processes of an earlier call to end.

    Raises `FolderInUse` if processes of an earlier call still hold it, which only a SIGKILL leaves behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if not waited_for(lambda: locked(file.fileno()), wait_s=wait_s, poll_s=POLL_S):
            raise FolderInUse(
                f"{folder}: Flower's processes of an earlier, killed run still write here; end them first"
            )
        yield file.fileno()


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into an exception in a `with` block, so that the processes started there are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, _frame: object) -> None:
        if _held_back is None:
            raise SystemExit(128 + number)
        _held_back.append(number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_held_back: list[int] | None = None  # signals that came while a process was being started


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Delay what `terminated_like_interrupted` raises until the block ends, in the main thread."""
    global _held_back
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held_back = []
    try:
        yield
    finally:
        numbers, _held_back = _held_back, None
    if numbers:
        raise SystemExit(128 + numbers[0])


@contextmanager
def process(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    lock: int,
    *,
    stop_s: float = STOP_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds `lock`; its process group has ended when the `with` block is left.

    It is asked to stop, and killed if it has not after `stop_s` seconds. Its output is appended to `log`,
    which `keep_bounded` may empty meanwhile.
    """
    child: subprocess.Popen[bytes] | None = None
    try:
        with log.open("ab") as output, _undisturbed():  # else a signal here could leave the process running
            child = subprocess.Popen(  # noqa: S603 - Flower's own programs, no shell
                [program, *arguments],
                env=with_parent_id(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        yield child
    finally:
        if child is not None:
            _signal_group(child, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(stop_s)
            _signal_group(child, signal.SIGKILL)
            child.wait()


def keep_bounded(log: Path, *, most: int = MOST_LOG_BYTES) -> None:
    """Move a log's content aside if it has grown large, even while a process appends to the log.

    The content becomes a whole copy, `LOG.1`, in place of the copy before it. Lines that are written during
    the copying are lost. If the copy fails, for lack of space, say, the log is emptied all the same and the
    earlier copy stays: a full disk would stop more than a log. Errors of the system raise nothing; the next
    call tries again.
    """
    part = log.with_name(log.name + ".1.part")
    with suppress(OSError):
        if log.stat().st_size > most:
            with suppress(OSError):
                shutil.copy(log, part)
                os.replace(part, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
            part.unlink(missing_ok=True)


@contextmanager
def bounded_logs(folder: Path) -> Iterator[None]:
    """Keep the logs (`*.log`) of a folder bounded while the `with` block runs, from a thread of its own."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(POLL_S):
            with suppress(OSError):  # failing to list a folder for a moment must not end a run of days
                for log in folder.glob("*.log"):
                    keep_bounded(log)

    thread = threading.Thread(target=look, name="logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _signal_group(started: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(started.pid, number)


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_free(host: str, port: int) -> None:
    """Raise `ConfigError` unless this process may listen on an address and nobody else does."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: cannot be listened on: {error.strerror}; free that port"
        ) from None


def wait_until_listening(port: int, started: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process listens on a loopback port; raise `RoundAborted` if it ends or does not."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and started.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_S)
    raise RoundAborted(f"flower-superlink: does not listen on port {port}; see {log}")
