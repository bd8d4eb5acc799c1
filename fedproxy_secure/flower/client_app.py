"""The client's Flower app: gets ready for a job, then trains when asked.

What a server may ask is the client's own business: `policy` in the node's settings names the file that says
it (`fedproxy_secure.federate.client_policy`). A node without one answers nothing. Only where one machine
plays everybody (in-process and simulation engines) is client `partition-id` of the job's list played, as
the job says.

What a client says when something fails: its own machine's log has the whole line. To the server of another
machine goes a line that does not quote records; under differential privacy a failure in training gives one
constant reply, whatever the reason.

torch is imported where a model is needed: a deployment starts this app anew for every message, and most
messages of secure aggregation need none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import (
    ConfigError,
    DataError,
    FedProxyError,
    PrivacyError,
    ProtocolAborted,
)
from fedproxy_secure.federate.client_policy import load_policy
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import attempt, masked_client, masked_gram, proxy_store, wire
from fedproxy_secure.flower.masked_terms import agreed_broadcast

if TYPE_CHECKING:
    from fedproxy_secure.federate.client import LocalClient

log = logging.getLogger(__name__)
app = ClientApp()


_KEPT_CLIENTS = 64
Play: TypeAlias = "Callable[[LocalClient], LocalClient]"
_players: dict[str, Play] = {}
_clients: OrderedDict[tuple[str, str, int], LocalClient] = OrderedDict()


@contextmanager
def played_by(players: dict[str, Play]) -> Iterator[None]:
    """Meanwhile, let malicious clients of this process train in their own way, by name."""
    _players.update(players)
    try:
        yield
    finally:
        for name in players:
            _players.pop(name, None)


def _as_played(client: LocalClient) -> LocalClient:
    return _players[client.name](client) if client.name in _players else client


@dataclass(frozen=True, kw_only=True)
class OwnJob:
    """The server's job as this client takes it: its own records in it, checked against its own policy.

    `index`: which of the job's clients this one is. `policy`: the hash of its policy, 32 bytes; None where
    one machine plays everybody.
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
                kind, line = _told_elsewhere(error)
            content = wire.encode_failure(kind, line)
        return Message(content, reply_to=message)

    return answer


def _told_elsewhere(error: Exception) -> tuple[str, str]:
    """What a server on another machine is told of an error: the line only where it rests on no record."""
    if isinstance(error, ProtocolAborted | ConfigError):
        return type(error).__name__, str(error)
    if isinstance(error, PrivacyError):  # the exact epsilon follows from the number of records
        return "PrivacyError", "the round would spend more than this client allows (privacy.max_epsilon)"
    if isinstance(error, DataError):
        return "DataError", "this client's records or messages cannot be used; its own log has the reason"
    return "TrainingError", "this client failed; its own log has the reason"


@app.query("setup")
@_answers_in_one_line
def setup(message: Message, context: Context) -> RecordDict:
    """Remember the job; say whether the proxy is here, taking its files if they came along."""
    asked = wire.decode_setup(message.content)
    own = _checked(asked.job_json, context)
    sha256 = own.job.proxy_sha256
    if asked.sha256 != sha256:  # all clients of a sum train the same: it is in what they sign
        raise ProtocolAborted(f"proxy {asked.sha256[:12]}: must be {sha256[:12]}, which the job names")
    if own.policy is not None and own.job.protect.scheme != "unsafe_plaintext":
        # before its files are kept or a record is read: a seed is spent on the first proxy that is named
        attempt.agree(own.job, own.name, own.policy, context)
    folder = proxy_store.find(sha256)
    if folder is None and asked.files is not None:
        folder = proxy_store.unpack(asked.files, sha256)
    # unreadable records are found before the first round
    load_task(own.job.clients[own.index], root=own.job.data_root, audit=own.job.audit)
    context.state.config_records["job"] = ConfigRecord({"json": asked.job_json})
    return wire.encode_ready(wire.Ready(ready=folder is not None, client=own.name))


@app.train()
@_answers_in_one_line
def train(message: Message, context: Context) -> RecordDict:
    """One round of local training."""
    from fedproxy_secure.flower.recording import watched

    own = _own_job(context)
    job, client = own.job, _client(context)
    folder = proxy_store.find(job.proxy_sha256)
    assert folder is not None  # _client found it
    sizes = client.sizes
    client = _as_played(watched(client, job, own.index, folder))
    sent = (job.protect.scheme, job.granularity, job.protect.weights)
    if job.privacy.unit == "client" and sent != ("masking", "plain", "uniform"):
        raise ConfigError(
            "privacy.unit=client: needs protect.scheme=masking, protect.weights=uniform and a rule that "
            "only adds; all else would be sent without noise"
        )
    if job.protect.scheme != "unsafe_plaintext":
        begin = (
            masked_gram.train_and_say_hello
            if job.protect.weights == "encrypted_gram"
            else masked_client.train_and_advertise
        )
        return begin(client, job, message.content, context, policy=own.policy)
    broadcast = agreed_broadcast(message.content, job, sizes)
    return wire.encode_update(
        client.train(
            round=broadcast.round,
            start=broadcast.adapter,
            conflict=broadcast.conflict,
            pcr_lambda=broadcast.pcr_lambda,
            prox_mu=broadcast.prox_mu,
        )
    )


@app.query("gram_share")
@_answers_in_one_line
def gram_share(message: Message, context: Context) -> RecordDict:
    """Weights `encrypted_gram`, step 2: the leader's key."""
    return masked_gram.share(*_who(context), message.content, context)


@app.query("gram_sketch")
@_answers_in_one_line
def gram_sketch(message: Message, context: Context) -> RecordDict:
    """Weights `encrypted_gram`, step 3."""
    return masked_gram.sketch(*_who(context), message.content, context)


@app.query("gram_weigh")
@_answers_in_one_line
def gram_weigh(message: Message, context: Context) -> RecordDict:
    """Weights `encrypted_gram`, step 4; masking's step 1."""
    return masked_gram.weigh(_client(context), _own_job(context).job, message.content, context)


@app.query("share")
@_answers_in_one_line
def share(message: Message, context: Context) -> RecordDict:
    """Masking, step 2."""
    return masked_client.share(*_who(context), message.content, context)


@app.query("mask")
@_answers_in_one_line
def mask(message: Message, context: Context) -> RecordDict:
    """Masking, step 3."""
    return masked_client.mask(*_who(context), message.content, context)


@app.query("confirm")
@_answers_in_one_line
def confirm(message: Message, context: Context) -> RecordDict:
    """Masking, step 4."""
    return masked_client.confirm(*_who(context), message.content, context)


@app.query("unmask")
@_answers_in_one_line
def unmask(message: Message, context: Context) -> RecordDict:
    """Masking, step 5."""
    return masked_client.unmask(*_who(context), message.content, context)


def _who(context: Context) -> tuple[FederationJob, str]:
    own = _own_job(context)
    return own.job, own.name


def _own_job(context: Context) -> OwnJob:
    """The server's job as this client takes it.

    Raises `ConfigError` for a node without a policy, or a job that its policy does not allow.
    """
    if "job" not in context.state.config_records:
        raise DataError("train: asked before setup")
    return _checked(str(context.state.config_records["job"]["json"]), context)


def _checked(job_json: str, context: Context) -> OwnJob:
    asked = wire.read_job(job_json)
    file = context.node_config.get("policy")
    if file is not None:
        policy = load_policy(Path(str(file)))
        return OwnJob(job=policy.own_job(asked), index=0, policy=policy.sha256())
    if not attempt.plays_everybody(context):
        raise ConfigError(
            'node-config: must name this client\'s policy, as policy="FILE"; without one the server would '
            "choose which records are read and how they are protected"
        )
    index = int(context.node_config.get("partition-id", 0))
    if not 0 <= index < len(asked.clients):
        raise DataError(f"partition-id={index}: must be below {len(asked.clients)}, the clients named")
    return OwnJob(job=asked, index=index, policy=None)


def _client(context: Context) -> LocalClient:
    """This node's client, built once per process."""
    from fedproxy_secure.federate.client import build_client

    own = _own_job(context)
    sha256 = own.job.proxy_sha256
    key = (sha256, own.job.to_json(), own.index)
    if key not in _clients:
        folder = proxy_store.find(sha256)
        if folder is None:
            raise DataError(f"proxy {sha256[:12]}: is not here; setup must bring it")
        _clients[key] = build_client(own.job, own.index, folder)
        while len(_clients) > _KEPT_CLIENTS:
            _clients.popitem(last=False)
    return _clients[key]
