"""A SuperNode that checks an app before it takes it, and polls for messages more often than Flower's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from fedproxy_secure.flower.internals.log_lines import log_printable_lines_alone
from fedproxy_secure.flower.internals.transport import (
    MOST_ANSWER_BYTES,
    ByteBudget,
    counted_by,
    hold_clients_to_plain_answers,
)
from fedproxy_secure.flower.patience import pause_s

IDLE_S = 3.0  # how long Flower's worker sleeps when there is no message
SOON_S, LOOK_S = 0.05, 0.4  # the shortest and the longest sleep of a deployed node instead
PART_S = 2.0  # its longest sleep before it asks again for a missing part of a message
MOST_MESSAGE_BYTES = MOST_ANSWER_BYTES  # of all parts of a message together
PATIENT_S = 60.0  # after so much sleep without a message it polls as rarely as Flower does


class AppRefused(Exception):
    """Raised by a check of `start_supernode` to drop the message that brought the app."""


@dataclass(frozen=True, kw_only=True)
class OfferedApp:
    """An app as a SuperLink offers it: what it says about the run, and the bytes once they were sent."""

    fab_id: str
    version: str
    sha256: str
    kind: str
    content: bytes | None


def start_supernode(check: Callable[[OfferedApp], None], guard: Callable[[Any], Any]) -> None:
    """Run `flower-supernode` with this process' arguments and a check of every app that it is offered.

    Args:
        check: called with what the SuperLink says of a run, and again with the app's bytes. If it raises
            `AppRefused`, Flower drops the message that needed the app and goes on.
        guard: wraps the ASGI app that serves the node's own processes on loopback.
    """
    from flwr.supernode import main as served
    from flwr.supernode import start_client_internal as worker
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.fleet_http_connection import http_request_response

    log_printable_lines_alone()
    hold_clients_to_plain_answers()
    create_app = served.create_app
    vars(served)["create_app"] = lambda *arguments, **named: guard(create_app(*arguments, **named))
    vars(worker)["http_request_response"] = checked_connection(http_request_response, check)
    # Flower polls for messages every three seconds and for answers twice a second; masking has five steps
    vars(worker)["time"] = SimpleNamespace(sleep=Impatient(time.sleep).sleep)
    # a message may be handed out before its last part is there; Flower would ask for that a second later
    pull = sooner(vars(worker)["pull_objects"], least_s=SOON_S, most_s=PART_S)
    vars(worker)["pull_objects"] = bounded(pull, MOST_MESSAGE_BYTES)
    flower_supernode()


def sooner(pull: Callable[..., Any], *, least_s: float, most_s: float) -> Callable[..., Any]:
    """Return Flower's function that pulls a message's parts, with shorter sleeps while one is missing.

    Each sleep is twice as long as the last, from `least_s` to `most_s`. Flower's `max_time` bounds the
    wait, not a number of tries, which short sleeps would use up while a slow line still carries the part.
    """
    return partial(pull, initial_backoff=least_s, backoff_cap=most_s, max_tries_per_object=None)


def bounded(pull: Callable[..., Any], most_bytes: int) -> Callable[..., Any]:
    """Return Flower's function that pulls a message's parts, with a bound on all of them together.

    Flower drops a message that is longer, says so in its log, and goes on.
    """

    def pull_bounded(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **named: Any) -> Any:
        budget = ByteBudget(most_bytes)

        def pull_part(object_id: str) -> bytes:
            with counted_by(budget):
                return pull_object_fn(object_id)

        return pull(object_ids, pull_part, **named)

    return pull_bounded


class Impatient:
    """A `sleep` that is short while messages come, and as long as requested after `PATIENT_S` without any.

    Flower's worker sleeps `IDLE_S` when there is no message, and for less while it waits for its own client
    app's answer. After an answer, the next request of a round mostly comes soon, so the first polls follow
    each other closely. Each costs the SuperLink two checks of signatures, so they become rarer.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep, self._for_message, self._waited_s = sleep, True, 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep a third of the time waited, from `SOON_S` to `LOOK_S`, or `seconds` after `PATIENT_S`."""
        for_message = seconds >= IDLE_S
        if for_message != self._for_message:  # a message came, or its answer has been sent
            self._for_message, self._waited_s = for_message, 0.0
        patient = for_message and self._waited_s > PATIENT_S
        duration_s = seconds if patient else pause_s(self._waited_s, least_s=SOON_S, most_s=LOOK_S)
        self._waited_s += duration_s
        self._sleep(duration_s)


def checked_connection(
    connect: Callable[..., Any], check: Callable[[OfferedApp], None]
) -> Callable[..., Any]:
    """Wrap a SuperNode's connection to its SuperLink with the check of apps of `start_supernode`."""
    from flwr.supercore.run import RunNotRunningException

    def checked(app: OfferedApp) -> None:
        try:
            check(app)
        except AppRefused:
            raise RunNotRunningException from None

    @contextmanager
    def connection(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as opened:
            node_id, receive, send, get_run, get_fab, *other_calls = opened
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

            yield node_id, receive, send, checked_run, checked_fab, *other_calls

    return connection


def _offered(run: Any, content: bytes | None) -> OfferedApp:
    return OfferedApp(
        fab_id=run.fab_id,
        version=run.fab_version,
        sha256=run.fab_hash,
        kind=run.primary_task_type,
        content=content,
    )
