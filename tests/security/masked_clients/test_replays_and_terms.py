"""Clients refuse replays, and terms, clips and cohorts that they would not sign."""

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.crypto.primitives import digest, fresh_secret, signing_public
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.protect.secure_sum.client import _check_clip
from fedproxy_secure.protect.secure_sum.terms import chosen_clip, first_clip, largest_clip, ring_plan
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg.provision import load_roster, provision
from fedproxy_secure.secagg.terms import Roster
from tests.support.masked_clients import changed, sent_again
from tests.support.masked_rounds import STEPS, Wrapped, serve_with, with_

GRAM = {"weights": "encrypted_gram"}


@pytest.fixture(scope="module")
def heard(world):
    """Return a function that runs a job's rounds: what one client was asked in each, its context.

    A job runs once for all who ask for it. Nothing that is sent later changes the client, as it refuses it.
    """
    job, folder, initial = world
    with ExitStack() as stack:

        @cache
        def hear(rounds=1, **protect):
            requests, contexts = {}, {}

            def watch(message, context):
                contexts[context.node_id] = context
                requests.setdefault((context.node_id, message.metadata.message_type), message)

            keyed = stack.enter_context(with_keys(with_(job, rounds=rounds, **protect)))
            with proxy_store.offered_on_this_host(folder):
                serve(InProcessGrid(Wrapped(sees=watch), 5), keyed, folder, initial)
            return {kind: requests[2, kind].content for kind in STEPS}, contexts[2]

        yield hear


def replayed(world, heard, change, rounds=1, **protect):
    """Send a training request again with changed terms; return the answer."""
    requests, context = heard(rounds, **protect)
    content = RecordDict(dict(requests["train"].items()))
    content["terms"] = ConfigRecord(change(dict(content.config_records["terms"])))
    return sent_again(world, "train", content, context)


def test_a_replayed_training_request_is_refused(world, heard):
    reply = replayed(world, heard, lambda terms: terms)
    kind, line = wire.decode_failure(reply)
    assert kind == "ProtocolAborted"
    assert "must come after" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"threshold": 2}, "threshold=2: must be 4 to 5"),
        ({"cohort": ["c0", "c1"]}, "must be 3 to 64"),
        ({"cohort": ["c0", "c1", "c2"]}, "ring plan: differs"),
        ({"settings_sha256": bytes(32)}, "settings: differs"),
        ({"broadcast_sha256": bytes(32)}, "broadcast adapter: differs"),
        ({"roster_sha256": bytes(32)}, "roster: differs"),
        ({"round": 1}, "round 1: must be 0 to 0, the run's last"),
        ({"round": 1000}, "round 1000: must be 0 to 0"),
        ({"clip": 1.0}, "ring plan: differs"),
        ({"run": "another"}, "run another: must be"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_terms_that_a_client_would_not_sign_end_before_any_training(world, heard, change, line):
    reply = replayed(world, heard, lambda terms: terms | {"attempt": terms["attempt"] + 1} | change)
    kind, said = wire.decode_failure(reply)
    assert kind in ("ProtocolAborted", "ConfigError")
    assert line in said


def test_the_broadcast_must_be_of_the_round_that_the_terms_name(world, heard):
    change = {"round": 1}
    reply = replayed(
        world, heard, lambda terms: terms | {"attempt": terms["attempt"] + 1} | change, rounds=2
    )
    assert "terms of round 1: the broadcast is of 0" in wire.decode_failure(reply)[1]


@pytest.mark.parametrize("ulps", [-1, 1])
@pytest.mark.parametrize("clip", [None, 0.5], ids=["the optimiser's", "the settings'"])
def test_a_clip_whose_last_digit_another_machine_computes_differently_is_accepted(world, clip, ulps):
    job = falling(with_(world[0], rounds=2, clip=clip))
    for round in range(2):
        own = chosen_clip(job, round) or largest_clip(job, round)
        own = first_clip(job) if clip is None and round == 0 else own
        terms = SimpleNamespace(round=round, cohort=())
        _check_clip(job, terms, own + ulps * math.ulp(own))
        with pytest.raises(ProtocolAborted, match="must be"):
            _check_clip(job, terms, own * 1.001)


@pytest.mark.parametrize("protect", [{}, {"clip": 0.5}], ids=["the optimiser's", "the settings'"])
def test_a_clip_that_a_client_knows_is_not_the_servers_to_choose(world, heard, protect):
    """With a tiny clip every value is cut, and the sum says how many clients go up and how many down."""
    job, _, initial = world
    plan = ring_plan(with_(job, **protect), initial.sizes.tolist(), clip=1e-9, clients=5)
    cheating = {"clip": 1e-9, "plan_sha256": digest(plan.canonical())}
    reply = replayed(world, heard, lambda t: t | {"attempt": t["attempt"] + 1} | cheating, **protect)
    kind, said = wire.decode_failure(reply)
    assert kind == "ProtocolAborted"
    assert said.startswith("clip 1e-09: must be")


def falling(job):
    """The job with learning rates that fall to almost nothing."""
    return job.changed(local=job.local.model_copy(update={"schedule": "cosine"}))


def other_terms(world, job, clip=None, cohort=None):
    """Changes of the terms to another clip or cohort, with the ring that goes with it."""
    clip, cohort = clip or first_clip(job), cohort or [c.name for c in job.clients]
    plan = ring_plan(job, world[2].sizes.tolist(), clip=clip, clients=len(cohort))
    return {"clip": clip, "cohort": cohort, "plan_sha256": digest(plan.canonical())}


class OtherTerms(GridAround):
    """A server that proposes other terms from a round on."""

    def __init__(self, grid, change, from_round):
        super().__init__(grid)
        self.change, self.from_round = change, from_round

    def push_messages(self, messages):
        return super().push_messages(
            [changed(m, terms=self.change) if self.concerns(m) else m for m in messages]
        )

    def concerns(self, message):
        terms = message.content.config_records.get("terms")
        return terms is not None and terms["round"] >= self.from_round


def test_a_clip_beyond_the_optimisers_reach_is_refused_in_every_later_round(world, caplog):
    """A ring whose step is as large as the clients' values counts their signs."""
    job, folder, initial = world
    change = other_terms(world, with_(job), clip=1e6)
    with proxy_store.offered_on_this_host(folder), with_keys(with_(job)) as keyed:
        grid = OtherTerms(InProcessGrid(Wrapped(), 5), change, from_round=1)
        with pytest.raises(RoundAborted):
            serve(grid, keyed, folder, initial)
    assert "clip 1e+06: must be above 0 and at most" in caplog.text


def test_where_rates_fall_the_first_rounds_clip_is_too_large_in_the_last(world, caplog):
    job, folder, initial = world
    job = falling(job)
    change = other_terms(world, with_(job))
    with proxy_store.offered_on_this_host(folder), with_keys(with_(job)) as keyed:
        grid = OtherTerms(InProcessGrid(Wrapped(), 5), change, from_round=keyed.federate.rounds - 1)
        with pytest.raises(RoundAborted):
            serve(grid, keyed, folder, initial)
    assert f"clip {change['clip']:g}: must be above 0 and at most" in caplog.text


def test_where_rates_fall_a_clip_of_the_settings_that_suits_the_first_round_is_not_the_lasts(world, caplog):
    """With 16 bits such a ring has steps longer than the last round's updates, and counts their signs."""
    job, folder, initial = world
    job = falling(job)
    clip = first_clip(job)
    job = with_(job, clip=clip, bits=16)
    last = job.federate.rounds - 1
    change = other_terms(world, job, clip=clip)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        serve(InProcessGrid(Wrapped(), 5), keyed, folder, initial)  # an honest server lowers it
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed, pytest.raises(RoundAborted):
        serve(OtherTerms(InProcessGrid(Wrapped(), 5), change, from_round=last), keyed, folder, initial)
    assert (
        f"clip {clip:g}: must be {largest_clip(job, last):g}, which follows from protect.clip"
        in caplog.text
    )


def test_a_round_is_answered_for_one_clip_also_in_new_runs_of_flower(world, caplog):
    """Whether a client's values exceed a clip would tell them, clip by clip."""
    job, folder, initial = world
    job = with_(job)
    after_one = federate(with_(job, rounds=1, scheme="unsafe_plaintext"), folder, initial)
    first = replace(after_one, clip=np.array([first_clip(job) * 0.9]))
    second = replace(after_one, clip=np.array([first_clip(job) * 0.8]))
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        serve(InProcessGrid(Wrapped(), 5), keyed, folder, first)
        with pytest.raises(RoundAborted):  # every client's state at Flower is new
            serve(InProcessGrid(Wrapped(), 5), keyed, folder, second)
    assert f"must be {first_clip(job) * 0.9:g}, as asked for in this round" in caplog.text


@pytest.mark.parametrize("protect", [{}, {"min_cohort": 3}], ids=["default", "a smaller least cohort"])
def test_a_server_picks_no_smaller_cohort_than_the_roster_and_the_participation_give(world, heard, protect):
    cohort = ["c0", "c1", "c2"]
    reply = replayed(
        world,
        heard,
        lambda terms: (
            terms
            | other_terms(world, with_(world[0], **protect), cohort=cohort)
            | {"threshold": 3, "attempt": terms["attempt"] + 1}
        ),
        **protect,
    )
    assert "cohort of 3: must be >= 4, this client's least" in wire.decode_failure(reply)[1]


@pytest.mark.parametrize("protect", [{}, {"scheme": "ckks"}, GRAM], ids=["masking", "ckks", "cosines"])
def test_a_roster_that_changes_between_two_steps_ends_the_attempt(world, tmp_path, caplog, protect):
    """Whoever changed it would hold the keys that speak for all others, and learn this client's update."""
    job = with_(world[0], "h_ties" if protect == GRAM else "fedavg", rounds=1, **protect)
    names = [client.name for client in job.clients]
    provision(names, tmp_path)
    job = job.changed(protect=job.protect.model_copy(update={"keys": str(tmp_path)}))
    trained = []

    def swap(message, context):
        trained.append(message.metadata.message_type)
        if trained[-5:] == ["train"] * 5:
            roster = load_roster(tmp_path)
            newer = {**roster.members, "c9": signing_public(fresh_secret())}
            (tmp_path / ROSTER).write_text(Roster(members=newer).to_json())

    with pytest.raises(RoundAborted):
        serve_with(world, job, Wrapped(sees=swap))
    assert "roster: must be the one that the attempt was begun with" in caplog.text
    assert not {"query.mask", "query.gram_sketch"} & set(trained)


def test_a_clients_own_threshold_is_not_lowered_by_a_server(world, heard):
    change = {"threshold": 4}
    reply = replayed(
        world, heard, lambda terms: terms | {"attempt": terms["attempt"] + 1} | change, threshold=5
    )
    assert "threshold=4: must be 5 to 5" in wire.decode_failure(reply)[1]


def test_a_clip_that_cuts_much_of_an_update_is_refused_in_every_later_round(world, monkeypatch, caplog):
    monkeypatch.setattr("fedproxy_secure.protect.secure_sum.server.next_clip", lambda clip, control: 1e-9)
    with pytest.raises(RoundAborted, match="advertise: 0 of 5 clients"):
        serve_with(world, with_(world[0]))
    assert "clip 1e-09: cuts more than 5% of this client's coordinates" in caplog.text


def test_steps_out_of_turn_are_refused(world, heard):
    requests, context = heard()
    for kind in STEPS[1:]:
        reply = sent_again(world, kind, requests[kind], context)
        assert wire.decode_failure(reply) == (
            "ProtocolAborted",
            "client c0: has no attempt under way",
        )
