"""The client's Flower app: it prepares for a job, then trains when asked.

The client decides what a server may ask: the key `policy` in the node's settings names the file with its
policy (`fedproxy_secure.federate.client_policy`). A node without a policy refuses every request. The
exception is a node that is told that one machine plays every party, by the in-process and simulation
engines or by `FEDPROXY_ONE_MACHINE=1` in its environment. It plays client `partition-id` of the job's list,
with the job's settings.

When something fails, the log on the client's machine gets the whole error. A server on another machine gets
less. If the protocol, the settings, or the client's keys and files forbid a request, it gets the error's
line without the client's own paths, or a constant line if another path may be left in it. Every other error
may depend on records, so it gets only one of three constant lines: the privacy budget is spent, records or
messages cannot be used, or the client failed.

torch is imported only where a model is needed, so that a client connects, and answers requests that need no
model, seconds before it trains.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedproxy_secure import wire
from fedproxy_secure.bundle.redaction import line_for_others, places_of_a_client
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import (
    ConfigError,
    DataError,
    FedProxyError,
    NotSetUp,
    PrivacyError,
    ProtocolAborted,
    TrainingError,
)
from fedproxy_secure.federate.client_policy import load_policy
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.monitor.noting import note, noted
from fedproxy_secure.protect.base import ClientRequest, protection_of
from fedproxy_secure.protect.secure_sum import attempt, failures
from fedproxy_secure.proxy_intake import arriving
from fedproxy_secure.proxy_intake import store as proxy_store

if TYPE_CHECKING:
    from fedproxy_secure.federate.client import LocalClient

log = logging.getLogger(__name__)

# message types of later steps, `query.share` and so on
STEPS = ("gram_share", "gram_sketch", "gram_weigh", "share", "mask", "confirm", "unmask")
OTHER_STEP = "step"
HIDDEN = "this client refuses, in a line that may name its files; its own log has the reason"
_KEPT_CLIENTS = 64
Play: TypeAlias = "Callable[[LocalClient], LocalClient]"
_clients: OrderedDict[tuple[str, str, int], LocalClient] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class OwnJob:
    """The server's job as this client accepts it: with its own records, and checked against its own policy.

    Attributes:
        job: the job, with this client's own records, folders and keys.
        index: the client's place in the job's list.
        policy: the hash of the client's policy, 32 bytes; None where one machine plays every party.
    """

    job: FederationJob
    index: int
    policy: bytes | None

    @property
    def name(self) -> str:
        """This client's name."""
        return self.job.clients[self.index].name


def _answers_in_one_line(
    handler: Callable[[Message, Context], RecordDict],
) -> Callable[[Message, Context], Message]:
    """Wrap a handler to answer errors with a failure that quotes no record; see the module's docstring."""
    handler = noted(handler)  # events stay on the client's machine, so they name the real error

    def answer(message: Message, context: Context) -> Message:
        try:
            content = handler(message, context)
        except Exception as error:
            if attempt.plays_everybody(context):
                if not isinstance(error, FedProxyError):
                    raise
                log.warning("%s", error)
                kind, line = type(error).__name__, str(error)
            else:
                log.exception("%s: failed", message.metadata.message_type)
                kind, line = _reply_to_another_machine(error, context)
            content = wire.encode_failure(kind, line)
        return Message(content, reply_to=message)

    return answer


def _reply_to_another_machine(error: Exception, context: Context) -> tuple[str, str]:
    """Return an error's class and line as a server on another machine gets them.

    The line is the error's own only if it depends on no record, and then without paths of this machine.
    """
    if isinstance(error, ProtocolAborted | ConfigError | NotSetUp):
        places = places_of_a_client(str(context.node_config.get("policy", "")))
        return type(error).__name__, line_for_others(str(error), places) or HIDDEN
    if isinstance(error, PrivacyError):  # the exact epsilon follows from the number of records
        return "PrivacyError", "the round would spend more than this client allows (privacy.max_epsilon)"
    if isinstance(error, DataError):
        return "DataError", "this client's records or messages cannot be used; its own log has the reason"
    return "TrainingError", "this client failed; its own log has the reason"


def client_app(play: Play = lambda client: client) -> ClientApp:
    """Return the client app; `play` may replace the client that trains, and by default does not."""
    flower_app = ClientApp()
    flower_app.query("setup")(_answers_in_one_line(setup))
    flower_app.query("part")(_answers_in_one_line(part))
    flower_app.train()(_answers_in_one_line(partial(train, play=play)))
    for step in (*STEPS, OTHER_STEP):
        flower_app.query(step)(_answers_in_one_line(_answers_step(step)))
    return flower_app


def setup(message: Message, context: Context) -> RecordDict:
    """Remember the job; answer whether this client has the proxy, or how many bytes of it."""
    request = wire.decode_setup(message.content)
    own = _checked(request.job_json, context)
    sha256 = own.job.proxy_sha256
    if request.sha256 != sha256:  # all clients of a sum train one proxy: its hash is in what they sign
        raise ProtocolAborted(f"proxy {request.sha256[:12]}: must be {sha256[:12]}, which the job names")
    if own.policy is not None and protection_of(own.job.protect).needs_keys:
        # before the proxy's files are kept or a record is read: a seed is spent on the first proxy named
        attempt.agree(own.job, own.name, own.policy, context)
    folder = _proxy(own)
    # a client may have been killed just after it put the proxy in place; the bytes of a traced copy have
    # another name, and are deleted when two later proxies have come
    if folder is not None:
        arriving.forget(sha256, client=own.name)
    # unreadable records are found before the first round
    job = own.job
    load_task(job.clients[own.index], root=job.data_root, audit=job.audit, seed=job.seed)
    context.state.config_records["job"] = ConfigRecord({"json": request.job_json})
    return _ready(own, folder, copy="" if job.marks is None else None)


def part(message: Message, context: Context) -> RecordDict:
    """Store the next bytes of the proxy that `setup` named; answer how many bytes have arrived."""
    own, received = _own_job(context), wire.decode_part(message.content)
    if received.sha256 != own.job.proxy_sha256:
        raise ProtocolAborted(f"proxy {received.sha256[:12]}: must be {own.job.proxy_sha256[:12]}")
    return _ready(own, arriving.take(received, marks=own.job.marks, client=own.name), copy=received.copy)


def _ready(own: OwnJob, proxy: Path | None, *, copy: str | None) -> RecordDict:
    """Return the answer that says whether the client has the proxy, or how many bytes of it.

    `copy`: which copy of the proxy the server sends, "" for an untraced one; None if not known yet.
    """
    has = 0
    if proxy is None and copy is not None:
        has = arriving.arrived_bytes(own.job.proxy_sha256, client=own.name, copy=copy)
    return wire.encode_ready(wire.Ready(ready=proxy is not None, client=own.name, has=has))


def train(message: Message, context: Context, *, play: Play) -> RecordDict:
    """Train for one round, and answer in the form that the job's protection defines."""
    from fedproxy_secure.flower.recording import watched

    own = _own_job(context)
    job, client = own.job, _client(context)
    folder = _proxy(own)
    assert folder is not None  # `_client` has looked it up
    reporting_client = replace(client, on_failed=partial(_note_failed, job, client.name, context))
    training_client = play(watched(reporting_client, job, own.index, folder))
    return protection_of(job.protect).train(
        _client_request("train", own, message, context, lambda: training_client)
    )


def _note_failed(job: FederationJob, name: str, context: Context, round_number: int, why: str) -> None:
    """Note on the client's side that training failed, because the answer to the server hides it."""
    note("site", "training", round=round_number, outcome="aborted", reason=TrainingError.__name__)
    if attempt.plays_everybody(context):
        failures.note_failed(job, name, round_number, why)


def _answers_step(step: str) -> Callable[[Message, Context], RecordDict]:
    """Return the handler of one later step of a round; other packages' schemes use the type `step`."""

    def answer(message: Message, context: Context) -> RecordDict:
        own = _own_job(context)
        name = wire.step_of(message.content) if step == OTHER_STEP else step
        request = _client_request(name, own, message, context, lambda: _client(context))
        return protection_of(own.job.protect).answer(request)

    return answer


def _client_request(
    step: str, own: OwnJob, message: Message, context: Context, local_client: Callable[[], LocalClient]
) -> ClientRequest:
    return ClientRequest(
        step=step,
        job=own.job,
        name=own.name,
        content=message.content,
        context=context,
        policy=own.policy,
        local_client=local_client,
    )


def _own_job(context: Context) -> OwnJob:
    """Return the server's job as this client accepts it.

    Raises `NotSetUp` before set-up, and `ConfigError` for a node without a policy, or for a job that the
    policy does not allow.
    """
    if "job" not in context.state.config_records:
        raise NotSetUp("setup: must come first; this node was started again")
    return _checked(str(context.state.config_records["job"]["json"]), context)


def _checked(job_json: str, context: Context) -> OwnJob:
    job = wire.read_job(job_json)
    file = context.node_config.get("policy")
    if file is not None:
        policy = load_policy(Path(str(file)), one_machine=attempt.plays_everybody(context))
        return OwnJob(job=policy.own_job(job), index=0, policy=policy.sha256())
    if not attempt.plays_everybody(context):
        raise ConfigError(
            'node-config: must name this client\'s policy, as policy="FILE"; otherwise the server would '
            "decide which records are read and how they are protected"
        )
    index = int(context.node_config.get("partition-id", 0))
    if not 0 <= index < len(job.clients):
        raise DataError(f"partition-id={index}: must be below {len(job.clients)}, the job's clients")
    protect, privacy, fusion = job.protect, job.privacy, job.fusion
    protection_of(protect).check_settings(protect, privacy, fusion, cohort=None)
    return OwnJob(job=job, index=index, policy=None)


def _proxy(own: OwnJob) -> Path | None:
    """Return the folder of the job's proxy (the client's own copy if it is traced), or None if missing."""
    return proxy_store.find(own.job.proxy_sha256, marks=own.job.marks, client=own.name)


def forget_clients() -> None:
    """Drop the clients that this process keeps, and their model; they are built again when needed."""
    from fedproxy_secure.federate.shared_proxy import forget_proxies

    _clients.clear()
    forget_proxies()


def _client(context: Context) -> LocalClient:
    """Return this node's client; the process keeps the last `_KEPT_CLIENTS` that it has built."""
    from fedproxy_secure.federate.build import build_client

    own = _own_job(context)
    sha256 = own.job.proxy_sha256
    key = (sha256, own.job.to_json(), own.index)
    if key not in _clients:
        folder = _proxy(own)
        if folder is None:
            raise DataError(f"proxy {sha256[:12]}: is not here; setup must bring it")
        _clients[key] = build_client(own.job, own.index, folder)
        while len(_clients) > _KEPT_CLIENTS:
            _clients.popitem(last=False)
    return _clients[key]


app = client_app()
