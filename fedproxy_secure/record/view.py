"""What corrupted parties sent, received or held in a recorded run, and nothing else.

A threat model says who is corrupted; `view` reads the transcript and keeps what those parties saw. Attacks
take a view, never the run. Truth, the state of honest parties, is read by the scorer alone.

The settings of a run are public to server and clients (the server sends them), but for where records, keys
and ledgers lie. A client also gets the final adapter, as the tuned proxy, though no message brings it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedproxy_secure.config import (
    AdapterConfig,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.record.private import CLIENTS, PrivateState, read_private
from fedproxy_secure.record.transcript import SERVER, STATE, Event, read_events
from fedproxy_secure.untrusted import parse_json

TRANSCRIPT = "transcript"
SETUP = "query.setup"  # goes to every client before any has a name
# messages and the value that says who is in the round: the invited, then those left, then those fused
COHORT_NAMED_BY = {
    "train": "terms/cohort",
    "query.confirm": "protocol/clients",
    STATE: "clients",
}


class Corruption(Protocol):
    """What `view` needs of a threat model."""

    @property
    def name(self) -> str:
        """For the report."""

    @property
    def server(self) -> bool:
        """Holds the server's state and the LLM, and all messages."""

    @property
    def clients(self) -> int:
        """How many clients are corrupted: the first in alphabetical order."""

    @property
    def network(self) -> bool:
        """Reads all messages; there is no TLS."""

    @property
    def api(self) -> bool:
        """May query the fused LLM; whoever is a client may, too."""

    @property
    def active(self) -> bool:
        """May deviate from the protocol."""


@dataclass(frozen=True, kw_only=True)
class PublicSettings:
    """What server and clients know of the run. `d`: numbers in an update."""

    seed: int
    d: int
    adapter: AdapterConfig
    local: LocalConfig
    fusion: FusionConfig
    federate: FederateConfig
    protect: ProtectConfig
    privacy: PrivacyConfig
    max_tokens: int
    blocks: tuple[int, ...] | None
    clients: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What a protected round revealed: sums over `clients`, by segment (`update` float32 [d], ...)."""

    clients: tuple[str, ...]
    segments: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class View:
    """A corrupted set's knowledge. Vectors are float32 [d]; a mapping that lacks a key was not seen.

    `adapters`: the adapter broadcast in each round, and after the last one the final one. `updates`:
    (round, client) -> that client's update, honest clients only. `sums`: what protected rounds revealed.
    `cohorts`: who was in a round, as far as seen. `masked`: (round, client) -> packed ring words, uint8,
    honest clients only. `own`: corrupted clients' state. `proxy`, `llm`: model folders it holds; `api`: one
    it may query only.
    """

    threat_model: str
    settings: PublicSettings | None = None
    adapters: Mapping[int, np.ndarray] = field(default_factory=dict)
    updates: Mapping[tuple[int, str], np.ndarray] = field(default_factory=dict)
    sums: Mapping[int, Sums] = field(default_factory=dict)
    cohorts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    masked: Mapping[tuple[int, str], np.ndarray] = field(default_factory=dict)
    own: Mapping[str, PrivateState] = field(default_factory=dict)
    proxy: Path | None = None
    llm: Path | str | None = None
    api: Path | None = None
    active: bool = False

    @property
    def surfaces(self) -> frozenset[str]:
        """Which of IND, AGG, MR, MOD, API, ACT this view has anything of (see `attacks.base`)."""
        found = {
            "IND": bool(self.updates),
            "AGG": bool(self.sums) or len(self.adapters) > 1,
            "MR": len(self.sums) > 1 or len(self.adapters) > 2,
            "MOD": bool(self.adapters) and self.proxy is not None,
            "API": self.api is not None,
            "ACT": self.active,
        }
        return frozenset(name for name, there in found.items() if there)

    def aggregate(self, round_number: int) -> np.ndarray | None:
        """The mean update of a round as far as this view knows it, or what the round moved, or None.

        The server under protection reads the mean from the sum, the server without it takes it itself;
        everybody else has the difference between two broadcasts, over the server's learning rate.
        """
        if round_number in self.sums:
            sums = self.sums[round_number]
            return (sums.segments["update"] / len(sums.clients)).astype(np.float32)
        seen = [u for (r, _), u in self.updates.items() if r == round_number]
        if seen:
            return np.asarray(np.stack(seen).mean(axis=0))
        if {round_number, round_number + 1} <= set(self.adapters) and self.settings is not None:
            step = self.adapters[round_number + 1] - self.adapters[round_number]
            scaled: np.ndarray = step / np.float32(self.settings.fusion.server_learning_rate)
            return scaled
        return None


def client_names(transcript: Path) -> tuple[str, ...]:
    """All clients of a recorded run, sorted."""
    place = transcript / CLIENTS
    if not place.is_dir():
        raise RunFolderError(f"{transcript}: holds no transcript; run with --record")
    return tuple(sorted(p.name for p in place.iterdir() if p.is_dir()))


def view(seed_folder: Path, corrupted: Corruption, *, llm: str | None = None) -> View:
    """What `corrupted` saw of the run whose seed's folder this is (`DIR/seed-0`).

    Args:
        llm: the owner's model, for views of the server.

    Raises `RunFolderError` if the run was not recorded.
    """
    transcript = seed_folder / "federation" / TRANSCRIPT
    names = client_names(transcript)
    if corrupted.clients > len(names):
        raise RunFolderError(
            f"{corrupted.name}: corrupts {corrupted.clients} clients; this run has {len(names)}"
        )
    bad = names[: corrupted.clients]
    everything = corrupted.server or corrupted.network
    if not (everything or bad):  # an outsider
        return View(threat_model=corrupted.name, api=_folder(seed_folder / "fused"))
    raw: str | None = None
    adapters: dict[int, np.ndarray] = {}
    updates: dict[tuple[int, str], np.ndarray] = {}
    masked: dict[tuple[int, str], np.ndarray] = {}
    sums: dict[int, Sums] = {}
    cohorts: dict[int, tuple[str, ...]] = {}
    last: Event | None = None
    for event in read_events(transcript):
        if event.kind == STATE:
            last = event
        if not (everything or {event.sender, event.receiver} & set(bad) or event.kind == SETUP):
            continue
        arrays = event.arrays()
        if "vectors/adapter" in arrays:
            adapters[event.round] = arrays["vectors/adapter"]
        if event.sender not in (SERVER, *bad):
            if "vectors/update" in arrays:
                updates[event.round, event.sender] = arrays["vectors/update"]
            if "protocol/masked" in arrays:
                masked[event.round, event.sender] = arrays["protocol/masked"]
        named = event.values.get(COHORT_NAMED_BY.get(event.kind, ""))
        if named is not None:
            cohorts[event.round] = tuple(named)
        if event.kind == STATE:
            adapters[event.round + 1] = arrays["adapter"]
            segments = {k.removeprefix("sums/"): v for k, v in arrays.items() if k.startswith("sums/")}
            if segments:
                sums[event.round] = Sums(clients=cohorts[event.round], segments=segments)
        raw = raw or event.values.get("job/json")
    if last is not None and raw is not None and last.round + 1 == parse_json(raw)["federate"]["rounds"]:
        adapters[last.round + 1] = last.arrays()["adapter"]
    return View(
        threat_model=corrupted.name,
        settings=None if raw is None else _settings(raw, names, adapters),
        adapters=adapters,
        updates=updates,
        sums=sums,
        cohorts=cohorts,
        masked=masked,
        own={name: read_private(transcript, name) for name in bad},
        proxy=_folder(seed_folder / "proxy"),
        llm=llm if corrupted.server else None,
        api=_folder(seed_folder / "fused") if corrupted.api or bad else None,
        active=corrupted.active,
    )


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _settings(text: str, clients: tuple[str, ...], adapters: Mapping[int, np.ndarray]) -> PublicSettings:
    raw = parse_json(text)
    protect = ProtectConfig.model_validate(raw["protect"])
    privacy = PrivacyConfig.model_validate(raw["privacy"])
    return PublicSettings(
        seed=raw["seed"],
        d=len(next(iter(adapters.values()))) if adapters else 0,
        adapter=AdapterConfig.model_validate(raw["adapter"]),
        local=LocalConfig.model_validate(raw["local"]),
        fusion=FusionConfig.model_validate(raw["fusion"]),
        federate=FederateConfig.model_validate(raw["federate"]),
        protect=protect.model_copy(update={"keys": None}),
        privacy=privacy.model_copy(update={"ledger": None}),
        max_tokens=raw["max_tokens"],
        blocks=None if raw["blocks"] is None else tuple(raw["blocks"]),
        clients=clients,
    )
