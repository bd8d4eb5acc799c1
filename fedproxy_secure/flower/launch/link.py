"""A SuperLink with TLS and node keys on this machine, and a federation run over it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.internals.registration import register_nodes
from fedproxy_secure.flower.launch.app import write_app
from fedproxy_secure.flower.launch.control import name_control, watch, write_control
from fedproxy_secure.flower.launch.processes import (
    ORPHANS_S,
    alone_in,
    bounded_logs,
    check_free,
    keep_bounded,
    module,
    process,
    quiet_environment,
    terminated_like_interrupted,
    wait_until_listening,
    without_proxy_to_loopback,
)
from fedproxy_secure.flower.launch.same_user import check_users_are_known
from fedproxy_secure.flower.launch.superlink import ANSWERS_VARIABLE, SLACK_BYTES
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import CONTROL_VARIABLE, OnRound
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.runtime.artifacts import write_bytes

PYTHON_MODULE = "fedproxy_secure.flower.launch.superlink"
_NAME = "fedproxy"
CONTROL, ANSWERS = "control.path", "most-answer-bytes"  # files of a SuperLink's folder
EVERYWHERE = "0.0.0.0"  # noqa: S104 - other machines must reach it; see `launch.superlink`


@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """A running SuperLink.

    Attributes:
        folder: where its logs and settings are.
        address: its address on this machine, host and port.
        root: the PEM file of the authority that signed its certificate.
        lock: the descriptor that processes of the same folder hold (`alone_in`).
    """

    folder: Path
    address: str
    root: Path
    lock: int

    def register(self, keys: Mapping[str, bytes]) -> dict[str, int]:
        """Register nodes by their public keys (OpenSSH form, by name); return node id by name."""
        return register_nodes(self.address, self.root, keys)


@contextmanager
def superlink(
    folder: Path,
    *,
    port: int,
    certificate: Path,
    key: Path,
    authority: Path,
    events: Path,
) -> Iterator[SuperLink]:
    """Run a SuperLink in a `with` block; its logs and settings are in `folder`, its messages in memory.

    Other machines, and other users of this one, can reach only what nodes need (`launch.superlink`). Nodes
    must hold a registered key. A SuperLink that is started again knows no node of the one before; their
    sites start them again.

    Raises `ConfigError` if the port is taken, or where users of this machine cannot be told apart;
    `RoundAborted` if it does not listen; `RunFolderError` if one of an earlier call still runs.
    """
    check_users_are_known()
    with terminated_like_interrupted(), alone_in(folder, wait_s=ORPHANS_S) as lock:
        os.environ.update(without_proxy_to_loopback())  # this process administers the SuperLink
        check_free(EVERYWHERE, port)
        arguments = module(PYTHON_MODULE, "--host", EVERYWHERE, "--port", str(port))
        arguments += ["--enable-supernode-auth"]
        arguments += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        arguments += ["--ssl-ca-certfile", str(authority), "--disable-runtime-dependency-installation"]
        environment = quiet_environment(folder / "flwr")
        environment["FEDPROXY_EVENTS"] = str(events.resolve())
        environment[CONTROL_VARIABLE] = str((folder / CONTROL).resolve())
        environment[ANSWERS_VARIABLE] = str((folder / ANSWERS).resolve())
        (folder / ANSWERS).unlink(missing_ok=True)
        # a header of a request must not say that it comes from this machine; see `launch.superlink`
        environment["FORWARDED_ALLOW_IPS"] = "127.0.0.1"
        environment.pop("FLWR_DATABASE", None)  # messages stay in memory
        log = folder / "superlink.log"
        keep_bounded(log)
        with bounded_logs(folder), process(sys.executable, arguments, environment, log, lock) as started:
            wait_until_listening(port, started, log)
            home = folder / "flwr"
            home.mkdir(exist_ok=True)
            address, root = f"127.0.0.1:{port}", authority.resolve()
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\naddress = "{address}"\n'
                f"root-certificates = {json.dumps(str(root))}\n"
            )
            yield SuperLink(folder=folder, address=address, root=root, lock=lock)


def federate_over(
    link: SuperLink,
    registered: Registered,
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path,
    on_round: OnRound | None = None,
    tell: Callable[[str], None] | None = None,
) -> ServerState:
    """Run a job over a SuperLink with the nodes that are registered there.

    `tell` is called with a line when a wait lasts long (`watch`).

    Raises what the server app raised, or `RoundAborted` if Flower itself failed or went silent.
    """
    write_control(run_folder, job, proxy_folder, initial, registered=registered)
    write_app(link.folder / "app")
    name_control(link.folder / CONTROL, run_folder)
    write_bytes(link.folder / ANSWERS, str(_most_answer_bytes(job, initial)).encode())
    submit = ["run", str(link.folder / "app"), _NAME, "--stream"]
    environment = quiet_environment(link.folder / "flwr")
    with process("flwr", submit, environment, link.folder / "run.log", link.lock) as run:
        return watch(run, run_folder, link.folder, on_round, tell)


def _most_answer_bytes(job: FederationJob, initial: ServerState) -> int:
    """Return how many bytes of answers the SuperLink may store for one node: twice a round's, and slack."""
    sizes = [len(initial.adapter)] if initial.sizes is None else initial.sizes.tolist()
    return 2 * protection_of(job.protect).upload_bytes(job, sizes) + SLACK_BYTES
