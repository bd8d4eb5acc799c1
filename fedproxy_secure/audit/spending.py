"""What a run's log says that a seed spent of its clients' privacy, beside the ledgers in the run's folder.

The clients of a run on one machine keep their ledgers in the seed's folder. Whoever deletes that folder and
trains again has released two trainings on the same records, but the new ledgers know only one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG, FEDERATION, PRIVACY, PRIVACY_LEDGER, seed_folder

ROUND = "round"  # the event
ADDS_UP = "with private training choose another --out, and add the epsilons"


def spends_of(folder: Path, seed: int, number: int) -> dict[str, list[Any]]:
    """Return each client's events in its ledger for a round; a round that was paid for twice has two.

    Returns {} without differential privacy, or if `privacy.ledger` names another folder.
    """
    return {
        client: events
        for client, lines in _ledgers(folder, seed).items()
        if (events := [line["event"] for line in lines if line.get("round") == number])
    }


def has_spent(entries: Sequence[Entry], seed: object) -> bool:
    """Return whether the log has a round of a seed for which a client paid."""
    return bool(_paid(entries, seed))


def check_ledgers(folder: Path, entries: Sequence[Entry], seed: int) -> None:
    """Raise `AuditError` if the log says that a client paid for a round, but its ledger does not."""
    in_ledgers = {
        (client, line.get("round")) for client, lines in _ledgers(folder, seed).items() for line in lines
    }
    if missing := sorted(_paid(entries, seed) - in_ledgers):
        client, number = missing[0]
        raise AuditError(
            f"{seed_folder(seed)}: {AUDIT_LOG} says that {client} paid for round {number}, which its "
            f"ledger in the seed's folder does not have; put the folder back; {ADDS_UP}"
        )


def _paid(entries: Sequence[Entry], seed: object) -> set[tuple[str, int]]:
    paid = set()
    for entry in entries:
        number, spends = entry.body.get("round"), entry.body.get("spends")
        # a log may be damaged, or somebody else's
        if entry.event == ROUND and entry.body.get("seed") == seed and type(number) is int:
            paid |= {(str(client), number) for client in (spends if isinstance(spends, dict) else ())}
    return paid


def _ledgers(folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    ledgers = RunFolder(path=folder / seed_folder(seed) / FEDERATION / PRIVACY)
    files = sorted(ledgers.path.glob(f"*{PRIVACY_LEDGER}"))
    return {file.name.removesuffix(PRIVACY_LEDGER): ledgers.read_jsonl(file.name) for file in files}
