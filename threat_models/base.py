"""What a threat model is (vocabulary of NIST AI 100-2), and where all of them are found."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from fedproxy_secure.errors import ConfigError

GROUP = "fedproxy_secure.threat_models"
Knowledge = Literal["white box", "proxy only", "black box"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """A set of corrupted parties and what they may do; `fedproxy_secure.record.view` turns it into a view.

    `server`, `network`, `api`: corrupted or not. `clients`: how many are. `active`: may send what it
    likes from its own place; otherwise it follows the protocol and thinks. The texts are sentences for
    people: what it is taken to have, what is assumed, and what it is *not* meant to show.
    """

    name: str
    title: str
    server: bool = False
    clients: int = 0
    network: bool = False
    api: bool = False
    active: bool = False
    knowledge: Knowledge
    capabilities: tuple[str, ...]
    assumptions: tuple[str, ...]
    non_goals: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.clients < 0:
            raise ConfigError(f"{self.name}: clients={self.clients}: must be >= 0")
        if not (self.server or self.clients or self.network or self.api):
            raise ConfigError(f"{self.name}: corrupts nobody; must corrupt a party")

    def text(self) -> str:
        """For a terminal."""
        parties = [
            *(["the server"] if self.server else []),
            *([f"{self.clients} client{'s' * (self.clients > 1)}"] if self.clients else []),
            *(["the network"] if self.network else []),
            *(["a user of the API"] if self.api else []),
        ]
        lines = [
            f"{self.name}: {self.title}",
            f"corrupted: {', '.join(parties)}; {'active' if self.active else 'passive'}; {self.knowledge}",
        ]
        for heading, sentences in (
            ("can", self.capabilities),
            ("assumed", self.assumptions),
            ("not meant to show", self.non_goals),
        ):
            lines += [f"{heading}:", *(f"  - {s}" for s in sentences)]
        return "\n".join(lines)


@cache
def every() -> dict[str, ThreatModel]:
    """All threat models by name: this project's, then those that entry points bring.

    Raises `ConfigError` if a name is there twice or an entry point cannot be loaded.
    """
    from threat_models import clients, outsider, server

    sources: list[Callable[[], Iterable[ThreatModel]]] = [
        lambda: (server.HONEST_BUT_CURIOUS_SERVER, server.ACTIVE_SERVER),
        lambda: (clients.MALICIOUS_CLIENT, clients.COLLUDING_CLIENTS, clients.SERVER_WITH_CLIENTS),
        lambda: (outsider.NETWORK_EAVESDROPPER, outsider.API_USER),
        lambda: (
            server.ACTIVE_SERVER_WITH_CLIENTS,
            server.PARALLEL_SERVER,
            server.MALICIOUS_PROXY,
            server.SYBILS,
        ),
        lambda: (clients.LYING_CLIENTS, outsider.ACTIVE_NETWORK),
        *(_loaded(point) for point in entry_points(group=GROUP)),
    ]
    found: dict[str, ThreatModel] = {}
    for source in sources:
        for model in source():
            if model.name in found:
                raise ConfigError(f"threat model {model.name!r}: is there twice; names must differ")
            found[model.name] = model
    return found


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # somebody else's module may raise anything
        raise ConfigError(f"entry point {point.name!r} of {GROUP}: cannot be loaded: {error}") from error


def get(name: str) -> ThreatModel:
    """The threat model called `name`. Raises `ConfigError` with the nearest name."""
    models = every()
    if name in models:
        return models[name]
    near = difflib.get_close_matches(name, list(models), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(models)}"
    raise ConfigError(f"threat model {name!r}: is not known; {hint}")
