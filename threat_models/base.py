"""What a threat model is, in the vocabulary of NIST AI 100-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedproxy_secure.errors import ConfigError

Knowledge = Literal["white box", "proxy only", "black box"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """A set of corrupted parties and what they may do; `fedproxy_secure.record.view` turns it into a view.

    The texts are sentences for people.

    Args:
        name: unique name for commands and reports.
        title: who attacks, in a few words.
        server, network, api: whether the party is corrupted.
        clients: how many clients are corrupted.
        active: whether it may deviate from the protocol and send arbitrary messages as the corrupted
            parties; otherwise it follows the protocol and only analyses what it sees.
        knowledge: what it knows of the models.
        capabilities: what it can do and what it holds.
        assumptions: what is taken to be true.
        non_goals: what the model is *not* meant to show.

    Raises `ConfigError` if it corrupts nobody, or fewer than 0 clients.
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
            raise ConfigError(f"{self.name}: corrupts no party; must corrupt at least one")

    def text(self) -> str:
        """Return the model's description for a terminal."""
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
