"""FedProxy-Secure: federated tuning of a proxy of an LLM that never leaves its server.

    from fedproxy_secure import load_config, run
    report = run(load_config("configs/quickstart.yaml"), Path("runs/quickstart"))

The names below are the public API: whole runs (`run`, `compare`, `plan`) and single stages, which take
and return ordinary torch and transformers objects. Importing this package is cheap: what needs torch is
loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy_secure.comparison import compare
    from fedproxy_secure.compress.proxy import build_proxy, save_model
    from fedproxy_secure.config import Config, load_config
    from fedproxy_secure.federate.adapters import attach, block_deltas, save_adapter
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.fuse.plug_back import plug_back
    from fedproxy_secure.llm import load_llm
    from fedproxy_secure.pipeline import average, evaluate, make_fused_llm, make_proxy, prepare, tune
    from fedproxy_secure.run_plan import plan
    from fedproxy_secure.runs import run

__version__ = "0.1.0"
__all__ = [
    "Config",
    "FederationJob",
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
    "plan",
    "plug_back",
    "prepare",
    "run",
    "save_adapter",
    "save_model",
    "tune",
]

_HOME = {
    "Config": "config",
    "load_config": "config",
    "run": "runs",
    "plan": "run_plan",
    "compare": "comparison",
    "prepare": "pipeline",
    "make_proxy": "pipeline",
    "tune": "pipeline",
    "make_fused_llm": "pipeline",
    "evaluate": "pipeline",
    "average": "pipeline",
    "load_llm": "llm",
    "build_proxy": "compress.proxy",
    "save_model": "compress.proxy",
    "FederationJob": "federate.job",
    "attach": "federate.adapters",
    "block_deltas": "federate.adapters",
    "save_adapter": "federate.adapters",
    "plug_back": "fuse.plug_back",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
