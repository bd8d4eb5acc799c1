"""FedProxy-Secure: federated tuning of a proxy of an LLM that never leaves its server.

    from fedproxy_secure import load_config, run
    report = run(load_config("configs/quickstart.yaml"), Path("runs/quickstart"))

The names below are the public API: whole runs (`run`, `compare`, `matrix`, `plan`); single stages, which
take and return ordinary torch and transformers objects; what a report holds; and what to subclass for a
protection, a fusion rule, a method or a compression of one's own, to describe a measure or to write an
engine, with the registries to add them to. Importing this package is cheap: what needs torch is
loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy_secure.compress.base import Compression
    from fedproxy_secure.compress.drop_blocks import build_proxy
    from fedproxy_secure.compress.proxy import Proxy, save_model
    from fedproxy_secure.config import Config, load_config
    from fedproxy_secure.config.kinds import COMPRESSIONS, FUSION_RULES, METHODS, PROTECTIONS
    from fedproxy_secure.evidence.estimate import Estimate
    from fedproxy_secure.evidence.finding import Finding
    from fedproxy_secure.evidence.measure import MEASURES, MeasureKind
    from fedproxy_secure.experiments.compare import compare
    from fedproxy_secure.experiments.dry_run import plan
    from fedproxy_secure.experiments.matrix import matrix
    from fedproxy_secure.experiments.method import Method
    from fedproxy_secure.experiments.results import MethodResult, average
    from fedproxy_secure.experiments.run import run
    from fedproxy_secure.experiments.stages import (
        evaluate,
        make_fused_llm,
        make_proxy,
        prepare,
        tune,
    )
    from fedproxy_secure.federate.fusion.rule import FusionRule
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.flower.engines import Federate
    from fedproxy_secure.fuse.line_search import scale_for
    from fedproxy_secure.fuse.plug_back import plug_back
    from fedproxy_secure.fuse.stage import Fused
    from fedproxy_secure.models.adapters import attach, block_deltas, save_adapter
    from fedproxy_secure.models.llm import load_llm
    from fedproxy_secure.protect.base import Protection
    from fedproxy_secure.protect.one_message import OneMessage
    from fedproxy_secure.report.report import MethodRow, Report
    from fedproxy_secure.report.trilemma import Configuration, Measure

__version__ = "0.1.0"
__all__ = [
    "COMPRESSIONS",
    "Compression",
    "Config",
    "Configuration",
    "Estimate",
    "FUSION_RULES",
    "Federate",
    "FederationJob",
    "Finding",
    "Fused",
    "FusionRule",
    "MEASURES",
    "METHODS",
    "Measure",
    "MeasureKind",
    "Method",
    "MethodResult",
    "MethodRow",
    "OneMessage",
    "PROTECTIONS",
    "Protection",
    "Proxy",
    "Report",
    "__version__",
    "attach",
    "average",
    "block_deltas",
    "build_proxy",
    "compare",
    "evaluate",
    "load_config",
    "load_llm",
    "make_fused_llm",
    "make_proxy",
    "matrix",
    "plan",
    "plug_back",
    "prepare",
    "run",
    "save_adapter",
    "save_model",
    "scale_for",
    "tune",
]

_HOME = {
    "Config": "config",
    "load_config": "config",
    "run": "experiments.run",
    "plan": "experiments.dry_run",
    "compare": "experiments.compare",
    "matrix": "experiments.matrix",
    "prepare": "experiments.stages",
    "make_proxy": "experiments.stages",
    "tune": "experiments.stages",
    "make_fused_llm": "experiments.stages",
    "evaluate": "experiments.stages",
    "average": "experiments.results",
    "MethodResult": "experiments.results",
    "Method": "experiments.method",
    "load_llm": "models.llm",
    "Compression": "compress.base",
    "build_proxy": "compress.drop_blocks",
    "Proxy": "compress.proxy",
    "save_model": "compress.proxy",
    "Protection": "protect.base",
    "OneMessage": "protect.one_message",
    "FusionRule": "federate.fusion.rule",
    "FederationJob": "federate.job",
    "Federate": "flower.engines",
    "attach": "models.adapters",
    "block_deltas": "models.adapters",
    "save_adapter": "models.adapters",
    "plug_back": "fuse.plug_back",
    "scale_for": "fuse.line_search",
    "Fused": "fuse.stage",
    "Estimate": "evidence.estimate",
    "Finding": "evidence.finding",
    "MeasureKind": "evidence.measure",
    "Report": "report.report",
    "MethodRow": "report.report",
    "Configuration": "report.trilemma",
    "Measure": "report.trilemma",
    "PROTECTIONS": "config.kinds",
    "FUSION_RULES": "config.kinds",
    "METHODS": "config.kinds",
    "COMPRESSIONS": "config.kinds",
    "MEASURES": "evidence.measure",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
