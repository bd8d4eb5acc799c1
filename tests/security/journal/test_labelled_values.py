"""What another package's protection keeps between two steps is granted once, in any number of processes."""

import threading

import pytest

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.once import keep_once, take_once


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
    keep_once(journal, run="r", label="round 0", value=b"sealed")
    with pytest.raises(ProtocolAborted, match="round 0: was answered before"):
        keep_once(journal, run="r", label="round 0", value=b"other")
    assert take_once(journal, run="r", label="round 0") == b"sealed"
    with pytest.raises(ProtocolAborted, match="round 0: was taken before; each step runs once"):
        take_once(journal, run="r", label="round 0")
    with pytest.raises(ProtocolAborted, match="round 0: was answered before"):
        keep_once(journal, run="r", label="round 0", value=b"again")
    assert b"sealed" not in journal.file.read_bytes()


def test_nothing_is_taken_from_another_run_or_label(journal):
    keep_once(journal, run="r", label="round 0", value=b"sealed")
    for run, label in (("s", "round 0"), ("r", "round 1")):
        with pytest.raises(ProtocolAborted, match=f"{label}: nothing is kept under it"):
            take_once(journal, run=run, label=label)


def test_of_many_that_ask_at_once_one_is_granted(journal):
    kept = at_once(6, lambda: keep_once(journal, run="r", label="round 0", value=b"sealed"))
    assert sum(answer is None for answer in kept) == 1
    taken = at_once(6, lambda: take_once(journal, run="r", label="round 0"))
    assert sorted(answer == b"sealed" for answer in taken) == [False] * 5 + [True]


def test_a_journal_counts_each_grant_so_that_an_older_copy_is_noticed(journal):
    before = journal.sequence()
    keep_once(journal, run="r", label="round 0", value=b"sealed")
    take_once(journal, run="r", label="round 0")
    assert journal.sequence() == before + 2
