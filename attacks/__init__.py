"""What an adversary makes of its view: attacks on records, on the LLM's secrecy, on integrity.

Each attack takes a **view** (what corrupted parties saw) and guesses; a separate step scores the guess
against the truth. Start at `attacks.base`; `attacks.suite` runs them. This package builds on
`threat_models` and `fedproxy_secure`; `fedproxy_secure` imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.base import Attack, AttackInfo, Budget, Exam, attack

__all__ = ["Attack", "AttackInfo", "Budget", "Exam", "attack"]


def __getattr__(name: str) -> Any:
    if name not in __all__:  # loaded when asked for: `--help` must not wait for torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("attacks.base"), name)
