"""Which attacks fit which threat model, before any run: by the surfaces the model could have."""

from __future__ import annotations

from attacks.base import Attack
from threat_models import ThreatModel, every


def possible_surfaces(model: ThreatModel) -> frozenset[str]:
    """The most that this adversary could see in some run."""
    player = model.server or model.network or model.clients > 0
    found = {
        "IND": model.server or model.network,
        "AGG": player,
        "MR": player,
        "MOD": player,
        "API": model.api or model.clients > 0,
        "ACT": model.active,
    }
    return frozenset(name for name, there in found.items() if there)


def fits(one: Attack, model: ThreatModel) -> bool:
    """Whether some run could give the attack what it needs, and the adversary is one that it is for."""
    played = not one.info.by or any(getattr(model, party) for party in one.info.by)
    return played and any(needed <= possible_surfaces(model) for needed in one.info.needs)


def fitting(one: Attack) -> list[str]:
    """Names of threat models that the attack fits."""
    return [name for name, model in every().items() if fits(one, model)]


def attacks_that_fit(model: ThreatModel) -> list[str]:
    """For `threat-model show`: ids, names and titles."""
    from attacks.base import every as every_attack

    return [f"{a.info.id} {a.info.name}: {a.info.title}" for a in every_attack().values() if fits(a, model)]
