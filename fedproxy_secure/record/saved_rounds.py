"""The files in a run's folder from which a federation is resumed after its last finished round.

    state.safetensors   the server's state after the last finished round
    rounds.jsonl        a line for each finished round: who took part, losses, seconds
    ledger.jsonl        the leakage ledger (`record.leakage`), with aborted rounds
    unmasked.json       the clients for whom a round was about to be unmasked

A round's lines are written before its state. A round with lines but no state did not finish: `resumed`
drops its line in `rounds.jsonl` and keeps its lines in the ledger, marked as aborted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import LEAKAGE, ROUNDS
from fedproxy_secure.runtime.untrusted import read_json

STATE = "state.safetensors"
UNMASKED = "unmasked.json"


def resumed(folder: RunFolder, initial: ServerState) -> ServerState:
    """Return the state saved in a run's folder, or the initial one; make both JSONL files agree with it.

    Guarantees: each file is replaced atomically.

    Raises `RunFolderError` if the state is another run's, or a file cannot be read or written.
    """
    state = initial
    if (folder.path / STATE).exists():
        state = ServerState.load(folder.path / STATE)
        if state.adapter.shape != initial.adapter.shape:
            raise RunFolderError(
                f"saved adapter of {state.adapter.size} numbers: this run's has {initial.adapter.size}"
            )
    lines, ledger_lines = folder.read_jsonl(ROUNDS), folder.read_jsonl(LEAKAGE)
    _replace(folder, ROUNDS, lines, [line for line in lines if line["round"] < state.round])
    marked = [line if line["round"] < state.round else {**line, "aborted": True} for line in ledger_lines]
    _replace(folder, LEAKAGE, ledger_lines, marked)
    return state


def _replace(
    folder: RunFolder, name: str, before: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]
) -> None:
    """Write a JSONL file again if its lines have changed."""
    if lines != before:
        folder.write_text(name, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def note_unmasked(folder: RunFolder | None, number: int, names: Sequence[str]) -> None:
    """Write the clients for whom a round will be unmasked. Raises `RunFolderError` if that fails."""
    if folder is not None:
        folder.write_json(UNMASKED, {"round": number, "clients": list(names)})


def unmasked_for(folder: RunFolder | None, number: int) -> list[str] | None:
    """Return the clients for whom an earlier attempt was to unmask the round, or None if there was none.

    Clients unmask a round for no other set, because the difference of two sums would reveal the clients
    that are in only one of them.

    Raises `RunFolderError` if the file cannot be read or is damaged.
    """
    if folder is None or not (folder.path / UNMASKED).exists():
        return None
    path = folder.path / UNMASKED
    try:
        saved = read_json(path)
        round_number, names = saved["round"], saved["clients"]
        if not (
            isinstance(round_number, int)
            and isinstance(names, list)
            and all(isinstance(n, str) for n in names)
        ):
            raise ValueError("must have a round and names of clients")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path}: is damaged, so nobody knows for whom a round may be unmasked; put it back, or begin "
            "a new run"
        ) from error
    return names if round_number == number else None


def with_remedy(reason: str, unmasked: Sequence[str] | None, present: Sequence[str]) -> str:
    """Return why a round was aborted, with the remedy if clients of its earlier unmasking are missing."""
    missing = sorted(set(unmasked or ()) - set(present))
    if not missing:
        return reason
    return (
        f"{reason}; an earlier attempt at this round included {', '.join(missing)}, now not connected, and "
        "a round is unmasked for one set of clients only: try again when all are back, or start a new run "
        "with another seed"
    )
