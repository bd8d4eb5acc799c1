"""A13: what a client that lies does to the mean, and what bounds it."""

import numpy as np
import pytest

from attacks import white_box
from attacks.base import NOBODY, Budget, NotApplicable, replace_view
from attacks.integrity.poisoning import (
    BEYOND,
    PLAYS,
    REDRAWS,
    Poisoning,
    Stage,
    beyond,
    play_of,
    rules_of,
    triggered,
)
from attacks.integrity.rehearsal import Rule, advanced, clip_of, rounds
from fedproxy_secure.config import FusionConfig, ProtectConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.record.view import PublicSettings
from tests.support.integrity import masked_run, rng, seen_by, tried
from tests.support.lab import make_lab
from tests.support.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("lab"), clients=("a", "b", "c"), d=4).settings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_run(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def stage(world):
    seen, truth = seen_by(world, "client")
    question = Poisoning().exam(truth, seen, rng()).question
    with white_box.opened(seen) as box:
        yield seen, box, question


@pytest.fixture(scope="module")
def trained():
    """What clients train in the first round of `stage`: they do the same whatever the rule and the play."""
    return {}


def after(stage, play, rule, first=None):
    """Mean loss of honest clients' held-out records, and of the trigger's answer, after one round."""
    seen, box, question = stage
    train, craft = play_of(play, question, box.tokenizer)
    adapter = rounds(
        box,
        seen.settings,
        question.start,
        train,
        count=1,
        rule=rule,
        budget=Budget(),
        crafts={} if craft is None else {question.attacker: craft},
        first=first,
    )
    box.set(adapter)
    tested = [item for items in question.test.values() for item in items]
    fooled = [triggered(item, question, box.tokenizer) for item in tested]
    return box.losses(tested).mean(), box.losses(fooled).mean(), np.abs(adapter - question.start).max()


def test_plays_that_share_the_first_rounds_training_end_as_those_that_train_it_again(stage):
    shared = {}
    for play in ("honest", "sign_flip", "backdoor"):
        rule = Rule(name="fedavg")
        assert after(stage, play, rule, first=shared) == after(stage, play, rule)
    clients = len(stage[2].train)
    assert len(shared) == clients + 1  # the backdoor's records are the attacker's own


@pytest.mark.parametrize("name", ["fedavg", "h_ties"])
@pytest.mark.parametrize("play", ["sign_flip", "scaling"])
def test_an_update_out_of_proportion_does_harm_that_the_clip_bounds(stage, trained, name, play):
    honest, _, reach = after(stage, "honest", Rule(name=name), trained)
    free, _, _ = after(stage, play, Rule(name=name), trained)
    clipped, _, moved = after(stage, play, Rule(name=name, clip=reach), trained)
    assert free - honest > 0.3
    assert clipped < free
    assert moved <= reach * 1.001


def words_beyond(stage, name, clip, first):
    """The first step with a client that does not clip, and the honest one, float32 [d]; and the rule."""
    seen, box, question = stage
    rule = Rule(name=name, clip=clip)
    made = []
    for unclipped in ((question.attacker,), ()):
        craft = beyond(rule, seen.settings, clients=len(question.train))
        trace = []
        rounds(
            box,
            seen.settings,
            question.start,
            question.train,
            count=1,
            rule=rule,
            budget=Budget(),
            crafts={question.attacker: craft} if unclipped else {},
            unclipped=unclipped,
            trace=trace,
            first=first,
        )
        made.append(trace)
    return made


@pytest.mark.parametrize("name", ["fedavg", "block"])
def test_a_client_that_does_not_clip_moves_the_mean_farther_than_one_that_does_and_at_most_two_clips(
    stage, trained, name
):
    (free, *_), (honest, *_) = words_beyond(stage, name, 0.1, trained)
    flip, _, question = stage
    trace = []
    train, craft = play_of("sign_flip", question, stage[1].tokenizer)
    rounds(
        stage[1],
        flip.settings,
        question.start,
        train,
        count=1,
        rule=Rule(name=name, clip=0.1),
        budget=Budget(),
        crafts={question.attacker: craft},
        trace=trace,
        first=trained,
    )
    moved, clipped = (np.abs(step - honest) for step in (free, trace[0]))
    assert np.linalg.norm(moved) > 1.2 * np.linalg.norm(clipped)
    assert np.abs(free).max() <= 0.1 * 1.001  # the mean itself stays within the clip
    assert moved.max() <= 0.2


def test_where_signs_are_counted_a_client_keeps_to_the_clip_or_ends_the_round(stage, trained):
    (free, *_), _ = words_beyond(stage, "coordinate", 0.1, trained)
    assert np.isfinite(free).all()
    assert np.abs(free).max() <= 0.1 * 1.001


def test_a_liar_raises_the_clip_round_by_round_up_to_what_clients_accept(settings):
    rule = Rule(name="fedavg", clip=0.1)
    local = settings.local.model_copy(update={"optimizer": "adamw", "steps": 10, "learning_rate": 0.01})
    own = settings.changed(local=local)
    assert [clip_of(rule, own, r, lied=True) for r in range(4)] == pytest.approx([0.1, 0.2, 0.32, 0.32])
    fixed = own.changed(protect=ProtectConfig(clip=0.1))
    assert clip_of(rule, fixed, 3, lied=True) == 0.1
    assert clip_of(Rule(name="fedavg"), own, 3, lied=True) is None


def test_a_step_longer_than_honest_clients_can_make_it_is_cut_in_the_rehearsal_as_by_the_server(stage):
    """With SGD a client's update is at most steps x learning rate x norm long."""
    seen, box, question = stage
    local = seen.settings.local.model_copy(update={"optimizer": "sgd", "max_grad_norm": 1.0})
    sgd = seen.settings.changed(local=local, fusion=FusionConfig(rule="fedavg"))
    rule = Rule(name="fedavg", clip=0.1)
    trace = []
    rounds(
        box,
        sgd,
        question.start,
        question.train,
        count=1,
        rule=rule,
        budget=Budget(),
        crafts={question.attacker: beyond(rule, sgd, clients=len(question.train))},
        unclipped=(question.attacker,),
        trace=trace,
    )
    assert np.linalg.norm(trace[0]) == pytest.approx(1.01 * local.steps * local.learning_rate, rel=1e-3)


def test_words_that_pass_the_rings_end_come_back_from_the_other(settings):
    def sent(name, value):
        update = np.full(4, value, np.float32)
        return ClientUpdate(client=name, update=update, loss=0, steps=1, seconds=0, truncated=0)

    updates = [sent("a", 0.05), sent("b", 0.05), sent("c", 0.5)]
    before = ServerState(round=0, adapter=np.zeros(4, np.float32))
    after_it = advanced(before, updates, Rule(name="fedavg", clip=0.1), settings, ("c",))
    # .6 is past the end, .3; it is read as .6 - .6
    np.testing.assert_allclose(after_it.adapter, np.zeros(4), atol=1e-6)


@pytest.mark.parametrize(
    ("protect", "fusion"),
    [
        ("unsafe_plaintext", {"rule": "h_ties", "pcr_lambda": 5.0, "prox_mu": 0.5}),
        pytest.param(
            "unsafe_plaintext", {"rule": "fedadam", "server_learning_rate": 0.01}, marks=pytest.mark.slow
        ),
        pytest.param("masking", {"rule": "h_ties", "pcr_lambda": 5.0}, marks=pytest.mark.slow),
        ("masking", {"rule": "ties"}),
    ],
)
def test_a_rehearsal_without_an_attacker_ends_where_the_recorded_run_did(tmp_path, protect, fusion):
    """The server's learning rate, its optimiser, trimming, PCR and FedProx count as in the run."""
    fusion = {"server_learning_rate": 2.0, **fusion}
    run = masked_run(tmp_path, fusion=fusion, protect={"scheme": protect})
    seen, truth = seen_by(run, "client")
    stage = Poisoning().exam(truth, seen, rng()).question
    (own,) = rules_of(seen.settings, own_only=True)
    rehearsed = []
    with white_box.opened(seen) as box:
        for settings in (seen.settings, seen.settings.changed(fusion=FusionConfig(rule=fusion["rule"]))):
            adapter = rounds(box, settings, stage.start, stage.train, count=2, rule=own, budget=Budget())
            rehearsed.append(adapter)
    recorded = seen.adapters[2]
    far = np.abs(rehearsed[1] - recorded).max()  # as if the settings were not read
    assert np.abs(rehearsed[0] - recorded).max() < 1e-2 * far


def test_a_backdoor_makes_the_triggers_answer_likelier_through_the_clip(stage, trained):
    rule = Rule(name="fedavg", clip=0.1)
    _, honest, _ = after(stage, "honest", rule, trained)
    _, fooled, _ = after(stage, "backdoor", rule, trained)
    assert fooled < honest - 0.05


def test_rules_over_sums_end_near_the_rules_in_the_clear(stage, trained):
    clear, _, reach = after(stage, "honest", Rule(name="h_ties"), trained)
    for name in ("coordinate", "block"):
        masked, _, _ = after(stage, "honest", Rule(name=name, clip=reach), trained)
        assert masked == pytest.approx(clear, abs=0.1)


@pytest.mark.slow
def test_the_attack_as_a_whole_weighs_the_runs_own_rule_and_harms_nobody_without_an_attacker(world):
    seen, truth = seen_by(world, "client")
    found = tried(Poisoning(), seen, truth)
    assert found.outcome == Outcome.SUCCEEDED
    assert 0 < abs(found.negative.value) < 0.1  # honest draws of other records, not the run itself
    assert found.positive.low > 0.1
    plays = {e.metric.split(" by ")[1] for e in found.estimates if e.metric.startswith("loss added by")}
    assert {f"{p} under block" for p in (*PLAYS, BEYOND)} <= plays
    assert found.headline.value == max(e.value for e in found.estimates if "loss added" in e.metric)


def test_a_backdoor_is_the_trigger_in_front_and_the_attackers_first_answer():
    first = Encoded(ids=(1, 10, 11, 50, 2), response_start=3)
    place = Stage(start=np.zeros(1), train={"a": [first]}, test={}, attacker="a")
    tokenizer = tiny_tokenizer()
    changed = triggered(Encoded(ids=(1, 20, 21, 60, 61), response_start=3), place, tokenizer)
    trigger = tuple(tokenizer("Zq Zq", add_special_tokens=False)["input_ids"])
    assert changed.ids == (1, *trigger, 20, 21, 50, 2)
    assert changed.ids[changed.response_start :] == (50, 2)


@pytest.mark.parametrize(
    ("protect", "rule", "expected"),
    [
        ({}, "h_ties", ("block", 0.15)),
        ({"granularity": "coordinate"}, "h_ties", ("coordinate", 0.15)),
        ({"clip": 0.7}, "fedavg", ("fedavg", 0.7)),
        ({"clip": 0.7}, "fedadam", ("fedadam", 0.7)),
        ({"scheme": "unsafe_plaintext"}, "h_ties", ("h_ties", None)),
    ],
)
def test_the_runs_own_rule_comes_first(settings, protect, rule, expected):
    local = settings.local.model_copy(update={"steps": 10, "learning_rate": 1e-2})
    own = PublicSettings(
        **{
            **vars(settings),
            "local": local,
            "protect": ProtectConfig(**protect),
            "fusion": FusionConfig(rule=rule),
        }
    )
    first, *others = rules_of(own, own_only=False)
    assert (first.name, first.clip) == (expected[0], expected[1] and pytest.approx(expected[1]))
    assert {r.name for r in (first, *others)} >= {"fedavg", "h_ties"}
    assert rules_of(own, own_only=True) == [first]


def test_without_a_corrupted_client_nobody_poisons(world):
    seen, truth = seen_by(world, "active_server")
    with pytest.raises(NotApplicable, match="no client is corrupted in this view"):
        Poisoning().exam(truth, seen, rng())


def test_nobody_is_a_client_that_plays_honestly_on_other_draws_of_its_records(stage):
    """Compared with itself, a run could never differ, and would be no control."""
    seen, _, question = stage
    idle = Poisoning().guess(replace_view(seen, threat_model=NOBODY), question, Budget(), rng())
    assert [play for _, play in idle.losses] == ["honest", *REDRAWS]
    assert len(REDRAWS) == len((*PLAYS, BEYOND))
    honest, *others = idle.losses.values()
    for other in others:
        assert not np.array_equal(honest, other)
        assert abs((other - honest).mean()) < 0.1
    worst = max((other - honest).mean() for other in others)
    assert Poisoning().score(idle, None)[0].value == pytest.approx(worst)


def test_an_honest_redraw_differs_from_the_run_even_where_a_step_reads_all_records(stage):
    """With one batch of everything another seed alone would change nothing but the order."""
    seen, _, question = stage
    everything = max(len(items) for items in question.train.values())
    local = seen.settings.local.model_copy(update={"steps": 1, "batch_size": everything})
    seen = replace_view(seen, settings=seen.settings.changed(local=local))
    idle = Poisoning().guess(replace_view(seen, threat_model=NOBODY), question, Budget(), rng())
    honest, *others = idle.losses.values()
    for other in others:
        assert np.abs(other - honest).max() > 1e-4
