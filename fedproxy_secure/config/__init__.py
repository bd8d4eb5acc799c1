"""The settings of a run: pydantic models, YAML in, errors of one line.

Unknown keys are refused with the nearest known one. Every setting has a usable default;
a file names only what differs.
"""

from fedproxy_secure.config.api import ANSWERS, Answers, ApiConfig
from fedproxy_secure.config.clients import ClientConfig, DataConfig, SplitConfig
from fedproxy_secure.config.loading import apply_overrides, load_config, parse_config, settings_in
from fedproxy_secure.config.pipeline import (
    AdapterConfig,
    AdapterKind,
    CompressConfig,
    Engine,
    FederateConfig,
    FusionConfig,
    HealConfig,
    Importance,
    LocalConfig,
    ModelConfig,
    PlugBackConfig,
)
from fedproxy_secure.config.protection import AuditConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.config.sections import NO_EFFECT, OWN, Section, cohort_size
from fedproxy_secure.config.settings import Config
from fedproxy_secure.config.sweeps import (
    AttacksConfig,
    CompareConfig,
    MatrixConfig,
    SweptCompression,
    SweptFusion,
    SweptProtection,
)

__all__ = [
    "ANSWERS",
    "AdapterConfig",
    "AdapterKind",
    "Answers",
    "ApiConfig",
    "AttacksConfig",
    "AuditConfig",
    "ClientConfig",
    "CompareConfig",
    "CompressConfig",
    "Config",
    "DataConfig",
    "Engine",
    "FederateConfig",
    "FusionConfig",
    "HealConfig",
    "Importance",
    "LocalConfig",
    "MatrixConfig",
    "ModelConfig",
    "PlugBackConfig",
    "NO_EFFECT",
    "OWN",
    "PrivacyConfig",
    "ProtectConfig",
    "Section",
    "SplitConfig",
    "SweptCompression",
    "SweptFusion",
    "SweptProtection",
    "apply_overrides",
    "cohort_size",
    "load_config",
    "parse_config",
    "settings_in",
]
