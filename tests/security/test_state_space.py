"""In every state that a server can reach, all that it learned of a round is one sum; and what carries that.

The states are those of a model of the clients (`tests.support.client_model`); that the real ones decide
like it is `test_state_space_conformance`. `slow` explores more, `HYPOTHESIS_PROFILE=nightly` most.
"""

import os
from dataclasses import replace
from functools import cache

import pytest

from fedproxy_secure.secagg.terms import least_threshold
from tests.support.client_model import Attempt, Rules, World, decide, fresh, messages, sendable
from tests.support.state_space import explore, explore_in_turn
from tests.support.state_tables import State, smallest_name

pytestmark = pytest.mark.no_cover  # the model is of the tests, and of the package hardly anything runs
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def clients(*numbers):
    return sum(1 << i for i in numbers)


def tries(size, threshold, count=1, **changes):
    """Attempts of the clients 0 .. size - 1."""
    return (Attempt(cohort=(1 << size) - 1, threshold=threshold, **changes),) * count


def world(honest, corrupted, attempts, *, split=False, whole_books=False, **rules):
    return World(
        honest=honest,
        corrupted=corrupted,
        attempts=attempts,
        rules=Rules(**rules),
        split=split,
        whole_books=whole_books,
    )


def safe(size, corrupted=0, count=1):
    """`count` attempts of one cohort at the least threshold that clients accept."""
    return tries(size, least_threshold(size, corrupted), count)


# the property, attempts interleaved in every way


@pytest.mark.parametrize(
    ("case", "states"),
    [
        (world(3, 0, safe(3, count=2)), 558),
        (world(3, 0, safe(3, count=2), split=True), 6644),
        (world(3, 0, safe(3, count=3)), 21_420),
        pytest.param(world(3, 0, tries(3, 2, count=2)), 782_850, marks=pytest.mark.slow),
    ],
    ids=["3 clients", "3, answers held back", "3, three attempts", "3 at a threshold of 2"],
)
def test_of_interleaved_attempts_a_server_learns_one_sum(case, states):
    found = explore(case)
    assert not found.wrong, str(found)
    assert found.states == states
    everyone = (1 << case.honest) - 1
    assert frozenset({everyone}) in found.outcomes  # the honest round is among them


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("case", "states"),
    [
        (world(3, 1, safe(4, 1, count=2)), 5_704_103),
        (world(4, 0, safe(4, count=2), whole_books=True), 19_483_460),
        (world(3, 0, tries(3, 2, count=2), split=True), 13_462_923),
    ],
    ids=["4 clients, one corrupted", "4, whole key books", "3 at a threshold of 2, answers held back"],
)
def test_of_more_interleaved_attempts_a_server_learns_one_sum(case, states):
    found = explore(case)
    assert not found.wrong, str(found)
    assert found.states == states


# the property, any number of attempts, one after another


@pytest.mark.parametrize(
    "case",
    [
        world(3, 0, safe(3)),
        world(3, 0, tries(3, 2)),
        world(3, 1, safe(4, 1)),
        pytest.param(world(4, 0, safe(4)), marks=pytest.mark.slow),
        pytest.param(world(4, 1, safe(5, 1)), marks=pytest.mark.nightly),
        pytest.param(world(4, 0, tries(4, 3) + tries(4, 4)), marks=pytest.mark.nightly),
    ],
    ids=["3", "3 at a threshold of 2", "4, one corrupted", "4", "5, one corrupted", "4, two thresholds"],
)
def test_of_any_number_of_attempts_a_server_learns_one_sum(case):
    found = explore_in_turn(case)
    assert not found.wrong, str(found)
    threshold = min(attempt.threshold for attempt in case.attempts)
    sums = {next(iter(sums)) for sums in found.outcomes if sums}
    assert {len(sums) for sums in found.outcomes} == {0, 1}
    assert {s.bit_count() for s in sums} == set(range(threshold - case.corrupted, case.honest + 1))


@pytest.mark.parametrize(
    "case",
    [
        world(3, 0, safe(3, count=2)),
        world(3, 0, safe(3, count=2), split=True),
        pytest.param(world(3, 0, tries(3, 2, 2)), marks=pytest.mark.slow),
    ],
    ids=["3", "3, answers held back", "3 at a threshold of 2"],
)
def test_attempts_one_after_another_teach_what_interleaved_ones_do(case):
    one_after_another = explore_in_turn(case, most=2).outcomes
    assert explore(case).outcomes == one_after_another
    assert explore_in_turn(case).outcomes == one_after_another


@pytest.mark.parametrize(
    "case",
    [world(3, 0, safe(3, count=2)), world(3, 0, tries(3, 2)), world(3, 0, safe(3), split=True)],
    ids=["two attempts", "sets to choose", "answers held back"],
)
def test_the_search_over_arrays_meets_the_states_that_a_plain_one_meets(case):
    names = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    seen = {State(clients=(fresh(case),) * 3)}
    queue, moves = list(seen), 0
    for state in queue:  # grows
        for me in range(3):
            for message in messages(case):
                after = decide(case, me, state.clients[me], message)
                if after is None or not sendable(case, state.clients, me, message):
                    continue
                moves += 1
                changed = (*state.clients[:me], after, *state.clients[me + 1 :])
                following = smallest_name(case, State(clients=changed), names)
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
    found = explore(case)
    assert (found.states, found.messages) == (len(seen), moves)


@pytest.mark.parametrize(
    ("cohorts", "sums"),
    [
        ("SMALL_COHORTS", {clients(0, 1), clients(2, 3)}),
        pytest.param("COHORTS", {clients(0, 2), clients(1, 3)}, marks=pytest.mark.slow),
    ],
    ids=["two of three", "two of four"],
)
def test_with_smaller_cohorts_than_the_roster_no_client_is_in_two_sums(cohorts, sums):
    """Two cohorts out of five clients: there may be two sums, of different clients."""
    found = explore_in_turn(world(4, 1, globals()[cohorts]), disjoint=True)
    assert not found.wrong, str(found)
    assert frozenset(sums) in found.outcomes


# must fail: each rule taken out

COHORTS = (
    Attempt(cohort=clients(0, 1, 2, 4), threshold=least_threshold(4, 1)),
    Attempt(cohort=clients(0, 1, 3, 4), threshold=least_threshold(4, 1)),
)
SMALL_COHORTS = (
    Attempt(cohort=clients(0, 1, 4), threshold=least_threshold(3, 1)),
    Attempt(cohort=clients(2, 3, 4), threshold=least_threshold(3, 1)),
)
TWO_MASKS = {"twice": frozenset({"mask"})}
BROKEN = {
    # the shortest attacks: how many messages
    "a masked vector twice": (world(4, 0, safe(4), **TWO_MASKS), 19, "a sum of fewer than 3"),
    "a masked vector twice, 3 clients": (
        world(3, 0, tries(3, 2), **TWO_MASKS),
        13,
        "a sum of fewer than 2",
    ),
    "survivors not pinned": (world(4, 0, safe(4), pin_survivors=False), 30, "no sum"),
    "survivors not pinned, one corrupted": (world(3, 1, safe(4, 1), pin_survivors=False), 20, "no sum"),
    "cohort not pinned": (world(4, 1, COHORTS, pin_cohort=False), 23, "no sum"),
    "threshold of 2 for 4": (world(4, 0, tries(4, 2)), 15, "a sum of fewer than 2"),
    "threshold of 2 for 4, one corrupted": (world(3, 1, tries(4, 2)), 10, "two different sums"),
    "nothing confirmed": (world(3, 1, safe(4, 1), confirm=False), 22, "a sum of fewer than 2"),
    "several runs": (world(3, 1, safe(4, 1) + tries(4, 3, run=1), one_run=False), 20, "no sum"),
    "other weights in another attempt": (world(3, 1, safe(4, 1) + tries(4, 3, changed=1)), 20, "no sum"),
}


@cache
def attack_on(name):
    """What the search finds without a rule."""
    return explore_in_turn(BROKEN[name][0], most=2, disjoint=name.startswith("cohort"))


SMALLER = {  # of the same rule
    "a masked vector twice": "a masked vector twice, 3 clients",
    "survivors not pinned": "survivors not pinned, one corrupted",
    "threshold of 2 for 4": "threshold of 2 for 4, one corrupted",
}


def broken(names):
    """Return test cases of these names; those for which there is a smaller one are slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if SMALLER.get(name) in names else []) for name in names
    ]


@pytest.mark.parametrize("name", broken(BROKEN))
def test_without_a_rule_the_search_finds_an_attack(name):
    _, messages, wrong = BROKEN[name]
    found = attack_on(name)
    assert wrong in found.wrong, str(found)
    assert len(found.trace) == messages, str(found)


def test_weights_that_an_attempt_may_change_are_safe_where_a_round_is_unmasked_once():
    case = world(3, 0, tries(3, 2) + tries(3, 2, changed=1), one_release=True)
    found = explore_in_turn(case)
    assert not found.wrong, str(found)


# what is there besides: without it nothing is lost for these few clients


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "case",
    [
        world(3, 0, tries(3, 2, 2), newer=False),
        world(3, 0, tries(3, 2, 2), one_attempt=False),
    ],
    ids=["attempts in any order", "attempts side by side"],
)
def test_these_rules_carry_nothing_alone(case):
    found = explore(case)
    assert not found.wrong, str(found)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "case",
    [
        world(4, 0, safe(4), confirm=False),
        world(4, 0, safe(4), twice=frozenset({"confirm"})),
        pytest.param(
            world(4, 0, (*safe(4), Attempt(cohort=clients(0, 1, 2), threshold=3)), pin_cohort=False),
            marks=pytest.mark.nightly,
        ),
    ],
    ids=[
        "nothing confirmed, nobody corrupted",
        "two confirmations",
        "other cohorts of the whole roster's size",
    ],
)
def test_these_rules_carry_nothing_alone_for_four_honest_clients(case):
    found = explore_in_turn(case)
    assert not found.wrong, str(found)


@pytest.mark.skipif(not NIGHTLY, reason="takes hours; HYPOTHESIS_PROFILE=nightly")
@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_of_two_interleaved_attempts_of_four_honest_clients_a_server_learns_one_sum():
    case = world(4, 0, safe(4, count=2))
    found = explore(case)
    assert not found.wrong, str(found)
    assert found.outcomes == explore_in_turn(replace(case, attempts=case.attempts[:1])).outcomes
