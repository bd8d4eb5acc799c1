"""A round is unmasked once, for one proxy and one update; weights and penalties are as agreed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.errors import ConfigError, RoundAborted
from fedproxy_secure.federate.sent import trimmed
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.journal.store import create_journal
from fedproxy_secure.protect.secure_sum.attempt import attempt_id
from fedproxy_secure.protect.secure_sum.sent import RoundMemory, RoundMemoryStore
from fedproxy_secure.protect.secure_sum.terms import first_clip, next_clip, parts_of, ring_plan, run_name
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.record.contribution import contribution
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.secagg.control import Control
from fedproxy_secure.secagg.selftest.rehearsal import identities, ring, terms_for
from tests.support.masked_clients import changed
from tests.support.masked_rounds import Wrapped, with_
from tests.support.tiny import save_tiny


def test_a_round_unmasked_once_is_not_unmasked_for_other_survivors(world):
    """The server repeats a round and calls one client lost, to tell its update from the difference."""
    job, folder, initial = world
    job = with_(job, rounds=1)
    lost = {"now": False}
    app = Wrapped(fails=lambda kind, node: lost["now"] and kind == "query.mask" and node == 6)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        grid = InProcessGrid(app, 5)
        serve(grid, keyed, folder, initial)
        lost["now"] = True
        for same in (grid, InProcessGrid(app, 5)):  # in another of Flower's runs clients' states are new
            with pytest.raises(RoundAborted, match="confirm: 0 of 5 clients"):
                serve(same, keyed, folder, initial)
        lost["now"] = False
        serve(grid, keyed, folder, initial)  # the same survivors: nothing new is learnt


def test_two_of_flowers_runs_side_by_side_do_not_unmask_a_round_for_different_survivors(world):
    """Both get their confirmations before either is unmasked."""
    job, folder, initial = world
    app = Wrapped(fails=lambda kind, node: kind == "query.mask" and node == 6)

    def run_the_other(message, context):
        if (message.metadata.message_type, context.node_id) == ("query.confirm", 6):
            serve(InProcessGrid(app, 5), keyed, folder, initial)

    with proxy_store.offered_on_this_host(folder), with_keys(with_(job, rounds=1)) as keyed:
        grid = InProcessGrid(Wrapped(sees=run_the_other), 5)
        # the newer attempt ended the older one at every client
        with pytest.raises(RoundAborted, match="unmask: 0 of 5 clients"):
            serve(grid, keyed, folder, initial)


class OtherProxies(GridAround):
    """A server that has all but one client train another proxy, on which their gradients vanish.

    `asked`: the job that names the other proxy. `told`: where the server names it: beside the job, in the
    job, and in the terms of each round.
    """

    def __init__(self, grid, asked, told):
        super().__init__(grid)
        self.asked, self.told = asked, told

    def push_messages(self, messages):
        return super().push_messages([self.altered(message) for message in messages])

    def altered(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if node == ALONE:
            return message
        if kind == "query.setup":
            job = {"sha256": self.asked.proxy_sha256}
            if "job" in self.told:
                job["json"] = self.asked.to_json()
            return changed(message, job=job)
        if kind == "train" and "terms" in self.told:
            terms = {"settings_sha256": self.asked.agreed_sha256(), "run": run_name(self.asked)}
            return changed(message, terms=terms)
        return message


ALONE = 2  # the node of c0, which is given the proxy that the server's job names


@pytest.mark.parametrize(
    ("told", "ready", "ends", "line"),
    [
        ((), [ALONE], "1 clients set up: must be >= 4", "which the job names"),
        (("job",), [2, 3, 4, 5, 6], "advertise: 1 of 5 clients", "settings: differs"),
        (
            ("job", "terms"),
            [2, 3, 4, 5, 6],
            "advertise: 1 of 5 clients",
            "signature of c1: verification failed",
        ),
    ],
    ids=["beside the job", "in the job too", "in the terms too"],
)
def test_clients_that_were_given_another_proxy_enter_no_sum_with_the_rest(
    world, tmp_path, caplog, told, ready, ends, line
):
    job, folder, initial = world
    other, job = save_tiny(tmp_path / "other", seed=9), with_(job, rounds=1)
    given = {}  # which proxy each node that was set up has

    def watch(message, context):
        if "job" in context.state:
            given[context.node_id] = json.loads(context.state.config_records["job"]["json"])["proxy_sha256"]

    with (
        proxy_store.offered_on_this_host(folder),
        proxy_store.offered_on_this_host(other),
        with_keys(job) as keyed,
    ):
        grid = OtherProxies(InProcessGrid(Wrapped(sees=watch), 5), with_proxy(keyed, other), told)
        with pytest.raises(RoundAborted, match=ends):
            serve(grid, keyed, folder, initial)
    assert sorted(given) == ready
    assert given.pop(ALONE) == folder_sha256(folder)
    assert set(given.values()) <= {folder_sha256(other)}
    assert line in caplog.text


def test_masking_without_keys_or_sizes_is_refused(world):
    job, folder, initial = world
    with proxy_store.offered_on_this_host(folder):
        grid = InProcessGrid(Wrapped(), 5)
        with pytest.raises(ConfigError, match=r"protect\.keys: must name the folder"):
            serve(grid, with_(job), folder, initial)
        bare = ServerState(round=0, adapter=initial.adapter)
        with (
            with_keys(with_(job)) as keyed,
            pytest.raises(ConfigError, match="server state: has no tensor sizes"),
        ):
            serve(InProcessGrid(Wrapped(), 5), keyed, folder, bare)


def test_the_clip_follows_what_clients_needed():
    def control(**changes):
        return Control(
            **(
                {"clients": 4, "weight": 4.0, "clipped": 0, "loss": 1.0, "steps": 4, "largest": 2.0}
                | changes
            )
        )

    assert next_clip(1.0, control()) == pytest.approx(0.75)  # largest half the clip on average
    assert next_clip(1.0, control(clipped=1)) == 2.0
    assert next_clip(1.0, control(largest=0.0)) == 1.0
    assert next_clip(1.0, control(largest=1e-6)) == pytest.approx(1 / 16)


def test_a_round_that_is_asked_for_again_has_the_update_of_the_first_time(world, monkeypatch):
    """Training that does not repeat would give two sums that differ by what one client changed."""
    from fedproxy_secure.federate.client import LocalClient

    job, folder, initial = world
    trained, train = [], LocalClient.train

    def drifting(self, **arguments):
        trained.append(self.name)
        update = train(self, **arguments)
        return replace(update, update=update.update + np.float32(1e-4 * len(trained)))

    monkeypatch.setattr(LocalClient, "train", drifting)
    with proxy_store.offered_on_this_host(folder), with_keys(with_(job, rounds=1)) as keyed:
        first, second = (serve(InProcessGrid(Wrapped(), 5), keyed, folder, initial) for _ in range(2))
    assert len(trained) == 5
    np.testing.assert_allclose(second.adapter, first.adapter, atol=1e-7)


def test_penalties_other_than_the_settings_are_refused_masked_and_in_the_clear(world, caplog):
    """A pull of the server's choice towards the broadcast adapter singles out what moves against it."""
    job, folder, initial = world

    class Pulling(GridAround):
        def __init__(self, grid, change):
            super().__init__(grid)
            self.change = change

        def push_messages(self, messages):
            return super().push_messages(
                [changed(m, round=self.change) if "round" in m.content else m for m in messages]
            )

    for scheme in ("masking", "unsafe_plaintext"):
        for change, line in (
            ({"prox_mu": 1e4}, "prox_mu=10000: must be 0, fusion.prox_mu of the job"),
            ({"pcr_lambda": 1e4}, "pcr_lambda=10000: must be 0, fusion.pcr_lambda of the job"),
            ({"round": 1000}, "round 1000: must be 0 to 1"),
        ):
            with proxy_store.offered_on_this_host(folder), with_keys(with_(job, scheme=scheme)) as keyed:
                grid = Pulling(InProcessGrid(Wrapped(), 5), change)
                caplog.clear()
                with pytest.raises(RoundAborted):
                    serve(grid, keyed, folder, initial)
            assert line in caplog.text


@pytest.mark.parametrize("scale", [1e-45, 2.5e-23, 1.0, 1e30])
def test_a_weight_from_the_last_step_stays_in_its_range_whatever_step_a_server_made_up(world, scale):
    """A weight above 1 could not be sent, and whether a client fails would tell its cosine."""
    job = with_(world[0], "h_ties", weights="self")
    sizes = world[2].sizes.tolist()
    rng = np.random.default_rng(0)
    update = rng.standard_normal(sum(sizes)).astype(np.float32) * np.float32(1e-3)
    plan = ring_plan(job, sizes, clip=first_clip(job), clients=5)
    trained = ClientUpdate(client="c0", update=update, loss=0.0, steps=2, seconds=0.0, truncated=0)
    previous = (update * np.float32(1e3)).astype(np.float64) * scale
    _, control = parts_of(trained, job, sizes, plan, previous=previous.astype(np.float32))
    assert np.exp(-1) <= control.weight <= 1


@pytest.mark.parametrize("absent", [False, True])
def test_a_client_absent_from_the_last_round_weighs_no_more_than_one_that_was_in_it(
    world, tmp_path, absent
):
    job = with_(world[0], "h_ties", weights="self")
    rng = np.random.default_rng(0)
    first, second = (np.float32(1e-3) * rng.standard_normal(500).astype(np.float32) for _ in range(2))
    start, step = np.zeros(500, np.float32), second + first
    create_journal(tmp_path, "c0")
    identity = fresh_secret()
    terms = terms_for(ring(5, 500), identities(5)[1])
    rounds = {}
    for number, adapter, vector in ((0, start, first), (1, step, second)):
        if absent and number == 0:
            continue
        journal = Journal(folder=tmp_path, client="c0")
        now = replace(terms, round=number)
        asked = Attempt(
            run="r",
            round=number,
            attempt=0,
            context=attempt_id(now),
            clip=1.0,
            broadcast_sha256=b"b" * 32,
            cohort=now.cohort,
        )
        journal.begin(asked)
        store = RoundMemoryStore(journal=journal, identity=identity, terms=now, run="r")
        update = ClientUpdate(client="c0", update=vector, loss=0.0, steps=2, seconds=0.0, truncated=0)
        kept = store.keep(RoundMemory(update=update, previous=store.last_step(adapter), start=adapter))
        rounds[number] = PrivateRound(update=vector, used=np.arange(1))
        values, weight = trimmed(vector, job, previous=kept.previous)
        state = PrivateState(client="c0", train=(), holdout=(), canaries=(), rounds=dict(rounds))
        recorded = contribution(state, number, job, {0: start, 1: step})
        np.testing.assert_array_equal(recorded, np.float32(weight) * values)
        if number == 0:
            assert weight == 1
    cosine = 0.0 if absent else second @ step / np.linalg.norm(second) / np.linalg.norm(step)
    assert weight == pytest.approx(np.exp(cosine - 1), rel=1e-5)
    share = job.fusion.r0 - job.fusion.delta * (1 - cosine)
    assert np.count_nonzero(values) == pytest.approx(500 * share, abs=2)
