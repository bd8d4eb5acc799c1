"""FedProxy-Secure: federated tuning of a proxy of an LLM that never leaves its server.

    from fedproxy_secure import load_config, run
    report = run(load_config("configs/quickstart.yaml"), Path("runs/quickstart"))

Importing this package is cheap: what needs torch is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy_secure.comparison import compare
    from fedproxy_secure.config import Config, load_config
    from fedproxy_secure.runs import plan, run

__version__ = "0.1.0"
__all__ = ["Config", "__version__", "compare", "load_config", "plan", "run"]

_HOME = {
    "Config": "fedproxy_secure.config",
    "load_config": "fedproxy_secure.config",
    "run": "fedproxy_secure.runs",
    "plan": "fedproxy_secure.runs",
    "compare": "fedproxy_secure.comparison",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
