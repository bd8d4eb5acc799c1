"""Attacks on a recorded run: on the clients' records, on the secrecy of the LLM, on integrity.

Each attack takes a **view** (what corrupted parties saw) and guesses; a separate step scores the guess
against the truth. Start at `attacks.base`; `attacks.suite` runs them. This package builds on
`threat_models` and `fedproxy_secure`; `fedproxy_secure` imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.base import Attack, AttackInfo, Budget, Exam, Feeds
    from attacks.registry import attack

__all__ = ["Attack", "AttackInfo", "Budget", "Exam", "Feeds", "attack"]


def __getattr__(name: str) -> Any:
    if name not in __all__:  # names load on first use: `--help` must not wait for torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "attacks.registry" if name == "attack" else "attacks.base"
    return getattr(import_module(module), name)
