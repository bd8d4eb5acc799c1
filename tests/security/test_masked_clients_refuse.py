"""What clients of a masked round refuse: replays, other terms, clips, proxies, jobs, steps out of turn."""

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.crypto.primitives import digest, fresh_secret, signing_public
from fedproxy_secure.dp.ledger import all_events
from fedproxy_secure.errors import ConfigError, ProtocolAborted, RoundAborted, TrainingError
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.monitor.event_log import VARIABLE, EventLog
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.protect.secure_sum.terms import first_clip, next_clip, parts_of, ring_plan
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ROSTER, ROUNDS
from fedproxy_secure.secagg.control import SEGMENTS, Control
from fedproxy_secure.secagg.provision import load_roster, provision
from fedproxy_secure.secagg.terms import Roster
from tests.support.masked_rounds import STEPS, Wrapped, kept_in, masked_world, serve_with, with_
from tests.support.parts import packed, parts
from tests.support.tiny import save_tiny

GRAM = {"weights": "encrypted_gram"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_world(tmp_path_factory)


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


def sent_again(world, kind, content, context):
    """What the client answers to such a request after the rounds."""
    with proxy_store.offered_on_this_host(world[1]):
        return client_app.app(Message(content, 2, kind), context).content


def replayed(world, heard, change, rounds=1, **protect):
    """The answer to a training request that is sent again with other terms."""
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


def other_terms(world, job, clip=None, cohort=None):
    """Changes of the terms to another clip or cohort, with the ring that goes with it."""
    clip, cohort = clip or first_clip(job.local), cohort or [c.name for c in job.clients]
    plan = ring_plan(job, world[2].sizes.tolist(), clip=clip, clients=len(cohort))
    return {"clip": clip, "cohort": cohort, "plan_sha256": digest(plan.canonical())}


class OtherTerms(GridAround):
    """A server that proposes other terms from a round on."""

    def __init__(self, grid, change, from_round):
        super().__init__(grid)
        self.change, self.from_round = change, from_round

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            terms = message.content.config_records.get("terms")
            if terms is not None and terms["round"] >= self.from_round:
                message.content["terms"] = ConfigRecord(dict(terms) | self.change)
        return super().push_messages(messages)


def test_a_clip_beyond_the_optimisers_reach_is_refused_in_every_later_round(world, caplog):
    """A ring whose step is as large as the clients' values counts their signs."""
    job, folder, initial = world
    change = other_terms(world, with_(job), clip=1e6)
    with proxy_store.offered_on_this_host(folder), with_keys(with_(job)) as keyed:
        grid = OtherTerms(InProcessGrid(Wrapped(), 5), change, from_round=1)
        with pytest.raises(RoundAborted):
            serve(grid, keyed, folder, initial)
    assert "clip 1e+06: must be above 0 and at most" in caplog.text


def test_a_round_is_answered_for_one_clip_also_in_new_runs_of_flower(world, caplog):
    """Whether a client's values exceed a clip would tell them, clip by clip."""
    job, folder, initial = world
    job = with_(job)
    after_one = federate(with_(job, rounds=1, scheme="unsafe_plaintext"), folder, initial)
    first = replace(after_one, clip=np.array([first_clip(job.local) * 0.9]))
    second = replace(after_one, clip=np.array([first_clip(job.local) * 0.8]))
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        serve(InProcessGrid(Wrapped(), 5), keyed, folder, first)
        with pytest.raises(RoundAborted):  # every client's state at Flower is new
            serve(InProcessGrid(Wrapped(), 5), keyed, folder, second)
    assert f"must be {first_clip(job.local) * 0.9:g}, as asked for in this round" in caplog.text


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


class OtherProxies(InProcessGrid):
    """A server that has all but one client train another proxy, on which their gradients vanish."""

    in_job = False  # whether the job names the other proxy too

    def __init__(self, other, clients):
        super().__init__(client_app.app, clients)
        self.other = other

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            record = message.content.config_records.get("job")
            if message.metadata.message_type == "query.setup" and message.metadata.dst_node_id != 2:
                record["sha256"] = self.other
                if self.in_job:
                    record["json"] = json.dumps(json.loads(record["json"]) | {"proxy_sha256": self.other})
        return super().push_messages(messages)


@pytest.mark.parametrize("in_job", [False, True], ids=["beside the job", "in the job too"])
def test_clients_that_were_given_another_proxy_enter_no_sum_with_the_rest(world, tmp_path, in_job):
    job, folder, initial = world
    other = save_tiny(tmp_path / "other", seed=9)
    with (
        proxy_store.offered_on_this_host(folder),
        proxy_store.offered_on_this_host(other),
        with_keys(with_(job, rounds=1)) as keyed,
    ):
        grid = OtherProxies(folder_sha256(other), 5)
        grid.in_job = in_job
        with pytest.raises((ProtocolAborted, RoundAborted)):
            serve(grid, keyed, folder, initial)


def test_a_private_round_asked_for_again_sends_the_same_noisy_words(world, tmp_path):
    """With the same noise and other rounding, the difference of two sums would be free of noise."""
    job, folder, initial = world
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path)}
    job = with_(job, rounds=1, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    words = []
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        identity, _ = attempt.own_keys(keyed, job.clients[0].name)

        def watch(message, context):
            if (message.metadata.message_type, context.node_id) == ("train", 2):
                sealed = kept_in(journal_file(tmp_path, job.clients[0].name))["words"]
                words.append(attempt.unseal(identity, sealed, "words"))

        grid = InProcessGrid(Wrapped(sees=watch), 5)
        for _ in range(2):
            serve(grid, keyed, folder, initial)
    d, control = len(initial.adapter), 4 * sum(s.length for s in SEGMENTS)
    assert words[0][: 4 * d] == words[1][: 4 * d]
    assert len(words[0]) == 4 * d + control


def failing(client):
    """The client, with a learning rate at which no training ends well."""
    return replace(client, local=client.local.model_copy(update={"learning_rate": 1e39}))


def served_privately(world, tmp_path, players):
    job, folder, initial = world
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path / "paid")}
    job = with_(job, rounds=2, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    with (
        proxy_store.offered_on_this_host(folder),
        with_keys(job) as keyed,
        client_app.played_by(dict.fromkeys(players, failing)),
    ):
        grid = InProcessGrid(Wrapped(), 5)
        return serve(grid, keyed, folder, initial, run_folder=tmp_path / "run")


@pytest.mark.parametrize("threshold", [5, 3])
def test_client_level_noise_is_for_the_planned_threshold_alone(world, tmp_path, threshold):
    """Else a server has all others draw new noise by another threshold, while one repeats its own."""
    job, folder, initial = world
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path / "paid")}
    job = with_(job, rounds=2, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    asked = {}

    def watch(message, context):
        if message.metadata.message_type == "train" and context.node_id == 2:
            asked.update(content=message.content, context=context)

    with with_keys(job) as keyed:
        with proxy_store.offered_on_this_host(folder):
            serve(InProcessGrid(Wrapped(sees=watch), 5), keyed, folder, initial)
        before = all_events(tmp_path / "paid")
        terms = dict(asked["content"].config_records["terms"])
        asked["content"]["terms"] = ConfigRecord(
            terms | {"threshold": threshold, "attempt": terms["attempt"] + 1}
        )
        reply = sent_again(world, "train", asked["content"], asked["context"])
        assert f"threshold={threshold}: must be 4" in wire.decode_failure(reply)[1]
        assert all_events(tmp_path / "paid") == before


def test_training_that_fails_under_client_level_privacy_sends_noise_and_is_paid(
    world, tmp_path, caplog, monkeypatch
):
    """That it failed would be a bit about the client's records, without noise and outside epsilon."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "events.jsonl"))
    names = [c.name for c in world[0].clients]
    state = served_privately(world, tmp_path, names[:4])
    assert state.round == 2
    assert np.isfinite(state.adapter).all()
    assert {len(spent) for spent in all_events(tmp_path / "paid").values()} == {2}
    # the client's own side sees it, and so does whoever runs all of them on one machine
    errors = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert sum("zeros count" in message for message in errors) == 4 * 2
    events = EventLog.from_environment().read().events
    failures = [(e.party, e.round, e.reason) for e in events if e.kind == "training"]
    assert failures == [("site", r, "TrainingError") for r in (0, 1) for _ in range(4)]
    assert "round 1: training failed at 4 of 5 clients, which sent zeros instead" in caplog.text
    lines = RunFolder(path=tmp_path / "run").read_jsonl(ROUNDS)
    assert not any("failed" in key for line in lines for key in line)  # what may be published


def test_on_one_machine_a_round_in_which_all_training_fails_ends_the_run(world, tmp_path):
    """A sum of noise alone would pass for a trained model. A run that goes on ends with the same line."""
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"round 0: training failed at all 5 .* c0: RuntimeError$"):
            served_privately(world, tmp_path, [c.name for c in world[0].clients])


def setup_reply(job, node_config):
    """What a client says to a job, as a node of its own."""
    context = Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})
    job = job.changed(proxy_sha256="0" * 64)
    ask = {"job": ConfigRecord({"json": job.to_json(), "sha256": "0" * 64})}
    return client_app.app(Message(RecordDict(ask), 2, "query.setup"), context).content


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            {"protect": {"scheme": "unsafe_plaintext"}},
            "protect.scheme='unsafe_plaintext' asked by the server: must be",
        ),
        (
            {"protect": {"granularity": "coordinate"}},
            "protect.granularity='coordinate' asked by the server",
        ),
        ({"protect": {"bits": 16}}, "protect.bits=16 asked by the server: must be 32"),
        ({"local": {"learning_rate": 1e9}}, "local.learning_rate=1000000000.0 asked by the server"),
        ({"federate": {"rounds": 1000}}, "federate.rounds=1000 asked by the server: must be 2"),
        ({"federate": {"participation": 0.6}}, "federate.participation=0.6 asked by the server"),
        ({"privacy": {"unit": "record"}}, "privacy.unit='record' asked by the server: must be 'none'"),
        ({"adapter": {"rank": 4}}, "adapter.rank=4 asked by the server: must be 2"),
        ({"max_tokens": 63}, "max_tokens=63 asked by the server: must be 64"),
        ({"seed": 1}, "seed=1 asked by the server: must be one of [0]"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_client_refuses_a_server_that_asks_for_what_its_policy_does_not_say(world, tmp_path, asked, line):
    own = tmp_path / "client.policy.yaml"
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    policy_for(job, 0, seeds=(0,)).write(own)
    changed = {
        k: getattr(job, k).model_copy(update=v) if isinstance(v, dict) else v for k, v in asked.items()
    }
    reply = setup_reply(job.changed(**changed), {"policy": str(own)})
    kind, said = wire.decode_failure(reply)
    assert kind == "ConfigError"
    assert line in said
    assert wire.decode_failure(setup_reply(job, {"policy": str(own)})) is None


def test_a_node_without_a_policy_answers_nothing(world):
    """Else the server would say which files are read, and that nothing is protected."""
    for scheme in ("masking", "unsafe_plaintext"):
        kind, said = wire.decode_failure(setup_reply(with_(world[0], scheme=scheme), {"partition-id": 0}))
        assert kind == "ConfigError"
        assert said.startswith("node-config: must name this client's policy")


@pytest.mark.parametrize(("value", "needs_none"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_a_node_needs_no_policy_where_the_environment_says_that_one_machine_plays_all(
    world, tmp_path, monkeypatch, value, needs_none
):
    monkeypatch.setenv(attempt.ONE_MACHINE_VARIABLE, value)
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    refused = wire.decode_failure(setup_reply(job, {"partition-id": 0}))
    assert (refused is None) == needs_none, refused


def test_a_server_on_another_machine_is_not_told_what_records_say(world, tmp_path):
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    records = tmp_path / "secret.train.jsonl"
    for name in ("train", "test"):
        records.with_name(f"secret.{name}.jsonl").write_text('{"text": "HIV positive", "label": 7}\n')
    client = job.clients[0].model_copy(update={"source": str(tmp_path / "secret.{split}.jsonl")})
    own = tmp_path / "client.policy.yaml"
    policy_for(job.changed(clients=(client,)), 0, seeds=(0,)).write(own)
    kind, said = wire.decode_failure(setup_reply(job, {"policy": str(own)}))
    assert kind == "DataError"
    assert said == "this client's records or messages cannot be used; its own log has the reason"


def test_a_server_on_another_machine_is_not_told_where_a_clients_files_lie(world, tmp_path):
    job = with_(world[0], keys=str(tmp_path / "St Mary (2)"))
    provision([c.name for c in job.clients], tmp_path / "St Mary (2)")
    own = tmp_path / "client.policy.yaml"
    policy_for(job, 0, seeds=(0,)).write(own)
    (tmp_path / "St Mary (2)" / f"{job.clients[0].name}.key").chmod(0o644)
    said = [wire.decode_failure(setup_reply(job, {"policy": str(own)}))]
    own.unlink()
    said.append(wire.decode_failure(setup_reply(job, {"policy": str(own)})))
    assert said == [
        ("ConfigError", "[redacted]: has mode 644; must be 600, readable by its owner alone"),
        ("ConfigError", "[redacted]: cannot be read: No such file or directory"),
    ]


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
            messages = list(messages)
            for message in messages:
                numbers = message.content.config_records.get("round")
                if numbers is not None:
                    message.content["round"] = ConfigRecord(dict(numbers) | self.change)
            return super().push_messages(messages)

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


def test_a_refused_setup_leaves_nothing_to_train_with(world):
    job, folder, _ = world
    with proxy_store.offered_on_this_host(folder):
        context = Context(
            run_id=1,
            node_id=2,
            node_config={"partition-id": 0, "one-machine": True},
            state=RecordDict(),
            run_config={},
        )
        asked = with_(job).changed(proxy_sha256="1" * 64)
        ask = {"job": ConfigRecord({"json": asked.to_json(), "sha256": "0" * 64})}
        reply = client_app.app(Message(RecordDict(ask), 2, "query.setup"), context).content
        assert "which the job names" in wire.decode_failure(reply)[1]
        assert not context.state.config_records


def test_a_node_whose_policy_refuses_the_job_keeps_none_of_its_files(tmp_path, world, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    job, folder, _ = world
    sha256 = folder_sha256(folder)
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    setup = wire.encode_setup(with_(job).changed(proxy_sha256=sha256))
    reply = client_app.app(Message(setup, 2, wire.SETUP), context).content
    assert wire.decode_failure(reply)[0] == "ConfigError"
    first = wire.encode_part(parts(packed(folder), sha256)[0])
    reply = client_app.app(Message(first, 2, wire.PART), context).content
    assert wire.decode_failure(reply)[0] == "NotSetUp"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("scale", [1e-45, 2.5e-23, 1.0, 1e30])
def test_a_weight_from_the_last_step_stays_in_its_range_whatever_step_a_server_made_up(world, scale):
    """A weight above 1 could not be sent, and whether a client fails would tell its cosine."""
    job = with_(world[0], "h_ties", weights="self")
    sizes = world[2].sizes.tolist()
    rng = np.random.default_rng(0)
    update = rng.standard_normal(sum(sizes)).astype(np.float32) * np.float32(1e-3)
    plan = ring_plan(job, sizes, clip=first_clip(job.local), clients=5)
    trained = ClientUpdate(client="c0", update=update, loss=0.0, steps=2, seconds=0.0, truncated=0)
    previous = (update * np.float32(1e3)).astype(np.float64) * scale
    _, control = parts_of(trained, job, sizes, plan, previous=previous.astype(np.float32))
    assert np.exp(-1) <= control.weight <= 1
