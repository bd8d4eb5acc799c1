"""All settings of a run, and the checks of what must hold between their sections."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedproxy_secure.config.api import ApiConfig
from fedproxy_secure.config.clients import DataConfig
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.config.pipeline import (
    AdapterConfig,
    CompressConfig,
    FederateConfig,
    FusionConfig,
    HealConfig,
    LocalConfig,
    ModelConfig,
    PlugBackConfig,
)
from fedproxy_secure.config.protection import AuditConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.config.sections import LATER, NO_EFFECT, OWN, SWEEP, Mark, Section, cohort_size
from fedproxy_secure.config.sweeps import AttacksConfig, CompareConfig, MatrixConfig
from fedproxy_secure.errors import ConfigError

Tracking = Literal["tensorboard", "mlflow", "wandb"]


class Config(Section):
    """All settings of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"), SWEEP] = "demo"  # of the folder
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], SWEEP] = (0,)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    compress: CompressConfig = CompressConfig()
    heal: HealConfig = HealConfig()
    adapter: AdapterConfig = AdapterConfig()
    local: LocalConfig = LocalConfig()
    fusion: FusionConfig = FusionConfig()
    federate: FederateConfig = FederateConfig()
    plug_back: Annotated[PlugBackConfig, LATER] = PlugBackConfig()
    protect: ProtectConfig = ProtectConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    audit: AuditConfig = AuditConfig()
    api: Annotated[ApiConfig, SWEEP, LATER] = ApiConfig()
    attacks: Annotated[AttacksConfig, SWEEP] = AttacksConfig()
    compare: CompareConfig = CompareConfig()
    matrix: Annotated[MatrixConfig, SWEEP] = MatrixConfig()
    track: Annotated[tuple[Tracking, ...], NO_EFFECT] = ("tensorboard",)  # trackers besides the report

    @model_validator(mode="after")
    def _fields_agree(self) -> Config:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: must be at least one, all different")
        clients = len(self.data.clients)
        if self.federate.min_clients > clients:
            raise ValueError(
                f"federate.min_clients={self.federate.min_clients}: must be <= {clients}, "
                "the number of clients"
            )
        if self.cohort < self.federate.min_clients:
            raise ValueError(
                f"federate.participation={self.federate.participation}: selects {self.cohort} of "
                f"{clients} clients, fewer than federate.min_clients={self.federate.min_clients}"
            )
        if self.privacy.unit == "record" and self.adapter.dropout:
            raise ValueError(
                f"adapter.dropout={self.adapter.dropout}: must be 0 with privacy.unit=record; its masks "
                "are not secret, and one additional record would change the masks of other records"
            )
        return self

    @property
    def cohort(self) -> int:
        """How many clients a round asks."""
        return cohort_size(len(self.data.clients), self.federate.participation)

    def with_signing_key(self, file: str | None) -> Config:
        """Return the settings with another signing key; pass None for code that must not see its path."""
        return self.model_copy(update={"audit": self.audit.model_copy(update={"signing_key": file})})

    def check_protection(self) -> None:
        """Raise `ConfigError` if the federation that these settings describe cannot be protected so.

        Reading settings (`parse_config`) includes this check.
        """
        PROTECTIONS.get(self.protect.scheme).check_settings(
            self.protect,
            self.privacy,
            self.fusion,
            cohort=self.cohort,
        )
        if self.federate.engine == "deployment" and self.privacy.randomness != "os":
            raise ConfigError(
                f"privacy.randomness={self.privacy.randomness}: must be os with "
                "federate.engine=deployment, whose clients refuse noise that the server could compute"
            )

    def check_epsilon(self) -> None:
        """Raise `ConfigError` if an epsilon is asked for that no differential privacy keeps.

        Reading settings does not include this check, because a matrix's protections may bring the unit. A
        default counts as asked for only where `privacy.unit` was not given beside it.
        """
        if self.privacy.unit != "none":
            return
        given = self.privacy.model_fields_set
        for name in ("target_epsilon", "max_epsilon"):
            value, default = getattr(self.privacy, name), PrivacyConfig.model_fields[name].default
            if value != default or (value is not None and name in given and "unit" not in given):
                raise ConfigError(
                    f"privacy.{name}={value:g}: has no effect with privacy.unit=none, which adds no noise; "
                    "set privacy.unit to record or client, or leave it out"
                )

    def sha256(self) -> str:
        """Return the hex digest of the settings that can change a result; every record of a run has it."""
        return self._digest(NO_EFFECT)

    def counted(self) -> dict[str, Any]:
        """Return the settings that can change a result, as plain values."""
        return self.without(NO_EFFECT)

    def cell_sha256(self, *, has_proxy: bool = True) -> str:
        """Return the hex digest of the settings that can change one cell of a comparison.

        Left out are seeds, methods and remove ratios (they say which cells there are), the name, the
        sections `attacks` and `matrix`, and settings local to one party, such as `data.root`. All settings
        of `data.clients` are included, even the location of the records.

        Args:
            has_proxy: whether the method has a proxy; without one, `compress`, `heal` and `plug_back` do
                not count.
        """
        without = () if has_proxy else ("compress", "heal", "plug_back")
        return self._digest(NO_EFFECT, OWN, SWEEP, sections=without)

    def _digest(self, *left_out: Mark, sections: tuple[str, ...] = ()) -> str:
        said = self.without(*left_out, said_only=True)
        values = {name: value for name, value in said.items() if name not in sections}
        canonical = json.dumps(without_nulls(values), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def without_nulls(value: Any) -> Any:
    """Return plain JSON values without those that are None.

    A setting that a later version adds, with None for the earlier behaviour, thus changes no digest, and
    cells made by an earlier version stay valid.
    """
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
