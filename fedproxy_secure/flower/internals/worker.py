"""Answer a SuperNode's messages in one long-lived process, in place of a process for each message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedproxy_secure.flower.internals.supernode import sooner
from fedproxy_secure.flower.internals.transport import Ends, ask_own_user_alone
from fedproxy_secure.flower.patience import Patience
from fedproxy_secure.runtime.quoting import quoted

SOON_S, LOOK_S = 0.02, 0.1  # the shortest and the longest sleep before it asks its SuperNode again
AWAY_S = 1.0  # the same while its SuperNode does not run
PART_S = 0.4  # its longest sleep before it asks again for a part that the SuperNode is still fetching
log = logging.getLogger(__name__)


def answer_tasks(
    address: str,
    secret: bytes,
    app: ClientApp,
    node_config: Mapping[str, str | bool],
    *,
    is_own_users: Callable[[Ends, Ends], bool],
) -> None:
    """Answer, in this process and one after another, the messages that a SuperNode has for a client app.

    This takes the place of Flower's SuperExec, which unpacks the app that the SuperLink sent and starts a
    process for each message. Here no app is unpacked: `app` is this installation's own, and what it has
    loaded stays loaded.

    Args:
        address: host and port of the SuperNode's interface for its own processes.
        secret: what the SuperNode was given by `--superexec-auth-secret-file`.
        app: answers the messages.
        node_config: the node's settings, in place of those that the SuperNode sends: whoever answers at
            `address` must not choose the policy by which records are read.
        is_own_users: called with both ends of a connection, the other one first; returns whether the other
            end is this user's. Nothing is sent over any other connection.
    """
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supernode.runtime import run_clientapp

    name = "pull_and_inflate_object_from_tree"
    vars(run_clientapp)[name] = sooner(vars(run_clientapp)[name], least_s=SOON_S, most_s=PART_S)
    authentication = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    runtime = partial(_runtime, address, is_own_users=is_own_users)
    with runtime([version, authentication], tries=1) as supernode:
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        patience = Patience(least_s=SOON_S, most_s=LOOK_S)
        while True:
            try:
                task = supernode.AcquireTask(request)
            except httpx.HTTPError:  # the SuperNode does not run; its supervisor starts it again
                time.sleep(AWAY_S)
                continue
            if task.HasField("task") and task.token:
                try:
                    _answer_task(runtime, task.token, app, node_config)
                except Exception:  # the SuperNode was restarted and does not know the task
                    log.exception("a message was lost: the SuperNode does not take the answer")
                patience.come()
            else:
                time.sleep(patience.pause_s())


def _answer_task(
    runtime: Callable[..., Any], token: str, app: ClientApp, node_config: Mapping[str, str | bool]
) -> None:
    """Take one message from the SuperNode, and return to it the app's answer, or that the app failed."""
    from flwr.app import Error
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    with runtime([version, RuntimeTokenHttpInterceptor(token)], tries=3) as supernode:
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(supernode))
        heartbeat.start()
        try:
            message, context, _, _ = pull_task_input(supernode)
            context.node_config = dict(node_config)
            status, details = SubStatus.COMPLETED, ""
            try:
                reply = app(message=message, context=context)
            except Exception as error:  # the app answers expected errors itself; this is another one
                log.exception("%s: failed", quoted(message.metadata.message_type))
                status, details = SubStatus.FAILED, type(error).__name__
                reply = Message(
                    Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=details), reply_to=message
                )
            push_message(supernode, reply, context)
            push_task_output(supernode, context, status, details)
        finally:
            heartbeat.stop()


@contextmanager
def _runtime(
    address: str, interceptors: list[Any], *, tries: int, is_own_users: Callable[[Ends, Ends], bool]
) -> Iterator[Any]:
    """Open a client of a SuperNode's interface for its own processes; each call gets `tries` tries."""
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    retries = make_simple_http_retry_invoker()
    retries.max_tries = tries
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on loopback
        root_certificates=None,
        interceptors=interceptors,
        retry_invoker=retries,
    )
    attributes: Any = vars(client)
    attributes["_client"] = ask_own_user_alone(attributes["_client"], is_own_users)
    try:
        yield client
    finally:
        client.close()
