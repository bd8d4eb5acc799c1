"""The simulation and deployment engines: Flower's own processes, started, watched and stopped.

Both start a SuperLink on loopback and submit the same server app and client app with `flwr run`.
`simulation` plays the clients in Ray workers. `deployment` starts a SuperNode and a worker per client, with
a cache and a policy file of their own, as on separate machines; the policy names the client's records.

Guarantees: every process started here has ended when `federate_launched` returns or raises, also after a
SIGTERM. After a SIGKILL, processes may remain, and their folder is refused until they have ended. Nothing
listens on anything but 127.0.0.1. The SuperLink and the SuperNodes answer only this user's processes where
the system tells users apart (Linux with inet_diag); elsewhere they log a warning.
Ray lets nobody into its cluster who does not know the run's secret. Not guaranteed: encrypted traffic.
For clients on machines of their own there is `fedproxy-secure deploy`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.launch.app import SERVER, write_app
from fedproxy_secure.flower.launch.control import name_control, watch, write_control
from fedproxy_secure.flower.launch.processes import (
    alone_in,
    bounded_logs,
    free_port,
    module,
    process,
    quiet_environment,
    terminated_like_interrupted,
    wait_until_listening,
)
from fedproxy_secure.flower.server_app import CONTROL_VARIABLE, OnRound
from fedproxy_secure.protect.secure_sum.attempt import ONE_MACHINE_VARIABLE
from fedproxy_secure.runtime.artifacts import write_bytes

SUPERLINK = "fedproxy"
LINK = "fedproxy_secure.flower.launch.local_superlink"
NODE, WORKER = "fedproxy_secure.flower.launch.local_supernode", "fedproxy_secure.flower.launch.worker"


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

    `server` names the module of the server app. Tests name another one, to show what clients do when the
    server deviates.

    Raises what the server app raised, or `RoundAborted` if Flower itself failed or went silent.
    """
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-")))
        control = run_folder if run_folder is not None else temporary / "control"
        logs = control / "flower"
        stack.enter_context(terminated_like_interrupted())
        lock = stack.enter_context(alone_in(logs))
        write_control(control, job, proxy_folder, initial)
        environment = quiet_environment(temporary / "flwr")
        environment["FEDPROXY_CACHE"] = str(temporary / "cache")
        environment[CONTROL_VARIABLE] = str(temporary / "control.path")
        name_control(temporary / "control.path", control)
        port = free_port()
        link = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
        # without a port, Flower would use its fixed ones for fleet and control
        link += ["--port", str(port)]
        if job.federate.engine == "simulation":
            link.append("--simulation")
            environment[ONE_MACHINE_VARIABLE] = "1"
            environment |= _token_for_ray(temporary / "ray.token")
        stack.enter_context(bounded_logs(logs))
        superlink = stack.enter_context(
            process(sys.executable, module(LINK, *link), environment, logs / "superlink.log", lock)
        )
        wait_until_listening(port, superlink, logs / "superlink.log")
        write_app(temporary / "app", server)
        _write_connection(temporary / "flwr", port)
        if job.federate.engine == "deployment":
            for index in range(len(job.clients)):
                node_environment = {**environment, "FEDPROXY_CACHE": str(temporary / f"cache-{index}")}
                for name, arguments in _node(job, index, port, temporary).items():
                    file = logs / f"{name}-{index}.log"
                    stack.enter_context(process(sys.executable, arguments, node_environment, file, lock))
        submit = ["run", str(temporary / "app"), SUPERLINK, "--stream"]
        if job.federate.engine == "simulation":
            submit += [
                "--federation-config",
                f"num-supernodes={len(job.clients)} client-resources-num-cpus=1",
            ]
        run = stack.enter_context(process("flwr", submit, environment, logs / "run.log", lock))
        return watch(run, control, logs, on_round)


def _token_for_ray(file: Path) -> dict[str, str]:
    """Write a fresh secret to a file; return the variables that make Ray demand it of everybody."""
    write_bytes(file, os.urandom(32).hex().encode(), private=True)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


def _write_connection(home: Path, port: int) -> None:
    """Write the SuperLink's address into the settings of the command `flwr`."""
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{SUPERLINK}"\n\n[superlink.{SUPERLINK}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def _node(job: FederationJob, index: int, port: int, temporary: Path) -> dict[str, list[str]]:
    """Write client `index`'s policy; return the arguments of its SuperNode and of its worker, by name.

    Keys are used in place, not copied, because beside each key lies the journal of its client's answers.
    """
    policy, secret = temporary / f"client-{index}.policy.yaml", temporary / f"client-{index}.secret"
    policy_for(job, index, seeds=(job.seed,)).write(policy)
    write_bytes(secret, os.urandom(32), private=True)
    own_port = free_port()
    node = module(NODE, "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own_port))
    node += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    worker = module(WORKER, f"127.0.0.1:{own_port}", str(secret), str(policy))
    return {"supernode": node, "worker": worker}
