"""Steps that a journal is asked for."""

from fedproxy_secure.journal.rounds import Attempt


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
