"""A client answers nothing with a journal that was restored, deleted, damaged or made elsewhere."""

import os
import shutil

import pytest

from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.journal import newest
from fedproxy_secure.journal.answered import Answered, answered
from fedproxy_secure.journal.newest import sequence_file
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import (
    carry_promises,
    create_database,
    create_journal,
    journal_file,
    writing,
)
from tests.support.journal_players import at_once
from tests.support.journal_steps import asked, release


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
