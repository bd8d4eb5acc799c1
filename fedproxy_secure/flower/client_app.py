"""The client's Flower app: it prepares for a job, then trains when asked.

The client decides what a server may ask: the key `policy` in the node's settings names the file that says
it (`fedproxy_secure.federate.client_policy`). A node without a policy answers nothing. The exception is a
node that is told that one machine plays every party: by the in-process and simulation engines, or by
`FEDPROXY_ONE_MACHINE=1` in its environment. It plays client `partition-id` of the job's list, as the job
says.

When something fails, the log of the client's own machine gets the whole error. A server on another machine
gets less. What the protocol, the settings or the client's keys and files forbid is said, with the client's
own paths taken out, or not at all if the line may name another path. Of everything else, which may rest on
records, it gets the kind alone, as one of three constant lines: privacy is spent, records or messages
cannot be used, or anything else.

torch is imported only where a model is needed, so that a client is there, and has answered what needs no
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
    """The server's job as this client takes it: with its own records, and checked against its own policy.

    `index`: the client's place in the job's list. `policy`: the hash of the client's policy, 32 bytes; None
    where one machine plays everybody.
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
    """Turn errors into a failure reply that quotes no record; see the module's docstring."""
    handler = noted(handler)  # events are the site's own: they say what really failed

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
    """Return an error's class and line for a server elsewhere.

    The line is the error's own only if it rests on no record, and without paths of this machine.
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
    """Return the app. What trains is what `play` makes of a client: another one, or itself by default."""
    made = ClientApp()
    made.query("setup")(_answers_in_one_line(setup))
    made.query("part")(_answers_in_one_line(part))
    made.train()(_answers_in_one_line(partial(train, play=play)))
    for step in (*STEPS, OTHER_STEP):
        made.query(step)(_answers_in_one_line(_answers_step(step)))
    return made


def setup(message: Message, context: Context) -> RecordDict:
    """Remember the job and answer whether the proxy is here, or how much of it."""
    asked = wire.decode_setup(message.content)
    own = _checked(asked.job_json, context)
    sha256 = own.job.proxy_sha256
    if asked.sha256 != sha256:  # all clients of a sum train one proxy: its hash is in what they sign
        raise ProtocolAborted(f"proxy {asked.sha256[:12]}: must be {sha256[:12]}, which the job names")
    if own.policy is not None and protection_of(own.job.protect).needs_keys:
        # before the proxy's files are kept or a record is read: a seed is spent on the first proxy named
        attempt.agree(own.job, own.name, own.policy, context)
    folder = _proxy(own)
    # a client may have been killed when it had just put the proxy in place; what came of a traced copy has
    # another name, and goes when two later proxies have come
    if folder is not None:
        arriving.forget(sha256, client=own.name)
    # unreadable records are found before the first round
    job = own.job
    load_task(job.clients[own.index], root=job.data_root, audit=job.audit, seed=job.seed)
    context.state.config_records["job"] = ConfigRecord({"json": asked.job_json})
    return _ready(own, folder, copy="" if job.marks is None else None)


def part(message: Message, context: Context) -> RecordDict:
    """Store the next bytes of the proxy that `setup` named; answer how many bytes have arrived."""
    own, came = _own_job(context), wire.decode_part(message.content)
    if came.sha256 != own.job.proxy_sha256:
        raise ProtocolAborted(f"proxy {came.sha256[:12]}: must be {own.job.proxy_sha256[:12]}")
    return _ready(own, arriving.take(came, marks=own.job.marks, client=own.name), copy=came.copy)


def _ready(own: OwnJob, proxy: Path | None, *, copy: str | None) -> RecordDict:
    """Return the answer to a server that sends that copy of the proxy; None: it is not known which."""
    has = 0
    if proxy is None and copy is not None:
        has = arriving.arrived_bytes(own.job.proxy_sha256, client=own.name, copy=copy)
    return wire.encode_ready(wire.Ready(ready=proxy is not None, client=own.name, has=has))


def train(message: Message, context: Context, *, play: Play) -> RecordDict:
    """Train for one round, and answer as the job's protection says."""
    from fedproxy_secure.flower.recording import watched

    own = _own_job(context)
    job, client = own.job, _client(context)
    folder = _proxy(own)
    assert folder is not None  # `_client` has looked it up
    telling = replace(client, on_failed=partial(_note_failed, job, client.name, context))
    played = play(watched(telling, job, own.index, folder))
    return protection_of(job.protect).train(_asked("train", own, message, context, lambda: played))


def _note_failed(job: FederationJob, name: str, context: Context, round_number: int, why: str) -> None:
    """Tell this client's side that training failed, where the answer to the server hides it."""
    note("site", "training", round=round_number, outcome="aborted", reason=TrainingError.__name__)
    if attempt.plays_everybody(context):
        failures.note_failed(job, name, round_number, why)


def _answers_step(step: str) -> Callable[[Message, Context], RecordDict]:
    """Return the handler of one later step of a round; other packages' schemes use the type `step`."""

    def answer(message: Message, context: Context) -> RecordDict:
        own = _own_job(context)
        name = wire.step_of(message.content) if step == OTHER_STEP else step
        asked = _asked(name, own, message, context, lambda: _client(context))
        return protection_of(own.job.protect).answer(asked)

    return answer


def _asked(
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
    """Return the server's job as this client takes it.

    Raises `ConfigError` for a node without a policy, or a job that its policy does not allow.
    """
    if "job" not in context.state.config_records:
        raise NotSetUp("setup: must come first; this node was started again")
    return _checked(str(context.state.config_records["job"]["json"]), context)


def _checked(job_json: str, context: Context) -> OwnJob:
    asked = wire.read_job(job_json)
    file = context.node_config.get("policy")
    if file is not None:
        policy = load_policy(Path(str(file)), one_machine=attempt.plays_everybody(context))
        return OwnJob(job=policy.own_job(asked), index=0, policy=policy.sha256())
    if not attempt.plays_everybody(context):
        raise ConfigError(
            'node-config: must name this client\'s policy, as policy="FILE"; otherwise the server would '
            "decide which records are read and how they are protected"
        )
    index = int(context.node_config.get("partition-id", 0))
    if not 0 <= index < len(asked.clients):
        raise DataError(f"partition-id={index}: must be below {len(asked.clients)}, the job's clients")
    protect, privacy, fusion = asked.protect, asked.privacy, asked.fusion
    protection_of(protect).check_settings(protect, privacy, fusion, cohort=None)
    return OwnJob(job=asked, index=index, policy=None)


def _proxy(own: OwnJob) -> Path | None:
    """Return where this client has the job's proxy (its own copy, if that is traced), or None."""
    return proxy_store.find(own.job.proxy_sha256, marks=own.job.marks, client=own.name)


def forget_clients() -> None:
    """Let go of the clients that this process keeps, and of their model; they are built again if asked."""
    from fedproxy_secure.federate.shared_proxy import forget_proxies

    _clients.clear()
    forget_proxies()


def _client(context: Context) -> LocalClient:
    """Return this node's client, which is built once per process."""
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
