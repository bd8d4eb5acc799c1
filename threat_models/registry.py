"""The registry of all threat models: this project's, and those that other packages provide."""

from __future__ import annotations

from functools import cache

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.nearest import nearest
from fedproxy_secure.runtime.registry import answers_of
from threat_models import clients, outsider, server
from threat_models.base import ThreatModel

GROUP = "fedproxy_secure.threat_models"


OWN = (
    server.HONEST_BUT_CURIOUS_SERVER,
    server.ACTIVE_SERVER,
    clients.MALICIOUS_CLIENT,
    clients.COLLUDING_CLIENTS,
    clients.SERVER_WITH_CLIENTS,
    outsider.NETWORK_EAVESDROPPER,
    outsider.API_USER,
    server.ACTIVE_SERVER_WITH_CLIENTS,
    server.PARALLEL_SERVER,
    server.MALICIOUS_PROXY,
    server.SYBILS,
    clients.LYING_CLIENTS,
    outsider.ACTIVE_NETWORK,
)


@cache
def every() -> dict[str, ThreatModel]:
    """Return all threat models by name: this project's first, then those of other packages.

    Raises `ConfigError` if two have the same name, or an entry point cannot be loaded or raises.
    """
    others = (model for models in answers_of(GROUP) for model in models)
    models: dict[str, ThreatModel] = {}
    for model in (*OWN, *others):
        if model.name in models:
            raise ConfigError(f"threat model {model.name!r}: is registered twice; names must differ")
        models[model.name] = model
    return models


def get(name: str) -> ThreatModel:
    """Return the threat model with this name.

    Raises `ConfigError` that suggests the nearest name.
    """
    models = every()
    if name not in models:
        raise ConfigError(f"threat model {name!r}: is not known; {nearest(name, models)}")
    return models[name]
