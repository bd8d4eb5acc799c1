"""A client's own state in a transcript: its records, its updates, and which records each update used.

    records.safetensors   `train` and `holdout`: all tokens in a row, where each record ends, and where its
                          response starts
    canaries.json         prompt, secret and repeats of each canary
    round-0.safetensors   `update` float32 [d], and `used` int64 [n]: the training records drawn, in order

If an adversary has corrupted the client, this is part of its view. For all other clients it is the
**truth** that guesses are scored against. Folders are 0700 and files 0600, as in the whole transcript.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.data.planted import Canary
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.artifacts import private_folder, write_bytes
from fedproxy_secure.runtime.untrusted import read_json

CLIENTS = "clients"


@dataclass(frozen=True, kw_only=True)
class PrivateRound:
    """One client's round: its update, float32 [d], and the indices of the records it drew, int64 [n]."""

    update: np.ndarray
    used: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PrivateState:
    """What one client held in a recorded run: its records, its canaries, and each round's training.

    `train` ends with the canaries, each as often as it is repeated.
    """

    client: str
    train: tuple[Encoded, ...]
    holdout: tuple[Encoded, ...]
    canaries: tuple[Canary, ...]
    rounds: Mapping[int, PrivateRound]

    @property
    def own_records(self) -> tuple[Encoded, ...]:
        """The training records without the canaries; their indices are those in `train`."""
        return self.train[: len(self.train) - sum(c.repeats for c in self.canaries)]

    def drawn(self, *rounds: int) -> np.ndarray:
        """Return which training records were drawn in these rounds, or in any: indices, int64, sorted."""
        used = [self.rounds[r].used for r in rounds or self.rounds]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *used]))

    def own_drawn(self, *rounds: int) -> np.ndarray:
        """Return the same as `drawn`, without the canaries."""
        drawn = self.drawn(*rounds)
        return drawn[drawn < len(self.own_records)]


def write_records(
    folder: Path,
    client: str,
    *,
    train: Sequence[Encoded],
    holdout: Sequence[Encoded],
    canaries: Sequence[Canary],
) -> None:
    """Write the client's state before the first round."""
    client_folder = _place(folder, client)
    arrays = {**_packed("train", train), **_packed("holdout", holdout)}
    write_bytes(client_folder / "records.safetensors", save(arrays), private=True)
    text = json.dumps([asdict(c) for c in canaries], indent=2)
    write_bytes(client_folder / "canaries.json", text.encode(), private=True)


def write_round(folder: Path, client: str, round_number: int, update: np.ndarray, used: list[int]) -> None:
    """Write the client's update in a round, and the records that it drew."""
    data = save({"update": update, "used": np.array(used, dtype=np.int64)})
    write_bytes(_place(folder, client) / f"round-{round_number}.safetensors", data, private=True)


def forget_rounds(folder: Path, from_round: int) -> None:
    """Delete the clients' rounds from `from_round` on, which run again, perhaps without some clients."""
    for file in (folder / CLIENTS).glob("*/round-*.safetensors"):
        if _round_of(file) >= from_round:
            file.unlink()


def has_records(folder: Path, client: str) -> bool:
    """Return whether the client's records are already written."""
    return (folder / CLIENTS / client / "canaries.json").exists()


def client_names(transcript: Path) -> tuple[str, ...]:
    """Return the names of all clients of a recorded run, sorted.

    Raises `RunFolderError` if the run was not recorded.
    """
    folder = transcript / CLIENTS
    if not folder.is_dir():
        raise RunFolderError(f"{transcript}: holds no transcript; run with --record")
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))


def read_private(folder: Path, client: str) -> PrivateState:
    """Read the state of `client`. Raises `RunFolderError` if it is missing or damaged."""
    client_folder = folder / CLIENTS / client
    try:
        records = load_file(client_folder / "records.safetensors")
        canaries = read_json(client_folder / "canaries.json")
        rounds = {}
        for file in sorted(client_folder.glob("round-*.safetensors"), key=_round_of):
            rounds[_round_of(file)] = PrivateRound(**load_file(file))
        return PrivateState(
            client=client,
            train=_unpacked("train", records),
            holdout=_unpacked("holdout", records),
            canaries=tuple(Canary(**c) for c in canaries),
            rounds=rounds,
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise RunFolderError(f"{client_folder}: is not a client's state: {error}") from error


def _place(folder: Path, client: str) -> Path:
    """Return the client's folder below a transcript; create it and its parents if they are missing."""
    private_folder(folder)
    private_folder(folder / CLIENTS)
    return private_folder(folder / CLIENTS / client)


def _round_of(file: Path) -> int:
    return int(file.stem.removeprefix("round-"))


def _packed(name: str, items: Sequence[Encoded]) -> dict[str, np.ndarray]:
    flat = [token for item in items for token in item.ids]
    return {
        f"{name}_ids": np.array(flat, dtype=np.int64),
        f"{name}_ends": np.cumsum([len(item.ids) for item in items], dtype=np.int64),
        f"{name}_responses": np.array([item.response_start for item in items], dtype=np.int64),
    }


def _unpacked(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[Encoded, ...]:
    ids, ends = arrays[f"{name}_ids"].tolist(), arrays[f"{name}_ends"].tolist()
    starts = [0, *ends[:-1]] if ends else []
    responses = arrays[f"{name}_responses"].tolist()
    return tuple(
        Encoded(ids=tuple(ids[a:b]), response_start=r)
        for a, b, r in zip(starts, ends, responses, strict=True)
    )
