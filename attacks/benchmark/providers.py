"""Find an attack's distribution, its version, and a digest of its code."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from attacks.base import Attack
from attacks.registry import GROUP
from fedproxy_secure import __version__

THIS_PROJECT, A_SCRIPT = "fedproxy-secure", "a script"


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """One attack of a benchmark, as its results name it.

    Args:
        name, id, title: of the attack.
        headline: name of the number that decides its outcome.
        chance: the headline's value where there is nothing to find.
        provided_by: the distribution that the attack comes from; `a script` if it is installed by none.
        provider_version: version of that distribution; empty for a script.
        code_sha256: digest of the file that defines the attack, hex; empty where there is no such file.
    """

    name: str
    id: str
    title: str
    headline: str
    chance: float
    provided_by: str
    provider_version: str
    code_sha256: str


def entries_of(attacks: Iterable[Attack]) -> tuple[AttackEntry, ...]:
    """Return one entry for each attack, in the same order."""
    return tuple(_entry(one) for one in attacks)


def _entry(one: Attack) -> AttackEntry:
    module, info = type(one).__module__, one.info
    provided_by, version = _provider(module)
    return AttackEntry(
        name=info.name,
        id=info.id,
        title=info.title,
        headline=info.headline,
        chance=info.chance,
        provided_by=provided_by,
        provider_version=version,
        code_sha256=_code_sha256(module),
    )


def _provider(module: str) -> tuple[str, str]:
    """Return name and version of the distribution whose entry point loads the module, or its package."""
    root = module.partition(".")[0]
    if root == __name__.partition(".")[0]:
        return THIS_PROJECT, __version__
    for point in entry_points(group=GROUP):
        if point.module.partition(".")[0] == root and point.dist is not None:
            return point.dist.name, point.dist.version
    return A_SCRIPT, ""


def _code_sha256(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""
