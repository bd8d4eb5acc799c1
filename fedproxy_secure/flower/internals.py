"""Every use that this project makes of Flower beyond Flower's public interface.

Flower gives a message its id when it is pushed, and takes the sender of a new message from the task that
is running. The in-process grid (`in_process`) has to do both itself. A deployment's SuperLink gets a
middleware (`launch.superlink`), its SuperNodes get a check of the app (`launch.supernode`). `HOLDS_FOR`
lists the versions of Flower that this was tried with; `tests/unit/test_flower_internals.py` tries the
installed version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

HOLDS_FOR = ("1.41.0",)
IDLE_S = 3.0  # how long Flower's worker sleeps when there is no message
LOOK_S = 0.4  # how often a deployed node looks for messages instead
PATIENT_S = 60.0  # after so long without a message it looks as rarely as Flower does
log = logging.getLogger(__name__)


class AppRefused(Exception):
    """What a check of `start_supernode` raises: the message that brought this app is dropped."""


@dataclass(frozen=True, kw_only=True)
class OfferedApp:
    """An app as a SuperLink offers it: what it says of the run, and the bytes once they were sent."""

    fab_id: str
    version: str
    sha256: str
    kind: str
    content: bytes | None


def act_as_server() -> None:
    """Mark new messages of this process as the server's: node 1 of run 1."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def give_id(message: Message) -> str:
    """Give a message a new id, as a SuperLink does when it is pushed, and return the id."""
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message.metadata.message_id


def pack_app(files: Mapping[str, bytes]) -> bytes:
    """Return an app's files as `flwr run` packs them: the same bytes for the same files."""
    from flwr.cli.build import build_fab_from_files

    return build_fab_from_files(files)[0]


def start_superlink(middleware: Any) -> None:
    """Run `flower-superlink` with this process' arguments and an ASGI middleware in front of everything."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    extensions.get_middleware = lambda: (Middleware(middleware),)
    flower_superlink()


def register_nodes(address: str, root: Path, keys: Mapping[str, bytes]) -> dict[str, int]:
    """Register nodes at a SuperLink of this machine; return node id by name.

    Args:
        address: host and port.
        root: the PEM file of the authority that signed the SuperLink's certificate.
        keys: by name, a node's public key on a NIST curve, as OpenSSH writes it.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.proto.control_pb2 import RegisterNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    node_ids = {}
    with _control(address, root) as control:
        for name, key in keys.items():
            public = load_ssh_public_key(key)
            assert isinstance(public, EllipticCurvePublicKey)
            request = RegisterNodeRequest(public_key=public_key_to_bytes(public), name=name)
            node_ids[name] = int(control.RegisterNode(request).node_id)
    return node_ids


def unregister_node(address: str, root: Path, node_id: int) -> None:
    """Take a node's registration back: the SuperLink answers it no more."""
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    with _control(address, root) as control:
        control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def online_nodes(address: str, root: Path) -> set[int]:
    """Return the ids of the nodes that the SuperLink has heard of lately."""
    from flwr.proto.control_pb2 import ListNodesRequest

    with _control(address, root) as control:
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
    return {int(node.node_id) for node in nodes if node.status == "online"}


@contextmanager
def _control(address: str, root: Path) -> Iterator[Any]:
    """Open the interface by which a SuperLink is administered."""
    from flwr.cli.typing import SuperLinkConnection
    from flwr.cli.utils import init_http_client_from_connection

    connection = SuperLinkConnection(
        name="fedproxy", address=address, root_certificates=str(root.resolve()), insecure=False
    )
    client = init_http_client_from_connection(connection)
    try:
        yield client
    finally:
        client.close()


def start_supernode(check: Callable[[OfferedApp], None]) -> None:
    """Run `flower-supernode` with this process' arguments and a check of every app that it is offered.

    `check` is called with what the SuperLink says of a run, and again with the app's bytes. If it raises
    `AppRefused`, Flower drops the message that needed the app and goes on.
    """
    from flwr.supernode import start_client_internal as worker
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.fleet_http_connection import http_request_response

    vars(worker)["http_request_response"] = checked_connection(http_request_response, check)
    # Flower looks for messages every three seconds; a round of masking has five steps
    vars(worker)["time"] = SimpleNamespace(sleep=Impatient(time.sleep).sleep)
    flower_supernode()


def answer_tasks(address: str, secret: bytes, app: ClientApp) -> None:
    """Answer, in this process and one after another, the messages that a SuperNode has for a client app.

    This takes the place of Flower's SuperExec, which unpacks the app that the SuperLink sent and starts a
    process for each message. Here no app is unpacked: `app` is this installation's own, and what it has
    loaded stays loaded.

    Args:
        address: host and port of the SuperNode's interface for its own processes.
        secret: what the SuperNode was given by `--superexec-auth-secret-file`.
        app: answers the messages.
    """
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor

    signs = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    with _runtime(address, [RuntimeVersionHttpInterceptor(component_name="SuperExec"), signs]) as supernode:
        asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        while True:
            task = supernode.AcquireTask(asked)
            if task.HasField("task") and task.token:
                try:
                    _answer_task(address, task.token, app)
                except Exception:  # the SuperNode has started again and does not know the task
                    log.exception("a message was lost: the SuperNode does not take the answer")
            else:
                time.sleep(LOOK_S / 4)


def _answer_task(address: str, token: str, app: ClientApp) -> None:
    """Take one message from the SuperNode and give it the app's answer, or that the app failed."""
    from flwr.app import Error
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    with _runtime(address, [version, RuntimeTokenHttpInterceptor(token)]) as supernode:
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(supernode))
        heartbeat.start()
        try:
            message, context, _, _ = pull_task_input(supernode)
            status, details = SubStatus.COMPLETED, ""
            try:
                reply = app(message=message, context=context)
            except Exception as error:  # an answer of the app names its own errors; this one has none
                log.exception("%s: failed", message.metadata.message_type)
                status, details = SubStatus.FAILED, type(error).__name__
                reply = Message(
                    Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=details), reply_to=message
                )
            push_message(supernode, reply, context)
            push_task_output(supernode, context, status, details)
        finally:
            heartbeat.stop()


@contextmanager
def _runtime(address: str, interceptors: list[Any]) -> Iterator[Any]:
    """Open the interface that a SuperNode has for its own processes."""
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on loopback
        root_certificates=None,
        interceptors=interceptors,
        retry_invoker=make_simple_http_retry_invoker(),
    )
    try:
        yield client
    finally:
        client.close()


class Impatient:
    """A `sleep` that is short while messages come, and as long as asked after a minute without any.

    Flower's worker sleeps `IDLE_S` when there is no message, and for less while it waits for an answer.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep, self._idle_s = sleep, 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep at most `LOOK_S`, or as long as asked if nothing has come for `PATIENT_S`."""
        if seconds < IDLE_S:
            self._idle_s = 0.0
        taken = seconds if self._idle_s > PATIENT_S else min(seconds, LOOK_S)
        self._idle_s += taken
        self._sleep(taken)


def checked_connection(
    connect: Callable[..., Any], check: Callable[[OfferedApp], None]
) -> Callable[..., Any]:
    """Return a SuperNode's connection to its SuperLink with the check of `start_supernode` in it."""
    from flwr.supercore.run import RunNotRunningException

    def checked(app: OfferedApp) -> None:
        try:
            check(app)
        except AppRefused:
            raise RunNotRunningException from None

    @contextmanager
    def connection(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as opened:
            node_id, receive, send, get_run, get_fab, *others = opened
            runs: dict[int, Any] = {}

            def checked_run(run_id: int) -> Any:
                runs[run_id] = get_run(run_id)
                checked(_offered(runs[run_id], None))
                return runs[run_id]

            def checked_fab(fab_hash: str, run_id: int) -> Any:
                fab = get_fab(fab_hash, run_id)
                if fab.hash_str != runs[run_id].fab_hash:
                    raise RunNotRunningException
                checked(_offered(runs[run_id], fab.content))
                return fab

            yield node_id, receive, send, checked_run, checked_fab, *others

    return connection


def _offered(run: Any, content: bytes | None) -> OfferedApp:
    return OfferedApp(
        fab_id=run.fab_id,
        version=run.fab_version,
        sha256=run.fab_hash,
        kind=run.primary_task_type,
        content=content,
    )
