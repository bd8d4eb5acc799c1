"""What a client of another package's protection keeps between two steps, each of which it takes once.

Flower hands a client several messages at once, each with its own copy of the context's state. Whatever must
happen once, such as answering a step with a secret, therefore belongs into the client's journal. A
protection with `needs_keys` calls `keep` in the step that makes the secret, and `take` in the step that
uses it, each before it answers.
"""

from __future__ import annotations

from fedproxy_secure.journal.once import keep_until_taken, take_once
from fedproxy_secure.protect.base import ClientRequest
from fedproxy_secure.protect.secure_sum import attempt


def keep(asked: ClientRequest, label: str, secret: bytes) -> None:
    """Keep bytes for a later step, sealed with the client's key, under a label.

    What was kept under the label and not taken is replaced, because an aborted round is asked for again. A
    label whose value was taken can never be used again in the run, so put the round into the label.

    Raises `ProtocolAborted` if the label's value was taken, and `ConfigError` if the client has no key.
    """
    identity, _ = attempt.own_keys(asked.job, asked.name)
    journal = attempt.open_journal(asked.job, asked.name, asked.context)
    sealed = attempt.seal(identity, secret, label)
    keep_until_taken(journal, run=_run(asked), label=label, value=sealed)
    attempt.note_written(asked.context, journal)


def take(asked: ClientRequest, label: str) -> bytes:
    """Return what was kept under a label, and delete it from the journal.

    Raises `ProtocolAborted` if nothing was kept under the label, or if it was taken before, and
    `ConfigError` if the client has no key.
    """
    identity, _ = attempt.own_keys(asked.job, asked.name)
    journal = attempt.open_journal(asked.job, asked.name, asked.context)
    sealed = take_once(journal, run=_run(asked), label=label)
    attempt.note_written(asked.context, journal)
    return attempt.unseal(identity, sealed, label)


def _run(asked: ClientRequest) -> str:
    return asked.job.agreed_sha256().hex()
