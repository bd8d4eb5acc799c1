"""Record which clients' training failed in a simulation, where one machine plays everybody.

Under client-level privacy a failure is zeros with noise to everybody else (`noise.trained_or_zero`).
Whoever runs all clients of a simulation already sees the failures, and without a record would take an
untrained model for a result. Only the log names failures, no report does: what is published stays within
epsilon, except that a run ends if training fails at all clients. The files lie beside the privacy ledgers,
which these clients share, until the seed is finished: its audit log must not name them. A client on a
machine of its own writes none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.errors import TrainingError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.runtime.artifacts import RunFolder, private_folder

log = logging.getLogger(__name__)
SUFFIX = ".failed.jsonl"


def failed_files(ledgers: Path) -> list[Path]:
    """Return the files in a folder of privacy ledgers that record failed training."""
    return sorted(ledgers.glob(f"*{SUFFIX}"))


def forget_failed(job: FederationJob) -> None:
    """Remove the files of an earlier call; its clients had other keys, so all rounds are trained again."""
    if job.privacy.ledger is not None:
        for file in failed_files(Path(job.privacy.ledger)):
            file.unlink(missing_ok=True)


def note_failed(job: FederationJob, client: str, round: int, why: str) -> None:
    """Record that training failed at a client. Raises `RunFolderError` if it cannot be written."""
    if job.privacy.ledger is None:
        return
    folder = RunFolder(path=private_folder(Path(job.privacy.ledger)), private=True)
    line = {"run": job.agreed_sha256().hex(), "round": round, "why": why}
    folder.append_jsonl(f"{client}{SUFFIX}", line)


def check_failed(job: FederationJob, round: int, clients: Sequence[str]) -> None:
    """Log at how many of a round's clients training failed, if at any.

    Raises `TrainingError` if it failed at all of them: the round's sum is then only noise.
    """
    if job.privacy.ledger is None:
        return
    folder, run = RunFolder(path=Path(job.privacy.ledger)), job.agreed_sha256().hex()
    failed = {
        client: str(line["why"])
        for client in clients
        for line in folder.read_jsonl(f"{client}{SUFFIX}")
        if (line["run"], line["round"]) == (run, round)
    }
    if not failed:
        return
    first, why = next(iter(failed.items()))
    if len(failed) == len(clients):
        raise TrainingError(
            f"round {round}: training failed at all {len(clients)} clients, so the sum is only noise; "
            f"lower local.learning_rate, or see the clients' log. The round's epsilon is spent: to resume, "
            f"privacy.max_epsilon must allow another round. {first}: {why}"
        )
    log.warning(
        "round %d: training failed at %d of %d clients, which sent zeros instead; %s: %s",
        round,
        len(failed),
        len(clients),
        first,
        why,
    )
