"""A11 and A13: what single messages, sign counts, changing cohorts and one malicious client give away."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from scipy import stats

from attacks import white_box
from attacks.base import NOBODY, Budget, Inconclusive, NotApplicable, Truth, replace_view
from attacks.integrity.mask_seeds import (
    FEWEST_TRIED,
    MaskSeedSearch,
    masked_by_seed,
    search,
    seed_stream,
)
from attacks.integrity.masked_words import MaskedWords, byte_p_value, packed_update, words_of
from attacks.integrity.passive_sums import (
    Apart,
    CohortDifferencing,
    SignCounts,
    coordinate_sums,
    disaggregate,
)
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
from attacks.integrity.rehearsal import Rule, _merged, lied_clip, rounds
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.config import FusionConfig, ProtectConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import PublicSettings, Sums, View, view
from tests.support.lab import make_lab
from tests.support.recorded import record_run
from tests.support.tiny import tiny_tokenizer, write_records
from threat_models import get as threat_model

LOCAL = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2}


def rng(seed=0):
    return np.random.default_rng(seed)


def truth_of(updates, rounds_=(0,)):
    """Clients that sent these updates, [d], in every round."""
    made = {}
    for name, update in updates.items():
        done = PrivateRound(update=np.asarray(update, np.float32), used=np.arange(2))
        made[name] = PrivateState(
            client=name, train=(), holdout=(), canaries=(), rounds=dict.fromkeys(rounds_, done)
        )
    return Truth(clients=made)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("lab"), clients=("a", "b", "c"), d=4).settings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of a recorded masked run of four clients."""
    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=4, records=40)
    return record_run(
        place,
        data={"root": root},
        local=LOCAL,
        adapter={"rank": 8, "alpha": 16},
        federate={"rounds": 2},
    )


def seen_by(world, name):
    model = threat_model(name)
    return view(world, model), read_truth(world, honest_besides=model.clients)


def tried(attack, seen, truth, profile="smoke"):
    return run_one(attack, seen, truth, profile=profile, seconds=100, seed=0)


# single masked messages


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_words_are_read_as_the_signed_numbers_that_were_packed(bits):
    update = rng().normal(0, 1, 300).astype(np.float32)
    words = words_of(packed_update(update, bits=bits, clients=3), bits)
    assert len(words) == 300
    levels = (2 ** (bits - 1) - 1) // 3
    step = np.abs(update).max() / levels
    np.testing.assert_allclose(words * step, update, atol=1.01 * step)


def test_uniform_bytes_have_uniform_p_values_and_an_update_s_have_none():
    values = [byte_p_value(rng(s).integers(0, 256, 20_000, dtype=np.uint8)) for s in range(200)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    update = rng().normal(0, 1, 5000).astype(np.float32)
    assert byte_p_value(packed_update(update, bits=32, clients=3)) < 1e-6


def test_a_masked_message_is_uniform_and_tells_no_token_where_an_unmasked_one_does(world):
    seen, truth = seen_by(world, "server")
    assert len(seen.masked) == 8
    found = tried(MaskedWords(), seen, truth)
    # the masks come from fresh keys: six standard deviations, as an interval is four wide
    assert abs(found.headline.value - 0.5) < 1.5 * (found.headline.high - found.headline.low)
    assert found.negative.low <= 0.5 <= found.negative.high
    assert found.positive.value > max(found.headline.value, 0.55)
    assert {e.metric: e for e in found.estimates}["p-value of uniform bytes"].value > 1e-9


def test_a_view_without_masked_messages_has_none_to_attack(world):
    seen, truth = seen_by(world, "client")
    for attack in (MaskedWords(), MaskSeedSearch()):
        with pytest.raises(NotApplicable, match="no masked message passed"):
            attack.guess(seen, truth, Budget(), rng())


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_known_bad_masks_are_those_of_flowers_secagg_plus(bits, seed):
    folded = seed.to_bytes(4, "little") + bytes(28)
    (expected,) = pseudo_rand_gen(folded, 2**bits, [(100,)])
    np.testing.assert_array_equal(seed_stream(seed, bits, 100), expected)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_the_right_seed_opens_a_known_bad_message_and_no_other_seed_does(bits):
    update = rng().normal(0, 1, 100).astype(np.float32)
    message = words_of(masked_by_seed(update, 300, bits=bits, clients=3), bits)[None, :64]
    for seeds, expected in ((range(1000), {0: 300}), (range(300), {}), (range(301, 1000), {})):
        assert search(message, bits=bits, clients=3, seeds=seeds, budget=Budget()) == expected


def test_a_search_of_seeds_reads_known_bad_messages_and_none_of_ours(world):
    seen, truth = seen_by(world, "server")
    found = tried(MaskSeedSearch(), seen, truth)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert (found.headline.value, found.positive.value, found.negative.value) == (0, 1, 0)
    assert {e.metric: e.value for e in found.estimates}["seeds tried"] == FEWEST_TRIED


def test_what_a_search_reads_counts_only_if_it_is_the_clients_update(world):
    seen, truth = seen_by(world, "server")
    open_view, open_truth = MaskSeedSearch().positive(seen, truth)
    read = MaskSeedSearch().guess(open_view, None, Budget(), rng())
    assert MaskSeedSearch().score(read, open_truth)[0].value == 1
    others = dict(
        zip(read.vectors, [*list(read.vectors.values())[1:], *list(read.vectors.values())[:1]], strict=True)
    )
    assert MaskSeedSearch().score(replace(read, vectors=others), open_truth)[0].value == 0


def test_a_message_whose_update_nobody_kept_is_no_error_of_the_search(world):
    seen, truth = seen_by(world, "server")
    open_view, _ = MaskSeedSearch().positive(seen, truth)
    read = MaskSeedSearch().guess(open_view, None, Budget(), rng())
    fewer = {
        name: replace(state, rounds={0: state.rounds[0]}) for name, state in list(truth.clients.items())[1:]
    }
    known = sum(name in fewer and r == 0 for r, name in read.vectors)
    found = MaskSeedSearch().score(read, Truth(clients=fewer))[0]
    assert (found.value, found.n) == (1, known)
    assert 0 < known < read.messages
    none = replace(read, vectors={})
    unopened = MaskSeedSearch().score(none, Truth(clients=fewer))[0]
    assert (unopened.value, unopened.n) == (0, read.messages)
    with pytest.raises(Inconclusive, match=f"messages opened whose update nobody kept: {read.messages}"):
        MaskSeedSearch().score(read, Truth(clients={}))


# counts of signs

UPDATES = {"a": [1, 2, 3, -1], "b": [2, -1, -2, -2], "c": [3, -2, 0, -3]}


def test_lone_contributors_and_unanimous_signs_are_those_counted_by_hand(settings):
    truth = truth_of(UPDATES)
    seen = View(threat_model="server", settings=settings)
    seen = replace_view(seen, sums=coordinate_sums(seen, truth))
    guess = SignCounts().guess(seen, None, Budget(), rng())
    assert (guess.coordinates, guess.lone, guess.unanimous) == (4, 2, 2)
    ((r, at, values, _),) = guess.named
    assert r == 0
    np.testing.assert_array_equal(at, [1, 2])
    np.testing.assert_array_equal(values, [2, 3])
    shares = [e.value for e in SignCounts().score(guess, truth)]
    assert shares == [0.5, 0.5, 0.5]


def test_a_lone_contributor_on_the_negative_side_is_named_with_its_sign(settings):
    truth = truth_of({"a": [1, -4, 0, 0], "b": [2, 1, 0, 0], "c": [3, 1, 0, 0]})
    seen = View(threat_model="server", settings=settings)
    guess = SignCounts().guess(replace_view(seen, sums=coordinate_sums(seen, truth)), None, Budget(), rng())
    ((_, at, values, _),) = guess.named
    np.testing.assert_array_equal(at, [1])
    np.testing.assert_array_equal(values, [-4])


def test_values_named_wrongly_do_not_count(settings):
    truth = truth_of(UPDATES)
    seen = View(threat_model="server", settings=settings)
    guess = SignCounts().guess(replace_view(seen, sums=coordinate_sums(seen, truth)), None, Budget(), rng())
    moved = tuple((r, at, values + 0.01, near) for r, at, values, near in guess.named)
    assert SignCounts().score(replace(guess, named=moved), truth)[0].value == 0


def test_signs_of_rounds_whose_clients_are_unknown_are_not_judged(settings):
    truth = truth_of(UPDATES, rounds_=(0, 1))
    seen = View(threat_model="server", settings=settings)
    guess = SignCounts().guess(replace_view(seen, sums=coordinate_sums(seen, truth)), None, Budget(), rng())
    assert SignCounts().score(guess, truth)[0].value == 0.5
    half = SignCounts().score(guess, truth_of(UPDATES))[0]
    assert (half.value, half.n) == (0.5, 4)
    with pytest.raises(Inconclusive, match="no client of these rounds is known"):
        SignCounts().score(guess, Truth(clients={}))


def test_coordinate_sums_give_lone_values_away_and_block_sums_do_not(world):
    seen, truth = seen_by(world, "server")
    assert seen.settings.protect.granularity == "block"
    found = tried(SignCounts(), seen, truth)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert found.headline.value == 0
    assert found.positive.value > 0.1
    assert found.negative.value == 0


@pytest.mark.slow
def test_a_run_at_granularity_coordinate_is_found_to_reveal_them(tmp_path):
    folder = record_run(tmp_path, federate={"rounds": 1}, protect={"granularity": "coordinate"})
    found = tried(SignCounts(), *seen_by(folder, "server"))
    assert found.outcome == Outcome.SUCCEEDED
    assert found.headline.value == pytest.approx(found.positive.value, abs=0.02)


# changing cohorts


def test_sums_are_taken_apart_exactly_where_the_cohorts_tell_all_clients_apart_and_only_there():
    names, d = ("a", "b", "c", "d"), 30
    updates = {n: rng(i).normal(0, 1, d) for i, n in enumerate(names)}
    cohorts = [c for k in (2, 3, 4) for c in itertools.combinations(names, k)]
    full = short = 0
    for trial in range(60):
        chosen = [cohorts[i] for i in rng(trial).choice(len(cohorts), size=4, replace=False)]
        if set().union(*chosen) != set(names):
            continue
        sums = {
            i: Sums(clients=c, segments={"update": sum(updates[n] for n in c)})
            for i, c in enumerate(chosen)
        }
        found = disaggregate(sums)
        exact = all(np.allclose(found.means[n], updates[n]) for n in names)
        assert exact == (found.rank == len(names))
        full, short = full + exact, short + (not exact)
    assert full > 5
    assert short > 5


def test_a_cohort_that_never_changes_keeps_its_clients_apart_from_nobody(world):
    found = tried(CohortDifferencing(), *seen_by(world, "server"))
    assert found.outcome == Outcome.RESISTED, found.reason
    assert found.headline.value == pytest.approx(0.5, abs=0.01)
    assert found.positive.value > 0.99
    assert found.negative.low <= 0.5 <= found.negative.high
    assert {e.metric: e.value for e in found.estimates}["rank of participation over clients"] == 0.25


@pytest.mark.parametrize("clients", [2, 4])
def test_estimates_that_say_nothing_have_chance_within_their_interval_as_often_as_it_says(clients):
    names, hits, draws = "abcd"[:clients], 0, 200
    for draw in range(draws):
        r = rng(draw)
        truth = truth_of({n: r.normal(0, 1, 640) for n in names}, rounds_=(0, 1))
        guess = Apart(means={n: r.normal(0, 1, 640) for n in names}, rank=1, rounds=2)
        auc, _ = CohortDifferencing().score(guess, truth)
        hits += auc.low <= 0.5 <= auc.high
    assert 0.9 * draws <= hits < draws  # 190 expected, standard deviation 3


def test_clients_that_work_with_the_server_take_their_own_part_out_of_the_sums(settings):
    truth = truth_of({n: rng(i).normal(0, 1, 64) for i, n in enumerate("abc")}, rounds_=(0, 1))
    names, updates = ("a", "b", "c"), {n: s.rounds[0].update for n, s in truth.clients.items()}
    sums = {
        r: Sums(clients=c, segments={"update": sum(updates[n] for n in c)})
        for r, c in enumerate((names, ("a", "b")))
    }
    together = View(threat_model="t", settings=settings, sums=sums, own={"a": truth.clients["a"]})
    found = CohortDifferencing().guess(together, None, Budget(), rng())
    assert set(found.means) == {"b", "c"}
    for name in "bc":
        np.testing.assert_allclose(found.means[name], updates[name], atol=1e-5)


# poisoning


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
    assert [lied_clip(rule, own, r) for r in range(4)] == pytest.approx([0.1, 0.2, 0.32, 0.32])
    fixed = own.changed(protect=ProtectConfig(clip=0.1))
    assert lied_clip(rule, fixed, 3) == 0.1
    assert lied_clip(Rule(name="fedavg"), own, 3) is None


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
    step = _merged(updates, Rule(name="fedavg", clip=0.1), settings, (4,), np.zeros(4, np.float32), ("c",))
    # .6 is past the end, .3; it is read as .6 - .6
    np.testing.assert_allclose(step, np.zeros(4), atol=1e-6)


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
