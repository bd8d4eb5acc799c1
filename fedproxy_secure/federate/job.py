"""What server and clients must agree on before the first round, as plain data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from fedproxy_secure.config import (
    AdapterConfig,
    AuditConfig,
    ClientConfig,
    Config,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.untrusted import parse_json


@dataclass(frozen=True, kw_only=True)
class FederationJob:
    """One federation: which blocks of the model are adapted, by whom, how, and how updates merge.

    `blocks` are indices into the model that clients hold (None: all). `clients` and `data_root` say
    where records lie when one machine plays all clients; a real client uses its own. The server fills
    in `proxy_sha256`, of the proxy's files, and `proxy_loaded_sha256`, of what they load as.
    """

    seed: int
    clients: tuple[ClientConfig, ...]
    data_root: str | None
    max_tokens: int
    adapter: AdapterConfig
    local: LocalConfig
    fusion: FusionConfig
    federate: FederateConfig
    protect: ProtectConfig
    privacy: PrivacyConfig
    audit: AuditConfig
    blocks: tuple[int, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    proxy_sha256: str = ""
    proxy_loaded_sha256: str = ""

    @classmethod
    def from_config(
        cls, config: Config, *, seed: int, blocks: tuple[int, ...] | None = None
    ) -> FederationJob:
        """The job that a run's settings describe."""
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
            audit=config.audit,
            blocks=blocks,
            device=config.model.device,
            dtype=config.model.dtype,
        )

    @property
    def clients_a_round(self) -> int:
        """How many clients each round asks."""
        return max(1, round(self.federate.participation * len(self.clients)))

    def agreed_sha256(self) -> bytes:
        """Hash of what server and all clients must have alike: all but where things lie, and on what.

        32 bytes; part of every signature under masking.
        """
        raw = json.loads(self.to_json())
        for private in ("clients", "data_root", "device", "dtype", "audit"):
            del raw[private]
        del raw["protect"]["keys"], raw["privacy"]["ledger"]
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).digest()

    @property
    def granularity(self) -> Literal["plain", "coordinate", "block"]:
        """What the fusion rule needs to see under masking: linear rules need the plain sum alone."""
        return "plain" if self.fusion.rule in ("fedavg", "fedadam") else self.protect.granularity

    def to_json(self) -> str:
        """Canonical JSON: the same job gives the same text."""
        return json.dumps(
            {
                "seed": self.seed,
                "clients": [c.model_dump(mode="json") for c in self.clients],
                "data_root": self.data_root,
                "max_tokens": self.max_tokens,
                "adapter": self.adapter.model_dump(mode="json"),
                "local": self.local.model_dump(mode="json"),
                "fusion": self.fusion.model_dump(mode="json"),
                "federate": self.federate.model_dump(mode="json"),
                "protect": self.protect.model_dump(mode="json"),
                "privacy": self.privacy.model_dump(mode="json"),
                "audit": self.audit.model_dump(mode="json"),
                "blocks": self.blocks,
                "device": self.device,
                "dtype": self.dtype,
                "proxy_sha256": self.proxy_sha256,
                "proxy_loaded_sha256": self.proxy_loaded_sha256,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> FederationJob:
        """The job that `to_json` wrote."""
        raw = parse_json(text)
        return cls(
            seed=raw["seed"],
            clients=tuple(ClientConfig.model_validate(c) for c in raw["clients"]),
            data_root=raw["data_root"],
            max_tokens=raw["max_tokens"],
            adapter=AdapterConfig.model_validate(raw["adapter"]),
            local=LocalConfig.model_validate(raw["local"]),
            fusion=FusionConfig.model_validate(raw["fusion"]),
            federate=FederateConfig.model_validate(raw["federate"]),
            protect=ProtectConfig.model_validate(raw["protect"]),
            privacy=PrivacyConfig.model_validate(raw["privacy"]),
            audit=AuditConfig.model_validate(raw["audit"]),
            blocks=None if raw["blocks"] is None else tuple(raw["blocks"]),
            device=raw["device"],
            dtype=raw["dtype"],
            proxy_sha256=raw["proxy_sha256"],
            proxy_loaded_sha256=raw["proxy_loaded_sha256"],
        )
