"""The simulation and deployment engines: Flower's own processes, started, watched and stopped.

Both start a SuperLink on loopback and submit the same server app and client app with `flwr run`.
`simulation` plays the clients in Ray workers. `deployment` starts one SuperNode per client, each with its
own cache and its own policy file, which names its records, as on separate machines.

Guarantees: every process started here has ended when `federate_launched` returns or raises, also after a
SIGTERM. After a SIGKILL the processes remain, and their folder is refused until they have ended. Nothing
listens on anything but 127.0.0.1. Not guaranteed: encrypted traffic. For real clients start
`flower-superlink` and `flower-supernode` yourself, with certificates and node keys.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedproxy_secure import errors
from fedproxy_secure.errors import FedProxyError, RoundAborted, RunFolderError
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.server_app import FINAL, INITIAL, JOB, PROXY, ROUNDS, TROUBLE, OnRound
from fedproxy_secure.protect.secure_sum.attempt import ONE_MACHINE_VARIABLE

POLL_S = 0.5
START_S = 60.0  # how long a SuperLink may take to listen
STOP_S = 15.0  # how long a process may take to stop when asked
SUPERLINK = "fedproxy"

SERVER = "fedproxy_secure.flower.server_app"
_APP = """from fedproxy_secure.flower.client_app import app as client
from {server} import app as server

__all__ = ["client", "server"]
"""
_PYPROJECT = """[project]
name = "fedproxy-app"
version = "1.0.0"
description = "FedProxy-Secure's server app and client app"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedproxy-secure"

[tool.flwr.app.components]
serverapp = "fedproxy_app:server"
clientapp = "fedproxy_app:client"

[tool.flwr.app.config]
control = ""
"""


def federate_launched(
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    server: str = SERVER,
) -> ServerState:
    """Run a job on Flower's simulation or deployment engine; logs go to `run_folder/flower`.

    `server` names the module of the server's app. A module other than this project's shows what clients do
    when the server deviates.

    Raises what the server app raised, or `RoundAborted` if Flower itself failed or went silent.
    """
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-")))
        control = run_folder if run_folder is not None else temporary / "control"
        logs = control / "flower"
        logs.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_terminated_like_interrupted())
        lock = stack.enter_context(_alone_in(logs))
        for stale in (FINAL, TROUBLE):
            (control / stale).unlink(missing_ok=True)
        (control / JOB).write_text(job.to_json(), encoding="utf-8")
        (control / PROXY).write_text(str(proxy_folder.resolve()), encoding="utf-8")
        initial.save(control / INITIAL)
        environment = _environment(temporary)
        port = _free_port()
        link = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
        # without a port, Flower would use its fixed ones for fleet and control
        link += ["--port", str(port)]
        if job.federate.engine == "simulation":
            link.append("--simulation")
            environment[ONE_MACHINE_VARIABLE] = "1"
        superlink = stack.enter_context(
            _process("flower-superlink", link, environment, logs / "superlink.log", lock)
        )
        _wait_until_listening(port, superlink, logs / "superlink.log")
        _write_app(temporary, control, port, server)
        if job.federate.engine == "deployment":
            for index in range(len(job.clients)):
                arguments = _supernode(job, index, port, temporary)
                own = {**environment, "FEDPROXY_CACHE": str(temporary / f"cache-{index}")}
                stack.enter_context(
                    _process("flower-supernode", arguments, own, logs / f"supernode-{index}.log", lock)
                )
        submit = ["run", str(temporary / "app"), SUPERLINK, "--stream"]
        if job.federate.engine == "simulation":
            submit += [
                "--federation-config",
                f"num-supernodes={len(job.clients)} client-resources-num-cpus=1",
            ]
        run = stack.enter_context(_process("flwr", submit, environment, logs / "run.log", lock))
        _watch(run, control, logs, job, on_round)
        return ServerState.load(control / FINAL)


def _environment(temporary: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: quiet, offline, isolated, one torch thread each."""
    return {
        **os.environ,
        "FLWR_HOME": str(temporary / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FEDPROXY_CACHE": str(temporary / "cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _write_app(temporary: Path, control: Path, port: int, server: str) -> None:
    app = temporary / "app"
    app.mkdir()
    (app / "fedproxy_app.py").write_text(_APP.format(server=server))
    text = _PYPROJECT.replace('control = ""', f"control = {json.dumps(str(control.resolve()))}")
    (app / "pyproject.toml").write_text(text)
    home = temporary / "flwr"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{SUPERLINK}"\n\n[superlink.{SUPERLINK}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def _supernode(job: FederationJob, index: int, port: int, temporary: Path) -> list[str]:
    """Write client `index`'s policy, and return the arguments of its SuperNode.

    Keys are read where they lie, not copied: beside each key lies the journal of what it has answered.
    """
    policy = temporary / f"client-{index}.policy.yaml"
    policy_for(job, index, seeds=(job.seed,)).write(policy)
    return [
        "--insecure",
        "--superlink",
        f"127.0.0.1:{port}",
        "--port",
        str(_free_port()),
        "--node-config",
        f'policy="{policy}"',
    ]


@contextmanager
def _alone_in(logs: Path) -> Iterator[int]:
    """Lock the folder and yield the lock's descriptor, which processes inherit and hold while they live.

    Raises `RunFolderError` if processes of an earlier call still hold it; only a SIGKILL leaves such.
    """
    with (logs / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{logs}: Flower's processes of an earlier, killed run still write here; end them first"
            ) from None
        yield file.fileno()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into an exception in a `with` block, so that what was started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _process(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds `lock`, in a group that has ended when the `with` block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - Flower's own programs, no shell
            [program, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    try:
        yield process
    finally:
        _signal_group(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_S)
    raise RoundAborted(f"flower-superlink: does not listen on port {port}; see {log}")


def _watch(
    run: subprocess.Popen[bytes],
    control: Path,
    logs: Path,
    job: FederationJob,
    on_round: OnRound | None,
) -> None:
    """Pass on metrics as rounds end, until the server app is done; raise its error, or `RoundAborted`."""
    seen = len(_lines(control / ROUNDS))
    deadline = time.monotonic() + job.federate.timeout_s
    while True:
        finished, ended = (control / FINAL).exists(), run.poll() is not None  # before the lines
        lines = _lines(control / ROUNDS)
        for metrics in lines[seen:]:
            deadline = time.monotonic() + job.federate.timeout_s
            if on_round is not None:
                on_round(metrics)
        seen = max(seen, len(lines))
        if finished:
            return
        if (control / TROUBLE).exists():
            kind, line = json.loads((control / TROUBLE).read_text(encoding="utf-8"))
            error_class: Any = getattr(errors, kind, FedProxyError)
            raise error_class(line)
        if ended:
            raise RoundAborted(f"flwr run: ended with code {run.returncode}; see {logs}/run.log")
        if time.monotonic() > deadline:
            raise RoundAborted(
                f"no round ended in {job.federate.timeout_s:.0f} s (federate.timeout_s); see {logs}"
            )
        time.sleep(POLL_S)


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file that another process writes; none if there is no file."""
    try:
        return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
