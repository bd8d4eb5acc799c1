"""A client's journal grants each step once: to overlapping processes, after crashes, over many runs."""

import signal

import pytest

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.store import connected
from tests.support.journal_players import at_once, die_while_writing, exit_code_of, take_and_die
from tests.support.journal_steps import asked, release


def test_what_is_written_is_on_the_disk_when_the_call_returns_and_what_is_deleted_is_overwritten(journal):
    """EXTRA: also the folder's entry of the file that would roll back; SQLite's own default is less."""
    with connected(journal.file) as database:
        (synchronous,) = database.execute("PRAGMA synchronous").fetchone()
        (overwritten,) = database.execute("PRAGMA secure_delete").fetchone()
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, overwritten, mode) == (3, 1, "delete")


@pytest.mark.parametrize("repeat", range(5))
def test_of_many_processes_that_ask_for_one_step_one_is_granted(journal, repeat):
    journal.begin(asked())
    journal.put(b"first", {"session": b"secret"})
    seen = at_once(journal.folder, [[("take", ("mask",), {})]] * 6)
    assert sorted(said == "" for said in seen) == [False] * 5 + [True]
    assert all("another step is answered" in said for said in seen if said)


def test_of_many_processes_that_begin_one_attempt_one_is_granted(journal):
    seen = at_once(journal.folder, [[("begin", (asked(),), {})]] * 6)
    assert sum(said == "" for said in seen) == 1
    assert all("must come after 0, 1" in said for said in seen if said)


def test_two_attempts_that_are_unmasked_at_once_are_not_for_different_survivors(journal):
    """Each process holds an attempt that was under way when it asked; one round, two sets of survivors."""

    def unmask(number, survivors):
        context = f"attempt {number}".encode()
        named = {"run": "run", "round": 0, "survivors": survivors, "refuse_differencing": False}
        return [("begin", (asked(attempt=number, context=context),), {}), ("release", (context,), named)]

    granted, sets = set(), (("a", "b", "c"), ("a", "b"), ("b", "c"))
    for start in range(10, 70, 10):
        said = at_once(journal.folder, [unmask(start + i, survivors) for i, survivors in enumerate(sets)])
        granted |= {survivors for survivors, line in zip(sets, said, strict=True) if line == ""}
    assert len(granted) == 1


def test_a_step_is_consumed_before_it_is_answered_so_that_a_crash_leaves_nothing(journal):
    journal.begin(asked())
    journal.put(b"first", {"session": b"secret"})

    assert exit_code_of(take_and_die, journal.folder, "mask") == -signal.SIGKILL
    with pytest.raises(ProtocolAborted, match="asked while another step is answered"):
        journal.take("mask")
    assert b"secret" not in journal.file.read_bytes()
    journal.begin(asked(attempt=2, context=b"second"))  # the next attempt goes on


def test_a_process_killed_within_a_transaction_leaves_the_journal_as_it_was(journal):
    journal.begin(asked())
    before = journal.sequence()

    assert exit_code_of(die_while_writing, journal.file) == -signal.SIGKILL
    assert journal.sequence() == before
    with pytest.raises(ProtocolAborted, match="must come after"):
        journal.begin(asked())


def test_a_step_taken_in_order_is_granted_once_and_its_secrets_are_wiped(journal):
    journal.begin(asked())
    journal.put(b"first", {"session": b"the secret of step one"})
    assert journal.take("share") == {"session": b"the secret of step one"}
    assert b"the secret of step one" not in journal.file.read_bytes()
    journal.put(b"first", {"session": b"next"})
    with pytest.raises(ProtocolAborted, match="share: was asked for before; each step runs once"):
        journal.take("share")
    assert journal.take("mask") == {"session": b"next"}


def test_without_an_attempt_under_way_there_is_no_step_to_take(journal):
    with pytest.raises(ProtocolAborted, match="client a: has no attempt under way"):
        journal.take("share")


def test_an_answer_computed_for_an_attempt_that_ended_meanwhile_does_not_leave(journal):
    journal.begin(asked())
    journal.put(b"first", {})
    journal.take("mask")
    journal.begin(asked(attempt=2, context=b"second"))
    with pytest.raises(ProtocolAborted, match="ended while this step was computed"):
        journal.put(b"first", {"session": b"x"})
    with pytest.raises(ProtocolAborted, match="ended while this step was computed"):
        release(journal, b"first")
    journal.put(b"second", {})


@pytest.mark.parametrize("older", [(0, 1), (0, 0)])
def test_an_attempt_that_is_not_newer_is_refused(journal, older):
    journal.begin(asked())
    with pytest.raises(ProtocolAborted, match="must come after 0, 1"):
        journal.begin(asked(round=older[0], attempt=older[1]))
    journal.begin(asked(round=1, attempt=0, context=b"next round"))
    with pytest.raises(ProtocolAborted, match="round 0, attempt 9: must come after 1, 0"):
        journal.begin(asked(attempt=9))
    journal.begin(asked(run="another run", context=b"another"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"clip": 1.0}, "clip 1: must be 0.5, as asked for in this round"),
        ({"broadcast_sha256": b"c" * 32}, "broadcast adapter: round 0 was asked for with another one"),
        ({"cohort": ("a", "b", "d")}, "cohort: round 0 was asked for with other clients"),
    ],
    ids=["clip", "broadcast", "cohort"],
)
def test_all_attempts_at_a_round_are_on_the_same_terms(journal, change, line):
    journal.begin(asked())
    with pytest.raises(ProtocolAborted, match=line):
        journal.begin(asked(attempt=2, context=b"second", **change))
    journal.begin(asked(attempt=2, context=b"second"))
    journal.begin(asked(round=1, context=b"third", **change))


def test_a_round_is_unmasked_for_one_set_of_survivors(journal):
    journal.begin(asked())
    journal.check_survivors(run="run", round=0, survivors=["a", "b"], refuse_differencing=False)
    release(journal)
    journal.begin(asked(attempt=2, context=b"second"))
    for call in (
        lambda: release(journal, b"second", ("a", "b")),
        lambda: journal.check_survivors(
            run="run", round=0, survivors=["a", "b"], refuse_differencing=False
        ),
    ):
        with pytest.raises(ProtocolAborted, match="survivors: must be those that round 0 was unmasked for"):
            call()
    release(journal, b"second", ("c", "b", "a"))


def test_a_round_whose_weights_may_change_is_unmasked_once(journal):
    """Sums of the same updates under several sets of weights would tell each update."""
    journal.begin(asked())
    journal.release(
        b"first", run="run", round=0, survivors=["a", "b"], refuse_differencing=False, once=True
    )
    journal.begin(asked(attempt=2, context=b"second"))
    with pytest.raises(ProtocolAborted, match="round 0: was unmasked before; its weights may be others"):
        journal.release(
            b"second", run="run", round=0, survivors=["a", "b"], refuse_differencing=False, once=True
        )


def test_a_round_that_never_began_is_not_unmasked(journal):
    """Survivors written down for another run would leave this one's open."""
    journal.begin(asked())
    with pytest.raises(ProtocolAborted):
        journal.release(
            b"first", run="another run", round=0, survivors=["a", "b"], refuse_differencing=False
        )


def test_sums_that_differ_by_one_client_are_refused_over_all_rounds_and_runs_where_asked_for(journal):
    journal.begin(asked())
    release(journal)
    journal.begin(asked(run="other", context=b"second"))
    for survivors, refused in ((("a", "b"), True), (("a", "b", "c", "d"), True), (("a",), False)):
        if refused:
            with pytest.raises(
                ProtocolAborted, match="must not differ by one client from those of an earlier"
            ):
                journal.check_survivors(run="other", round=0, survivors=survivors, refuse_differencing=True)
        else:
            journal.check_survivors(run="other", round=0, survivors=survivors, refuse_differencing=True)


def test_a_policy_and_a_seed_belong_to_one_run(journal):
    def agree(policy, seed, run, roster=b"r"):
        journal.agree(policy=policy, seed=seed, run=run * 64, roster_sha256=roster)

    for policy, seed, run in ((b"p", 0, "a"), (b"p", 0, "a"), (b"p", 1, "b"), (b"q", 0, "b")):
        agree(policy, seed, run)
    with pytest.raises(
        ProtocolAborted, match="run bbbbbbbbbbbb: must be aaaaaaaaaaaa, to which this policy's seed 0"
    ):
        agree(b"p", 0, "b")
    with pytest.raises(ProtocolAborted, match="roster: must be the one that run aaaaaaaaaaaa began with"):
        agree(b"p", 0, "a", roster=b"with new members")


def test_all_attempts_at_a_round_send_what_the_first_one_kept(journal):
    """Training that does not repeat would else give two sums whose difference is one client's alone."""
    for attempt, value in ((1, b"first"), (2, b"second")):
        context = f"attempt {attempt}".encode()
        journal.begin(asked(attempt=attempt, context=context))
        assert journal.keep_sent(context, run="run", round=0, values={"u": value}) == {"u": b"first"}
    assert journal.sent(run="run", round=0) == {"u": b"first"}


def test_training_that_ends_after_its_attempt_keeps_nothing(journal):
    journal.begin(asked())
    journal.begin(asked(attempt=2, context=b"second"))
    with pytest.raises(ProtocolAborted, match="ended while its update was computed"):
        journal.keep_sent(b"first", run="run", round=0, values={"u": b"late"})
    assert journal.sent(run="run", round=0) == {}


def test_what_is_sent_is_kept_for_the_last_two_rounds(journal):
    for number in range(4):
        context = bytes([number])
        journal.begin(asked(round=number, context=context))
        journal.keep_sent(context, run="run", round=number, values={"u": context})
    assert journal.sent(run="run", round=3) == {"u": b"\x03"}
    assert journal.sent(run="run", round=2) == {"u": b"\x02"}
    assert journal.sent(run="run", round=1) == {}
    assert journal.sent(run="other", round=3) == {}


def test_a_rounds_cosines_are_opened_once(journal):
    journal.open_once(run="run", round=0)
    journal.open_once(run="run", round=1)
    with pytest.raises(ProtocolAborted, match="round 0: its cosines were opened before"):
        journal.open_once(run="run", round=0)
