"""A client's journal grants each step once: to overlapping processes, after crashes, over many runs."""

import os
import shutil
import signal

import pytest

from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.journal import newest
from fedproxy_secure.journal.answered import Answered, answered
from fedproxy_secure.journal.newest import sequence_file
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.journal.store import (
    carry_promises,
    connected,
    create_database,
    create_journal,
    journal_file,
    reading,
    writing,
)
from tests.support.journal_players import at_once, die_while_writing, exit_code_of, take_and_die


@pytest.fixture
def journal(tmp_path):
    create_journal(tmp_path, "a")
    return Journal(folder=tmp_path, client="a")


def asked(**changes):
    fields = {
        "run": "run",
        "round": 0,
        "attempt": 1,
        "context": b"first",
        "clip": 0.5,
        "broadcast_sha256": b"b" * 32,
        "cohort": ("a", "b", "c"),
    }
    return Attempt(**fields | changes)


def release(journal, context=b"first", survivors=("a", "b", "c"), round=0, refuse_differencing=False):
    journal.release(
        context, run="run", round=round, survivors=survivors, refuse_differencing=refuse_differencing
    )


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

    for start in range(10, 70, 10):
        sets = (("a", "b", "c"), ("a", "b"), ("b", "c"))
        at_once(journal.folder, [unmask(start + i, survivors) for i, survivors in enumerate(sets)])
        with reading(journal.file) as database:
            rows = database.execute("SELECT survivors FROM rounds WHERE survivors IS NOT NULL").fetchall()
        assert len(rows) <= 1
    assert rows  # some process was granted


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


def test_a_journal_that_was_put_back_is_noticed_where_something_else_remembers(journal, tmp_path):
    journal.begin(asked())
    copy = tmp_path / "copy"
    shutil.copy2(journal.file, copy)
    release(journal)
    journal.note_ledger(run="run", events=3)
    remembered = journal.sequence()
    journal.check_not_older(sequence=remembered, run="run", ledger_events=lambda: 3)
    journal.check_not_older(run="another run", ledger_events=lambda: 0)
    with pytest.raises(
        ProtocolAborted, match="privacy ledger: has 2 events; must be >= 3: an old copy was restored"
    ):
        journal.check_not_older(sequence=remembered, run="run", ledger_events=lambda: 2)
    journal.note_ledger(run="run", events=2)  # never counts down
    with pytest.raises(ProtocolAborted, match="privacy ledger"):
        journal.check_not_older(run="run", ledger_events=lambda: 2)
    sequence_file(journal.file).write_bytes(b"%020d" % 1)  # Flower's state alone remembers
    os.replace(copy, journal.file)
    with pytest.raises(ProtocolAborted, match="journal: was written 1 times; must be >= 3: an older copy"):
        journal.check_not_older(sequence=remembered, run="run", ledger_events=lambda: 3)
    journal.check_not_older()  # nothing else remembers: it cannot be noticed


def test_a_journal_that_was_put_back_alone_is_noticed_though_flower_remembers_nothing(journal, tmp_path):
    """A server opens a new run of Flower, whose state is empty, after a site's backup was played back."""
    journal.begin(asked())
    shutil.copy2(journal.file, tmp_path / "copy")
    release(journal)
    journal.check_not_older()
    os.replace(tmp_path / "copy", journal.file)
    with pytest.raises(ProtocolAborted, match="journal: was written 1 times; must be >= 2: an older copy"):
        journal.check_not_older()
    journal.begin(
        asked(attempt=2, context=b"second")
    )  # what is written on an older copy counts for nothing
    assert sequence_file(journal.file).read_bytes() == b"%020d" % 2


def test_how_new_a_journal_is_is_on_the_disk_after_every_transaction_of_any_process(journal):
    at_once(journal.folder, [[("note_ledger", (), {"run": f"{i}", "events": 1})] for i in range(6)])
    assert journal.sequence() == newest.remembered(journal.file) == 6
    newest.note(journal.file, 4)  # a process that comes late
    assert newest.remembered(journal.file) == 6
    assert sequence_file(journal.file).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [None, b"", b"7", b"-0000000000000000001"], ids=["missing", "", "7", "-1"]
)
def test_a_journal_that_nothing_vouches_for_answers_nothing(journal, content):
    journal.begin(asked())
    file = sequence_file(journal.file)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    for call in (journal.check_not_older, lambda: release(journal)):
        with pytest.raises(
            ProtocolAborted, match=r"a\.sequence: cannot be used: .* older copy: put it back"
        ):
            call()


def test_a_new_journal_does_not_take_the_place_of_one_that_was_deleted(journal):
    journal.begin(asked())
    journal.file.unlink()
    create_journal(journal.folder, "a")
    with pytest.raises(ProtocolAborted, match="journal: was written 0 times; must be >= 1: an older copy"):
        journal.check_not_older()


def test_a_new_key_keeps_what_the_old_one_agreed_to(journal, tmp_path):
    """A new journal that knew nothing would agree to a second run of a job, or unmask other survivors."""
    journal.agree(policy=b"p", seed=0, run="run", roster_sha256=b"r")
    journal.begin(asked())
    release(journal)
    journal.note_ledger(run="run", events=3)
    newer = tmp_path / "newer"
    newer.mkdir()
    create_journal(newer, "a")
    renewed = Journal(folder=newer, client="a")
    renewed.note_ledger(run="run", events=1)
    for _ in range(2):  # a renewal that was cut short is done again
        carry_promises(journal.file, renewed.file)
    with pytest.raises(
        ProtocolAborted, match="run other: must be run, to which this policy's seed 0 is bound"
    ):
        renewed.agree(policy=b"p", seed=0, run="other", roster_sha256=b"r")
    with pytest.raises(ProtocolAborted, match="survivors"):
        renewed.check_survivors(run="run", round=0, survivors=("a", "b"), refuse_differencing=False)
    with pytest.raises(ProtocolAborted, match="has 2 events; must be >= 3"):
        renewed.check_not_older(run="run", ledger_events=lambda: 2)


def test_a_key_whose_journal_is_missing_answers_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.journal: cannot be read: .* restore it, or make a new key"):
        Journal(folder=tmp_path, client="a")


def test_a_journal_is_its_owners_alone_and_never_overwritten(tmp_path):
    file = create_journal(tmp_path, "a")
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.sequence"]
    with pytest.raises(ConfigError, match="is there already; a journal is never overwritten"):
        create_journal(tmp_path, "a")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 640; must be 600"):
        Journal(folder=tmp_path, client="a")
    with pytest.raises(ConfigError, match="cannot be written"):
        create_journal(tmp_path / "none", "a")
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.sequence"]


def test_a_database_in_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none/a\.journal: cannot be written"):
        create_database(tmp_path / "none" / "a.journal", (), ("SELECT ?", (1,)), what="a journal")


def test_what_a_killed_process_of_the_same_number_left_is_not_taken_for_a_journal(tmp_path):
    """In a container process numbers return after each start."""
    left = (tmp_path / f"a.{os.getpid()}.partial", tmp_path / ".partial-left")
    for file in left:
        file.touch()
    assert create_journal(tmp_path, "a").exists()
    assert all(file.exists() for file in left)


def test_another_clients_journal_and_one_of_another_version_are_refused(tmp_path):
    create_journal(tmp_path, "a").rename(journal_file(tmp_path, "b"))
    with pytest.raises(ConfigError, match="is not the journal of b"):
        Journal(folder=tmp_path, client="b")


def test_a_damaged_journal_ends_the_attempt_and_not_the_secret(journal):
    raw = bytearray(journal.file.read_bytes())
    raw[:100] = bytes(100)
    journal.file.write_bytes(raw)
    with pytest.raises(ProtocolAborted, match="cannot be used: file is not a database; what was answered"):
        journal.begin(asked())
    with pytest.raises(ProtocolAborted, match="cannot be used"):
        Journal(folder=journal.folder, client="a")


def test_who_watches_is_told_how_far_the_newest_run_is_and_changes_nothing(journal):
    assert answered(journal) is None
    journal.begin(asked())
    journal.put(b"first", {})
    journal.take("mask")
    release(journal, survivors=("a", "b"))
    journal.begin(asked(round=1, context=b"second"))
    before = journal.file.read_bytes()
    assert answered(journal) == Answered(round=1, opened=1, cohort=3, complete=False)
    assert journal.file.read_bytes() == before
    journal.begin(asked(run="another", context=b"third", cohort=("a", "b", "c", "d")))
    assert answered(journal) == Answered(round=0, opened=0, cohort=4, complete=False)


@pytest.mark.parametrize(
    "damage", ["DELETE FROM rounds", "UPDATE rounds SET cohort = 'x'", "UPDATE rounds SET cohort = '7'"]
)
def test_who_watches_a_journal_with_a_damaged_round_is_told_so(journal, damage):
    journal.begin(asked())
    with writing(journal.file) as database:
        database.execute(damage)
    with pytest.raises(DataError, match="round 0 of its newest run is damaged"):
        answered(journal)
