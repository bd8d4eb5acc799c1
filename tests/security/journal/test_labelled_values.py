"""What another package's protection keeps between two steps is taken once, whoever asks."""

import threading

import pytest

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.once import keep_until_taken, take_once
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import carry_promises, create_journal


def at_once(count, call):
    """Call `call` in `count` threads at the same moment; return what each returned or raised."""
    results, barrier = [], threading.Barrier(count)

    def one():
        barrier.wait()
        try:
            results.append(call())
        except ProtocolAborted as error:
            results.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_value_is_taken_once_and_its_label_stays_used(journal):
    keep_until_taken(journal, run="r", label="round 0", value=b"of an aborted attempt")
    keep_until_taken(journal, run="r", label="round 0", value=b"sealed")
    assert take_once(journal, run="r", label="round 0") == b"sealed"
    with pytest.raises(ProtocolAborted, match="round 0: was taken before; each step runs once"):
        take_once(journal, run="r", label="round 0")
    with pytest.raises(ProtocolAborted, match="round 0: was taken before"):
        keep_until_taken(journal, run="r", label="round 0", value=b"again")
    assert b"aborted" not in journal.file.read_bytes()
    assert b"sealed" not in journal.file.read_bytes()


def test_nothing_is_taken_from_another_run_or_label(journal):
    keep_until_taken(journal, run="r", label="round 0", value=b"sealed")
    for run, label in (("s", "round 0"), ("r", "round 1")):
        with pytest.raises(ProtocolAborted, match=f"{label}: nothing is kept under it"):
            take_once(journal, run=run, label=label)


def test_of_many_that_ask_at_once_one_takes_the_value(journal):
    keep_until_taken(journal, run="r", label="round 0", value=b"sealed")
    taken = at_once(6, lambda: take_once(journal, run="r", label="round 0"))
    assert sorted(answer == b"sealed" for answer in taken) == [False] * 5 + [True]


def test_a_journal_counts_each_grant_so_that_an_older_copy_is_noticed(journal):
    before = journal.sequence()
    keep_until_taken(journal, run="r", label="round 0", value=b"sealed")
    take_once(journal, run="r", label="round 0")
    assert journal.sequence() == before + 2


def test_a_new_key_cannot_use_the_labels_of_the_old_one_again(journal, tmp_path):
    (tmp_path / "new").mkdir()
    create_journal(tmp_path / "new", "a")
    new = Journal(folder=tmp_path / "new", client="a")
    keep_until_taken(journal, run="r", label="round 0", value=b"sealed")
    carry_promises(journal.file, new.file)
    with pytest.raises(ProtocolAborted, match="round 0: was taken before"):
        keep_until_taken(new, run="r", label="round 0", value=b"again")
    keep_until_taken(new, run="r", label="round 1", value=b"sealed")
