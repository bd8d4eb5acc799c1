"""Progress that is passed on: weighed, named, and through a connection as snapshots."""

from fedproxy_secure.runtime.progress import (
    RELAY_SECONDS,
    WORK,
    Named,
    Relayed,
    Replay,
    StageClock,
    Weighed,
    duration,
    time_left,
)
from tests.support.told import Told


def test_times_are_in_the_unit_that_people_would_say():
    assert [duration(s) for s in (0.4, 45, 119, 720, 7199, 11_100)] == [
        "0 s",
        "45 s",
        "119 s",
        "12 min",
        "2 h 0 min",
        "3 h 5 min",
    ]


def test_a_stage_took_no_less_than_its_parts_in_earlier_processes():
    clock = StageClock()
    clock.stop("federate", at_least=100.0)
    clock.stop("fuse")
    assert clock.seconds["federate"] == 100.0
    assert 0 <= clock.seconds["fuse"] < 100.0
    clock.began -= 200.0
    clock.stop("federate", at_least=100.0)
    assert clock.seconds["federate"] > 299.0


def test_the_time_left_follows_from_the_mean_pace_and_is_unknown_at_both_ends():
    assert time_left(5, 100, 10.0) == 190.0
    assert time_left(0, 100, 10.0) is None
    assert time_left(100, 100, 10.0) is None


def test_what_a_task_does_counts_as_its_share_of_the_work():
    told = Told()
    weighed = Weighed(shown=told, units=9.0)
    weighed.start("training", 6)
    for _ in range(6):
        weighed.advance("training", note="x")
    weighed.done("training")
    weighed.advance("training")  # ended: passed on, and nothing more of the work
    assert sum(steps for task, steps in told.advanced if task == WORK) == 9
    assert told.open == {}


def test_work_inside_work_is_shown_under_its_name_without_what_is_hidden():
    told, units = Told(), []
    named = Named(shown=told, name="cell", hidden=frozenset({"seed-0"}), on_work=units.append)
    for task in ("seed-0", WORK, "federate"):
        named.start(task, 4)
        named.advance(task, 2)
    assert told.open == {"cell: federate": (2, 4, "")}
    assert units == [2]
    for task in ("seed-0", WORK, "federate"):
        named.done(task)
    assert told.open == {}


def test_snapshots_come_at_every_start_and_else_at_most_five_times_a_second():
    now, taken = [0.0], []
    relayed = Relayed(hand_on=lambda s: taken.append(s) or True, clock=lambda: now[0])
    relayed.start("federate", 1000)
    for step in range(1000):
        now[0] = step / 1000
        relayed.advance("federate")
    assert 5 <= len(taken) <= 1 + 1 / RELAY_SECONDS
    relayed.start("evaluate", 3)
    assert [o.task for o in taken[-1]] == ["federate", "evaluate"]
    assert taken[-1][0].steps == 1000  # a start brings what was held back


def test_a_snapshot_that_nobody_took_is_lost_without_harm():
    told, room = Told(), [True]
    replay = Replay(shown=told)

    def hand_on(snapshot):
        if room[0]:
            replay.to(snapshot)
        return room[0]

    seconds = iter(range(100))
    relayed = Relayed(hand_on=hand_on, clock=lambda: float(next(seconds)))
    relayed.start("a", 10)
    room[0] = False
    relayed.advance("a", 4, note="held back")
    relayed.done("a")
    relayed.start("a", 20)  # another of the same name
    room[0] = True
    relayed.advance("a", 5, note="now")
    assert told.open == {"a": (5, 20, "now")}
    assert told.started == ["a", "a"]
    replay.to(())
    assert told.open == {}
