"""Which attacks fit which threat model, decided before any run from the surfaces it could have."""

from __future__ import annotations

from attacks.base import Attack
from threat_models import ThreatModel, every


def possible_surfaces(model: ThreatModel) -> frozenset[str]:
    """Return all surfaces that this adversary could have in some run."""
    player = model.server or model.network or model.clients > 0
    possible = {
        "IND": model.server or model.network,
        "AGG": player,
        "MR": player,
        "MOD": player,
        "API": model.api or model.clients > 0,
        "ACT": model.active,
    }
    return frozenset(name for name, has_it in possible.items() if has_it)


def fits(one: Attack, model: ThreatModel) -> bool:
    """Return whether the attack is meant for this adversary and some run could give it what it needs."""
    corrupted = not one.info.by or any(getattr(model, party) for party in one.info.by)
    return corrupted and any(needed <= possible_surfaces(model) for needed in one.info.needs)


def fitting(one: Attack) -> list[str]:
    """Return the names of the threat models that the attack fits."""
    return [name for name, model in every().items() if fits(one, model)]


def attacks_that_fit(model: ThreatModel) -> list[str]:
    """Return id, name and title of each attack that fits, for `threat-model show`."""
    from attacks.registry import every as every_attack

    return [f"{a.info.id} {a.info.name}: {a.info.title}" for a in every_attack().values() if fits(a, model)]
