"""The client's Flower app: gets ready for a job, then trains when asked.

A client's records are its own business: with `config` in the node's settings it reads them from that
file, and the server's job says only how to train. Without it (in-process and simulation engines, where
one machine plays everybody) client `partition-id` of the job's list is played.

torch is imported where a model is needed: a deployment starts this app anew for every message, and most
messages of secure aggregation need none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import BaseModel

from fedproxy_secure.config import load_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import ConfigError, DataError, FedProxyError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import masked_client, masked_gram, proxy_store, wire

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


def _answers_in_one_line(
    handler: Callable[[Message, Context], RecordDict],
) -> Callable[[Message, Context], Message]:
    """Turn errors raised on purpose into a failure reply; others reach Flower as they are."""

    def answer(message: Message, context: Context) -> Message:
        try:
            content = handler(message, context)
        except FedProxyError as error:
            log.warning("%s", error)
            content = wire.encode_failure(type(error).__name__, str(error))
        return Message(content, reply_to=message)

    return answer


@app.query("setup")
@_answers_in_one_line
def setup(message: Message, context: Context) -> RecordDict:
    """Remember the job; say whether the proxy is here, taking its files if they came along."""
    job_record = message.content.config_records["job"]
    sha256 = str(job_record["sha256"])
    folder = proxy_store.find(sha256)
    files = message.content.config_records.get("files")
    if folder is None and files is not None:
        folder = proxy_store.unpack(files, sha256)
    context.state.config_records["job"] = ConfigRecord({"json": str(job_record["json"]), "sha256": sha256})
    job, index = _own_job(context)
    if job.proxy_sha256 != sha256:  # all clients of a sum train the same: it is in what they sign
        raise ProtocolAborted(f"proxy {sha256[:12]}: must be {job.proxy_sha256[:12]}, which the job names")
    # unreadable records are found before the first round
    load_task(job.clients[index], root=job.data_root, audit=job.audit)
    ready, name = folder is not None, job.clients[index].name
    return RecordDict({"setup": ConfigRecord({"ready": ready, "client": name})})


@app.train()
@_answers_in_one_line
def train(message: Message, context: Context) -> RecordDict:
    """One round of local training."""
    from fedproxy_secure.flower.recording import watched

    job, index = _own_job(context)
    client = _client(context)
    folder = proxy_store.find(str(context.state.config_records["job"]["sha256"]))
    assert folder is not None  # _client found it
    client = _as_played(watched(client, job, index, folder))
    if job.privacy.unit == "client" and (job.protect.scheme, job.granularity) != ("masking", "plain"):
        raise ConfigError("privacy.unit=client: needs protect.scheme=masking and a rule that only adds")
    if job.protect.scheme != "unsafe_plaintext":
        if job.protect.weights == "encrypted_gram":
            return masked_gram.train_and_say_hello(client, job, message.content, context)
        return masked_client.train_and_advertise(client, job, message.content, context)
    broadcast = wire.decode_broadcast(message.content)
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
    client, (job, _) = _client(context), _own_job(context)
    return masked_gram.weigh(client, job, message.content, context)


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
    job, index = _own_job(context)
    return job, job.clients[index].name


def _own_job(context: Context) -> tuple[FederationJob, int]:
    """The server's job with this client's own records in it, and which of its clients this one is."""
    if "job" not in context.state.config_records:
        raise DataError("train: asked before setup")
    job = FederationJob.from_json(str(context.state.config_records["job"]["json"]))
    index = int(context.node_config.get("partition-id", 0))
    own = context.node_config.get("config")
    if own is not None:
        mine = load_config(Path(str(own)))
        _check_same("protect", asked=job.protect, own=mine.protect, but="keys")
        _check_same("privacy", asked=job.privacy, own=mine.privacy, but="ledger")
        job = replace(
            job,
            clients=mine.data.clients,
            data_root=mine.data.root,
            protect=mine.protect,
            privacy=mine.privacy,
            audit=mine.audit,  # what is written about a client's records is the client's to say
        )
    if not 0 <= index < len(job.clients):
        raise DataError(f"partition-id={index}: must be below {len(job.clients)}, the clients named")
    return job, index


def _check_same(section: str, *, asked: BaseModel, own: BaseModel, but: str) -> None:
    """Raise `ConfigError` unless the server asks for the protection that this client's settings demand."""
    for name in sorted(set(type(own).model_fields) - {but}):
        theirs, mine = getattr(asked, name), getattr(own, name)
        if theirs != mine:
            raise ConfigError(
                f"{section}.{name}={theirs!r} asked by the server: must be {mine!r} as set here"
            )


def _client(context: Context) -> LocalClient:
    """This node's client, built once a process."""
    from fedproxy_secure.federate.client import build_client

    job, index = _own_job(context)
    sha256 = str(context.state.config_records["job"]["sha256"])
    key = (sha256, job.to_json(), index)
    if key not in _clients:
        folder = proxy_store.find(sha256)
        if folder is None:
            raise DataError(f"proxy {sha256[:12]}: is not here; setup must bring it")
        _clients[key] = build_client(job, index, folder)
        while len(_clients) > _KEPT_CLIENTS:
            _clients.popitem(last=False)
    return _clients[key]
