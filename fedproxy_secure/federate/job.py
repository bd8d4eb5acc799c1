"""The job of a federation: what server and clients must agree on before the first round, as plain data."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from fedproxy_secure.config import (
    OWN,
    AdapterConfig,
    AuditConfig,
    ClientConfig,
    Config,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
    Section,
    cohort_size,
)
from fedproxy_secure.runtime.files.names import seed_folder
from fedproxy_secure.runtime.randomness import stream
from fedproxy_secure.runtime.untrusted import parse_json
from fedproxy_secure.tracing.marks import Marks


class AgreedSettings(Section):
    """The settings that must be the same at the server and at all clients.

    `blocks` are indices into the model that clients hold (None: all). The server fills in `proxy_sha256`,
    the hash of the proxy's files, and `proxy_loaded_sha256`, the hash of the model that they load as. With
    `marks` the proxy is traced: each client has a copy of its own, and both hashes are of the unmarked one.
    """

    seed: int
    max_tokens: int
    adapter: AdapterConfig
    local: LocalConfig
    fusion: FusionConfig
    federate: FederateConfig
    protect: ProtectConfig
    privacy: PrivacyConfig
    blocks: tuple[int, ...] | None = None
    proxy_sha256: str = ""
    proxy_loaded_sha256: str = ""
    marks: Marks | None = None

    @property
    def granularity(self) -> Literal["plain", "coordinate", "block"]:
        """The detail that the fusion rule needs under masking; linear rules need the plain sum alone."""
        return "plain" if self.fusion.linear else self.protect.granularity

    def first_rate(self, round: int) -> float:
        """Return the learning rate of a round's first step, the largest of the round."""
        return self.local.learning_rate * self._shares(round)[0]

    def total_rate(self, round: int) -> float:
        """Return the sum of the learning rates of a round's steps, rounded once: alike on all Pythons."""
        return self.local.learning_rate * math.fsum(self._shares(round))

    def _shares(self, round: int) -> list[float]:
        return self.local.shares(steps=self.local.steps, round=round, rounds=self.federate.rounds)


class FederationJob(AgreedSettings):
    """One federation: which blocks of the model are adapted, by which clients, and how updates merge.

    `clients` and `data_root` say where records lie when one machine plays all clients; a real client uses
    its own. The fields marked `OWN` are no part of what the parties agree on.
    """

    clients: Annotated[tuple[ClientConfig, ...], OWN]
    data_root: Annotated[str | None, OWN]
    audit: Annotated[AuditConfig, OWN]
    device: Annotated[str, OWN] = "auto"
    dtype: Annotated[str, OWN] = "auto"
    checkpointing: Annotated[bool, OWN] = False

    @classmethod
    def from_config(
        cls, config: Config, *, seed: int, blocks: tuple[int, ...] | None = None
    ) -> FederationJob:
        """Return the job that a run's settings describe; each seed records into a folder of its own."""
        audit = config.audit
        if audit.folder is not None:
            audit = audit.model_copy(update={"folder": str(Path(audit.folder) / seed_folder(seed))})
        return cls(
            seed=seed,
            clients=config.data.clients,
            data_root=config.data.root,
            max_tokens=config.data.max_tokens,
            adapter=config.adapter,
            local=config.local,
            fusion=config.fusion,
            federate=config.federate,
            protect=config.protect,
            privacy=config.privacy,
            audit=audit,
            blocks=blocks,
            device=config.model.device,
            dtype=config.model.dtype,
            checkpointing=config.model.checkpointing,
        )

    @property
    def clients_a_round(self) -> int:
        """The number of clients in a round's cohort."""
        return cohort_size(len(self.clients), self.federate.participation)

    def cohort_of(self, round_number: int) -> list[str]:
        """Return the names of the clients that a round is meant for, sorted.

        They depend only on all names, the seed and the round, so every attempt at a round has the same.
        """
        names, count = sorted(c.name for c in self.clients), self.clients_a_round
        if count == len(names):
            return names
        rng = stream(self.seed, "participants", round_number)
        return sorted(rng.choice(names, size=count, replace=False).tolist())

    def agreed(self) -> dict[str, Any]:
        """Return what all parties must have alike, as plain values: every field not marked `OWN`."""
        return self.without(OWN)

    def agreed_sha256(self) -> bytes:
        """Return the hash of `agreed`, 32 bytes; it is part of every signature under masking."""
        return hashlib.sha256(json.dumps(self.agreed(), sort_keys=True).encode()).digest()

    def without_places(self) -> FederationJob:
        """Return the job without what is local to this machine, for parties on machines of their own."""
        return self.changed(
            clients=tuple(ClientConfig(name=c.name, task=c.task) for c in self.clients),
            data_root=None,
            audit=AuditConfig(),
            device="auto",
            dtype="auto",
            checkpointing=False,
            protect=self.protect.model_copy(update={"keys": None}),
            privacy=self.privacy.model_copy(update={"ledger": None}),
        )

    def to_json(self) -> str:
        """Return the job as canonical JSON: the same job gives the same text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FederationJob:
        """Return the job that `to_json` wrote."""
        return cls.model_validate(parse_json(text))
