"""Every error this package raises on purpose.

FedProxyError                one line: the value, the rule, the remedy; exit code 2, or 75 if `passing`
|-- ConfigError              a setting is unknown, of the wrong type or out of range
|-- DataError                records, labels or files that cannot be used
|   `-- NotSetUp             a client that was started again has forgotten the job; set-up brings it back
|-- ModelError               such as a model without decoder blocks, or a tokenizer without an end token
|-- TrainingError            the loss stopped being a number; names the client and the step
|-- RoundAborted             too few clients answered; the last good round is kept; `passing`
|   `-- ProtocolAborted      secure aggregation met a failed check; nothing of the round is revealed
|-- PrivacyError             a step would spend more privacy than `privacy.max_epsilon`
|-- QueryRefused             a customer's query would exceed what the owner's API grants; it is not answered
|-- RunFolderError           a run folder that belongs to another config, or cannot be written
|   `-- FolderInUse          another process holds the folder
`-- AuditError               the audit log, or a file in it, is not as it was written; names the line

Stopped                      no error: work is ended from outside; not an `Exception`
"""

from __future__ import annotations


class FedProxyError(Exception):
    """Base of all errors raised on purpose. The message is one line: the value, the rule, the remedy."""

    passing = False  # whether the same call may succeed later although nobody repairs anything


class Stopped(BaseException):
    """Work is ended from outside, such as an attack whose seconds are over; no input causes it.

    It is no `Exception`, and code that takes every error for one of its input must raise it again.
    """


class ConfigError(FedProxyError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FedProxyError):
    """Records, labels or files that cannot be used."""


class NotSetUp(DataError):
    """A client was asked before it was set up, or was started again since; set-up brings it back."""


class ModelError(FedProxyError):
    """A model that this pipeline cannot compress, tune or plug back into."""


class TrainingError(FedProxyError):
    """Training produced a loss that is not a number."""


class RoundAborted(FedProxyError):
    """A round ended with fewer clients than the minimum. Nothing of it is kept."""

    passing = True


class ProtocolAborted(RoundAborted):
    """Secure aggregation stopped because a check failed. No partial result exists."""

    passing = False  # a client may lie, or its journal may have been rolled back: an operator must look


class PrivacyError(FedProxyError):
    """A step would spend more privacy than allowed. It was not taken, and nothing was sent."""


class QueryRefused(FedProxyError):
    """A customer's query exceeds what the owner's API grants. Nothing of it was answered or counted."""


class RunFolderError(FedProxyError):
    """A run folder belongs to another config, is damaged, or cannot be written."""


class FolderInUse(RunFolderError):
    """Another process holds a folder, or has not ended in it yet."""

    passing = True


class AuditError(FedProxyError):
    """The audit log of a run, or a file that it vouches for, is not as it was written."""


def reason_of(error: BaseException) -> str:
    r"""Return what a library's error says, in one line: its first line, or all if that begins a list.

    >>> reason_of(ValueError("no such file\nlong advice")), reason_of(ValueError("one of: \n(1) a"))
    ('no such file', 'one of: (1) a')
    """
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    if first.rstrip().endswith(":"):
        return " ".join(line.strip() for line in (first, *more))
    return first
