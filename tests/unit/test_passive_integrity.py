"""A11: what masked messages, counts of signs and changing cohorts tell, and what they do not."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from scipy import stats

from attacks.base import Budget, Inconclusive, NotApplicable, Truth, replace_view
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
from fedproxy_secure.config import FederateConfig, FusionConfig, ProtectConfig
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import Sums, View
from fedproxy_secure.secagg.signs import pack_signs
from tests.support.integrity import masked_run, rng, seen_by, tried
from tests.support.lab import make_lab
from tests.support.recorded import record_run


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
    return masked_run(tmp_path_factory.mktemp("recorded"))


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
@pytest.mark.parametrize("sign", [1, -1], ids=["added", "subtracted"])
def test_the_right_seed_opens_a_known_bad_message_and_no_other_seed_does(bits, sign):
    update = rng().normal(0, 1, 100).astype(np.float32)
    message = words_of(masked_by_seed(update, 300, bits=bits, clients=3, sign=sign), bits)[None, :64]
    for seeds, expected in ((range(1000), {0: (300, sign)}), (range(300), {}), (range(301, 1000), {})):
        assert search(message, bits=bits, clients=3, seeds=seeds, budget=Budget()) == expected


def test_a_search_of_seeds_reads_known_bad_messages_and_none_of_ours(world):
    seen, truth = seen_by(world, "server")
    found = tried(MaskSeedSearch(), seen, truth)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert (found.headline.value, found.positive.value, found.negative.value) == (0, 1, 0)


def test_a_search_of_seeds_claims_nothing_about_seeds_that_it_did_not_try(world):
    seen, truth = seen_by(world, "server")
    found = tried(MaskSeedSearch(), seen, truth)
    values = {e.metric: e.value for e in found.estimates}
    assert values["seeds tried"] == FEWEST_TRIED
    assert values["seeds tried over all of 32 bits"] == FEWEST_TRIED / 2**32
    assert "if its seed is small" in found.title
    assert found.reason.startswith("share of masked messages opened by a small seed 0; ")
    assert found.headline.how.endswith("; seed below 1,024 alone")
    assert found.could_show(found.headline).how == "8 messages, if their masks have a seed below 1,024"


def test_what_a_search_reads_counts_only_if_it_is_the_clients_update(world):
    seen, truth = seen_by(world, "server")
    open_view, open_truth = MaskSeedSearch().positive(seen, truth)
    read = MaskSeedSearch().guess(open_view, None, Budget(), rng())
    assert MaskSeedSearch().score(read, open_truth)[0].value == 1
    others = dict(
        zip(read.vectors, [*list(read.vectors.values())[1:], *list(read.vectors.values())[:1]], strict=True)
    )
    assert MaskSeedSearch().score(replace(read, vectors=others), open_truth)[0].value == 0


def test_a_search_of_seeds_reads_messages_of_clients_that_trim_their_updates(world):
    seen, truth = seen_by(world, "server")
    settings = seen.settings.changed(fusion=FusionConfig(rule="ties"))
    masked = {
        (r, name): masked_by_seed(
            keep_largest(truth.clients[name].rounds[r].update, 0.2),
            300,
            bits=settings.protect.bits,
            clients=4,
        )
        for r, name in seen.masked
    }
    found = tried(MaskSeedSearch(), replace_view(seen, settings=settings, masked=masked), truth)
    assert (found.outcome, found.headline.value, found.positive.value) == (Outcome.SUCCEEDED, 1, 1)


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


def test_after_a_client_dropped_out_counts_are_read_as_the_others_packed_them(settings):
    """Clients pack counts of up to all four that were asked, three bits each; three would need two."""
    asked = settings.changed(clients=tuple("abcd"))
    seen, truth = View(threat_model="server", settings=asked), truth_of(UPDATES)
    counts = np.sum(
        [pack_signs(np.array(u), clients=4, bits=asked.protect.bits) for u in UPDATES.values()], axis=0
    )
    updates = np.array(list(UPDATES.values()), np.float32)
    sums = Sums(
        clients=tuple(UPDATES),
        segments={"update": updates.sum(0), "magnitude": np.abs(updates).sum(0), "signs": counts},
    )
    guess = SignCounts().guess(replace_view(seen, sums={0: sums}), None, Budget(), rng())
    assert SignCounts().score(guess, truth)[0].value == 0.5


def test_values_named_wrongly_do_not_count(settings):
    truth = truth_of(UPDATES)
    seen = View(threat_model="server", settings=settings)
    guess = SignCounts().guess(replace_view(seen, sums=coordinate_sums(seen, truth)), None, Budget(), rng())
    moved = tuple((r, at, values + 0.01, near) for r, at, values, near in guess.named)
    assert SignCounts().score(replace(guess, named=moved), truth)[0].value == 0


def test_how_far_rounding_moves_values_follows_from_the_clients_of_a_round(settings):
    """Were it from all clients, 16 bits would round every value of 200 clients away."""
    few_of_many = settings.changed(
        clients=tuple(f"c{i}" for i in range(200)),
        protect=ProtectConfig(bits=16),
        federate=FederateConfig(participation=0.015),
    )
    truth, seen = truth_of(UPDATES), View(threat_model="server", settings=few_of_many)
    guess = SignCounts().guess(replace_view(seen, sums=coordinate_sums(seen, truth)), None, Budget(), rng())
    assert SignCounts().score(guess, truth)[0].value == 0.5


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


ATTENDED = {0: "abcde", 1: "bcdef", 2: "abc", 3: "abcde"}  # no round has all six clients


def attended(*rounds_):
    """Six clients, each of which trained in those of the rounds that it attended."""
    all_rounds = truth_of({n: rng(i).normal(0, 1, 64) for i, n in enumerate("abcdef")}, rounds_)
    return Truth(
        clients={
            n: replace(s, rounds={r: done for r, done in s.rounds.items() if n in ATTENDED[r]})
            for n, s in all_rounds.clients.items()
        }
    )


def test_where_no_round_has_all_clients_the_controls_have_those_of_the_best_attended_round(settings):
    seen, truth = View(threat_model="server", settings=settings.changed(d=64)), attended(*ATTENDED)
    counted, whole = SignCounts().positive(seen, truth)
    assert whole is truth
    assert {r: s.clients for r, s in counted.sums.items()} == dict.fromkeys((0, 3), tuple("abcde"))
    assert tried(SignCounts(), counted, truth).positive.value > 0.1
    apart, alone = CohortDifferencing().positive(seen, truth)
    assert {n: set(s.rounds) for n, s in alone.clients.items()} == {n: {0} for n in "abcde"}
    assert tried(CohortDifferencing(), apart, alone).positive.value > 0.99


def test_where_no_round_has_enough_clients_there_is_no_control(settings):
    seen = View(threat_model="server", settings=settings)
    two = Truth(clients={n: s for n, s in attended(2).clients.items() if n in "ab"})
    assert SignCounts().positive(seen, two) is not None
    assert CohortDifferencing().positive(seen, two) is None
    for truth in (Truth(clients={"a": two.clients["a"]}), Truth(clients={}), attended()):
        assert SignCounts().positive(seen, truth) is None
        assert CohortDifferencing().positive(seen, truth) is None


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["uniform", "self"])
def test_a_run_at_granularity_coordinate_is_found_to_reveal_them(tmp_path, weights):
    protect = {"granularity": "coordinate", "weights": weights}
    folder = record_run(tmp_path, federate={"rounds": 2}, protect=protect)
    found = tried(SignCounts(), *seen_by(folder, "server"))
    assert found.outcome == Outcome.SUCCEEDED
    lone = {e.metric: e.value for e in found.estimates}["share of coordinates with a lone contributor"]
    assert found.headline.value == pytest.approx(lone, abs=0.02)
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


def test_cohorts_that_never_change_leave_nothing_to_tell_apart(world):
    seen, truth = seen_by(world, "server")
    found = tried(CohortDifferencing(), seen, truth)
    assert found.outcome == Outcome.NOT_APPLICABLE
    assert found.reason == "cohorts never change: the same clients took part in every sum"


def test_cohorts_that_change_are_taken_apart_and_noise_is_not(world):
    seen, truth = CohortDifferencing().positive(*seen_by(world, "server"))
    found = tried(CohortDifferencing(), seen, truth)
    assert found.outcome == Outcome.SUCCEEDED, found.reason
    assert found.headline.value > 0.99
    assert found.negative.low <= 0.5 <= found.negative.high
    assert {e.metric: e.value for e in found.estimates}["rank of participation over clients"] == 1


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


def test_what_a_colluder_takes_out_of_a_sum_is_trimmed_as_it_was_sent(settings):
    truth = truth_of({n: rng(i).normal(0, 1, 64) for i, n in enumerate("abc")})
    sent = {n: keep_largest(s.rounds[0].update, 0.2) for n, s in truth.clients.items()}
    trimming = settings.model_copy(update={"fusion": FusionConfig(rule="ties"), "d": 64})
    seen = View(threat_model="t", settings=trimming, own={"a": truth.clients["a"]})
    seen = replace_view(seen, sums=coordinate_sums(seen, truth_of(sent)))
    ((_, at, values, near),) = SignCounts().guess(seen, None, Budget(), rng()).named
    others = np.stack([sent["b"], sent["c"]])
    alone = np.flatnonzero(((others > 0).sum(axis=0) == 1) | ((others < 0).sum(axis=0) == 1))
    assert at.tolist() == alone.tolist()
    assert (np.abs(others[:, at] - values).min(axis=0) <= near).all()
