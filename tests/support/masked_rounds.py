"""Rounds of five clients under masking, over Flower messages in this process."""

import json
from pathlib import Path

from flwr.clientapp import ClientApp

from fedproxy_secure.config import ProtectConfig, parse_config
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.store import journal_file, reading
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.tiny import tiny_settings

STEPS = ("train", "query.share", "query.mask", "query.confirm", "query.unmask")


def masked_world(tmp_path_factory):
    """A job of five clients and two rounds, the model's folder and the initial state."""
    folder = tmp_path_factory.mktemp("masked")
    config = parse_config(tiny_settings(folder, clients=5, federate={"rounds": 2}))
    job = FederationJob.from_config(config, seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


def with_(job, rule="fedavg", rounds=2, **protect):
    return job.changed(
        fusion=job.fusion.model_copy(update={"rule": rule}),
        federate=job.federate.model_copy(update={"rounds": rounds}),
        protect=ProtectConfig(**protect),
    )


class Wrapped(ClientApp):
    """The real client app; `fails` says which messages end in an exception, `sees` watches the rest."""

    def __init__(self, fails=lambda kind, node: False, sees=lambda message, context: None):
        super().__init__()
        self.fails, self.sees = fails, sees

    def __call__(self, message, context):
        if self.fails(message.metadata.message_type, context.node_id):
            raise RuntimeError("no power")
        reply = client_app.app(message, context)
        self.sees(message, context)
        return reply


def serve_with(world, job, app=None, **more):
    _, folder, initial = world
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        grid = InProcessGrid(app or Wrapped(), len(job.clients))
        return serve(grid, keyed, folder, initial, **more)


def move(world, state):
    return state.adapter - world[2].adapter


def journal_of(context):
    """The journal's file of the client that answered with this context."""
    job = json.loads(context.state.config_records["job"]["json"])
    index = context.node_config["partition-id"]
    return journal_file(Path(job["protect"]["keys"]), job["clients"][index]["name"])


def kept_in(journal):
    with reading(journal) as database:
        return dict(database.execute("SELECT name, value FROM kept").fetchall())
