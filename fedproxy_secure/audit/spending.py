"""What a run's log says that a seed spent of its clients' privacy, beside the ledgers in the run's folder.

The clients of a run on one machine keep their ledgers in the seed's folder. Whoever deletes that folder and
trains again has released two trainings on the same records, but the new ledgers know only one of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG, FEDERATION, PRIVACY, PRIVACY_LEDGER, seed_folder

ROUND = "round"  # the event
_Events = defaultdict[tuple[str, Any], Counter[str]]  # (client, round) -> how often each event was paid for
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
    """Raise `AuditError` unless ledgers have each event that the log says was paid for, or more."""
    in_ledgers: _Events = defaultdict(Counter)
    for client, lines in _ledgers(folder, seed).items():
        for line in lines:
            in_ledgers[client, line.get("round")][_text(line.get("event"))] += 1
    for (client, number), paid in sorted(_paid(entries, seed).items()):
        if (client, number) not in in_ledgers or paid - in_ledgers[client, number]:
            raise AuditError(
                f"{seed_folder(seed)}: {AUDIT_LOG} says that {client} paid for round {number}, which its "
                f"ledger in the seed's folder does not have so; put the folder back; {ADDS_UP}"
            )


def _paid(entries: Sequence[Entry], seed: object) -> _Events:
    """Return what was paid by (client, round); of a round logged twice, the most of each event."""
    paid: _Events = defaultdict(Counter)
    for entry in entries:
        number, spends = entry.body.get("round"), entry.body.get("spends")
        # a log may be damaged, or somebody else's
        if entry.event == ROUND and entry.body.get("seed") == seed and type(number) is int:
            for client, events in (spends if isinstance(spends, dict) else {}).items():
                paid[str(client), number] |= Counter(map(_text, events if isinstance(events, list) else ()))
    return paid


def _text(event: Any) -> str:
    """Return one text for equal events, which are plain values."""
    return json.dumps(event, sort_keys=True)


def _ledgers(folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    ledgers = RunFolder(path=folder / seed_folder(seed) / FEDERATION / PRIVACY)
    files = sorted(ledgers.path.glob(f"*{PRIVACY_LEDGER}"))
    return {file.name.removesuffix(PRIVACY_LEDGER): ledgers.read_jsonl(file.name) for file in files}
