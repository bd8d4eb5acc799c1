"""A view: what corrupted parties sent, received, held or could decrypt in a recorded run, and nothing else.

A threat model says who is corrupted; `view` reads the transcript and keeps what those parties saw. Attacks
take a view, never the run. Only the scorer reads the truth, which is the state of honest parties.

The settings of a run are public to server and clients, because the server sends them, except for the paths
of records, keys and ledgers. The API's policy (`api` in the settings) is known to its customers. A client
also gets the final adapter, as the tuned proxy, though no message contains it. Under CKKS, whoever reads
all messages and has one client's key decrypts every update (`fedproxy_secure.record.contribution`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml

from fedproxy_secure.config import ApiConfig, cohort_size
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.federate.job import AgreedSettings, FederationJob
from fedproxy_secure.record.contribution import contributions
from fedproxy_secure.record.private import PrivateState, client_names, read_private
from fedproxy_secure.record.transcript import SERVER, STATE, Event, read_events
from fedproxy_secure.runtime.files.names import FEDERATION, FUSED, PROXY, SETTINGS_FILE, TRANSCRIPT
from fedproxy_secure.runtime.untrusted import parse_json, parse_yaml, read_bytes

SETUP = "query.setup"  # goes to every client before any has a name
ENCRYPTED = "query.mask.reply"  # brings whole updates under CKKS; other encrypted arrays are sketches
# message -> its value with clients' names: those invited, then those still in the round, then those fused
COHORT_NAMED_BY = {
    "train": "terms/cohort",
    "query.confirm": "protocol/clients",
    STATE: "clients",
}


class Corruption(Protocol):
    """What `view` reads of a threat model."""

    @property
    def name(self) -> str:
        """The name of the corrupted set, for the report."""

    @property
    def server(self) -> bool:
        """Whether the server is corrupted, with its state, the LLM, and all messages."""

    @property
    def clients(self) -> int:
        """The number of corrupted clients: the first ones in alphabetical order."""

    @property
    def network(self) -> bool:
        """Whether the adversary reads all messages, as without TLS."""

    @property
    def api(self) -> bool:
        """Whether the adversary may query the fused LLM; corrupted clients may in any case."""

    @property
    def active(self) -> bool:
        """Whether the corrupted parties may deviate from the protocol."""


class PublicSettings(AgreedSettings):
    """The settings of a run that server and clients know.

    Args:
        d: how many numbers an update has.
        clients: names of the clients.
    """

    d: int
    clients: tuple[str, ...]

    @property
    def clients_a_round(self) -> int:
        """The number of clients in a round's cohort."""
        return cohort_size(len(self.clients), self.federate.participation)


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The sums that a protected round revealed, over `clients`, by segment (`update` float32 [d], ...)."""

    clients: tuple[str, ...]
    segments: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a set of corrupted parties, "it" below, knows of a run.

    Vectors are float32 [d]. A key that is missing in a mapping was not seen.

    Args:
        threat_model: name of the threat model.
        settings: the run's public settings; None if it does not know them.
        adapters: by round, the adapter that was broadcast; after the last round, the final one.
        updates: (round, client) -> that client's update, or what it encrypted, honest clients only.
        sums: the sums that protected rounds revealed, by round.
        cohorts: the clients of each round, as far as seen.
        masked: (round, client) -> packed ring words, uint8, honest clients only.
        own: the corrupted clients' states, by name.
        proxy, llm: model folders that it holds.
        api: a model folder that it may only query.
        api_policy: what that API answers, and how often.
        active: whether it may deviate from the protocol.
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
    api_policy: ApiConfig = field(default_factory=ApiConfig)
    active: bool = False

    @property
    def open_api(self) -> Path | None:
        """The API's folder, if it returns all logits unchanged and without limit; else None."""
        return self.api if self.api_policy.open else None

    @property
    def surfaces(self) -> frozenset[str]:
        """The surfaces (IND, AGG, MR, MOD, API, ACT; see `attacks.base`) that this view has."""
        available = {
            "IND": bool(self.updates),
            "AGG": bool(self.sums) or len(self.adapters) > 1,
            "MR": len(self.sums) > 1 or len(self.adapters) > 2,
            "MOD": bool(self.adapters) and self.proxy is not None,
            "API": self.api is not None,
            "ACT": self.active,
        }
        return frozenset(name for name, is_available in available.items() if is_available)

    @property
    def has_white_box(self) -> bool:
        """Whether it has a proxy, the settings and an adapter, and can thus run the tuned model."""
        return self.proxy is not None and self.settings is not None and bool(self.adapters)

    def cohort_of(self, round_number: int) -> tuple[str, ...]:
        """Return the clients of a round as far as seen, or else all clients that it knows."""
        return self.cohorts.get(round_number, () if self.settings is None else self.settings.clients)

    def aggregate(self, round_number: int) -> np.ndarray | None:
        """Return the mean update of a round as far as this view knows it, or None.

        Under protection, the server reads the mean from the sum; without protection, it computes the mean
        of the updates. All others have the difference between two broadcasts, divided by the server's
        learning rate.
        """
        if round_number in self.sums:
            sums = self.sums[round_number]
            return (sums.segments["update"] / len(sums.clients)).astype(np.float32)
        updates = [u for (r, _), u in self.updates.items() if r == round_number]
        if updates:
            return np.asarray(np.stack(updates).mean(axis=0))
        if {round_number, round_number + 1} <= set(self.adapters) and self.settings is not None:
            step = self.adapters[round_number + 1] - self.adapters[round_number]
            scaled: np.ndarray = step / np.float32(self.settings.fusion.server_learning_rate)
            return scaled
        return None


@dataclass(kw_only=True)
class _Seen:
    """What the events read so far contain.

    Args:
        bad: names of the corrupted clients.
        job: the run's job as JSON.
        encrypted: (round, client) of the CKKS vectors of honest clients.
        adapters, updates, masked, sums, cohorts: as in `View`.
    """

    bad: tuple[str, ...]
    job: str | None = None
    adapters: dict[int, np.ndarray] = field(default_factory=dict)
    updates: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    masked: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    sums: dict[int, Sums] = field(default_factory=dict)
    cohorts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    encrypted: set[tuple[int, str]] = field(default_factory=set)

    def take(self, event: Event) -> None:
        """Add the content of one event."""
        arrays = event.arrays()
        if "vectors/adapter" in arrays:
            self.adapters[event.round] = arrays["vectors/adapter"]
        if event.sender not in (SERVER, *self.bad):
            if "vectors/update" in arrays:
                self.updates[event.round, event.sender] = arrays["vectors/update"]
            if "protocol/masked" in arrays:
                self.masked[event.round, event.sender] = arrays["protocol/masked"]
            if "protocol/encrypted" in arrays and event.kind == ENCRYPTED:
                self.encrypted.add((event.round, event.sender))
        names = event.values.get(COHORT_NAMED_BY.get(event.kind, ""))
        if names is not None:
            self.cohorts[event.round] = tuple(names)
        if event.kind == STATE:
            self._take_state(event.round, arrays)
        self.job = self.job or event.values.get("job/json")

    def _take_state(self, round: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.adapters[round + 1] = arrays["adapter"]
        segments = {k.removeprefix("sums/"): v for k, v in arrays.items() if k.startswith("sums/")}
        if segments:
            self.sums[round] = Sums(clients=self.cohorts[round], segments=segments)
        for key, update in arrays.items():
            name = key.removeprefix("updates/")
            if key != name and name not in self.bad:
                self.updates[round, name] = update


def view(seed_folder: Path, corrupted: Corruption, *, llm: str | None = None) -> View:
    """Return what `corrupted` saw of a run.

    Args:
        seed_folder: folder of the run's seed, such as `DIR/seed-0`.
        corrupted: the threat model.
        llm: the owner's model, for views of the server.

    Raises `RunFolderError` if the run was not recorded, or has too few clients.
    """
    transcript = seed_folder / FEDERATION / TRANSCRIPT
    names = client_names(transcript)
    if corrupted.clients > len(names):
        raise RunFolderError(
            f"{corrupted.name}: corrupts {corrupted.clients} clients; this run has {len(names)}"
        )
    bad = names[: corrupted.clients]
    everything = corrupted.server or corrupted.network
    if not (everything or bad):  # an outsider
        fused, policy = _folder(seed_folder / FUSED), api_policy_of(seed_folder.parent)
        return View(threat_model=corrupted.name, api=fused, api_policy=policy)
    seen = _Seen(bad=bad)
    last: Event | None = None
    for event in read_events(transcript):
        if event.kind == STATE:
            last = event
        if everything or {event.sender, event.receiver} & set(bad) or event.kind == SETUP:
            seen.take(event)
    raw = seen.job
    if last is not None and raw is not None and last.round + 1 == parse_json(raw)["federate"]["rounds"]:
        seen.adapters[last.round + 1] = last.arrays()["adapter"]
    settings = None if raw is None else _settings(raw, names, seen.adapters)
    if bad and settings is not None:  # with one client's key
        seen.updates |= contributions(transcript, seen.encrypted, settings, seen.adapters)
    return View(
        threat_model=corrupted.name,
        settings=settings,
        adapters=seen.adapters,
        updates=seen.updates,
        sums=seen.sums,
        cohorts=seen.cohorts,
        masked=seen.masked,
        own={name: read_private(transcript, name) for name in bad},
        proxy=_folder(seed_folder / PROXY),
        llm=llm if corrupted.server else None,
        api=_folder(seed_folder / FUSED) if corrupted.api or bad else None,
        api_policy=api_policy_of(seed_folder.parent),
        active=corrupted.active,
    )


def api_policy_of(run: Path) -> ApiConfig:
    """Return the API's policy from the settings in a run's folder; without settings it discloses all.

    Raises `RunFolderError` for settings that cannot be read.
    """
    try:
        raw = parse_yaml(read_bytes(run / SETTINGS_FILE))
        return ApiConfig.model_validate(raw["api"])
    except FileNotFoundError:
        return ApiConfig()
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RunFolderError(
            f"{run / SETTINGS_FILE}: cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _settings(text: str, clients: tuple[str, ...], adapters: Mapping[int, np.ndarray]) -> PublicSettings:
    d = len(next(iter(adapters.values()))) if adapters else 0
    agreed = FederationJob.from_json(text).agreed()
    return PublicSettings(**agreed, d=d, clients=clients)
