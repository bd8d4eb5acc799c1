"""Record which clients' training failed in a simulation, where one machine plays everybody.

Under client-level privacy a failure is zeros with noise to everybody else (`noise.trained_or_zero`).
Whoever runs all clients of a simulation has no such secret from themselves, and would otherwise take an
untrained model for a result. The log tells them, no report does: what is published stays within epsilon,
but for the end of a run whose training all failed. The files lie beside the privacy ledgers, which these
clients share, until the seed is finished: its audit log must not name them. A client on a machine of its
own writes none.
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
    """Return the files in a folder of privacy ledgers that say whose training failed."""
    return sorted(ledgers.glob(f"*{SUFFIX}"))


def forget_failed(job: FederationJob) -> None:
    """Remove what an earlier call has left, whose clients had other keys: they train every round anew."""
    if job.privacy.ledger is not None:
        for file in failed_files(Path(job.privacy.ledger)):
            file.unlink(missing_ok=True)


def note_failed(job: FederationJob, client: str, round: int, why: str) -> None:
    """Write down that a client's training failed in a round. Raises `RunFolderError` if that fails."""
    if job.privacy.ledger is None:
        return
    folder = RunFolder(path=private_folder(Path(job.privacy.ledger)), private=True)
    line = {"run": job.agreed_sha256().hex(), "round": round, "why": why}
    folder.append_jsonl(f"{client}{SUFFIX}", line)


def check_failed(job: FederationJob, round: int, clients: Sequence[str]) -> None:
    """Say in a line of log at how many of a round's clients training failed, if it did.

    Raises `TrainingError` if it failed at all of them: the round then sums up noise alone.
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
