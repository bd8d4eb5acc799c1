"""Settings of earlier versions: what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedproxy_secure.errors import ConfigError

MOVED = {
    "matrix.suite": "attacks.suite",
    "matrix.views": "attacks.views",
    "matrix.suite_seconds": "attacks.seconds",
}
NAMED_PROTECTIONS = {
    "unsafe_plaintext": "{scheme: unsafe_plaintext}",
    "masking": "{scheme: masking}",
    "ckks": "{scheme: ckks}",
    "masking_dp8": "{scheme: masking, epsilon: 8}",
    "masking_dp3": "{scheme: masking, epsilon: 3}",
    "masking_dp1": "{scheme: masking, epsilon: 1}",
}
NAMED_FUSIONS = {
    "fedavg": "{rule: fedavg}",
    "h_ties": "{rule: h_ties}",
    "h_ties_coordinate": "{rule: h_ties, granularity: coordinate}",
}


def check_moved(raw: Mapping[str, Any]) -> None:
    """Raise `ConfigError`, which says what to write, for settings that version 0.1 took."""
    for old, new in MOVED.items():
        section, _, key = old.partition(".")
        if isinstance(raw.get(section), Mapping) and key in raw[section]:
            raise ConfigError(f"{old}: is now {new}; write {new.replace('.', ': {')}: ...}}")
    matrix = raw.get("matrix")
    if not isinstance(matrix, Mapping):
        return
    for key, names in (("protections", NAMED_PROTECTIONS), ("fusions", NAMED_FUSIONS)):
        values = matrix.get(key)
        for value in values if isinstance(values, list | tuple) else []:
            if isinstance(value, str):
                instead = names.get(value, next(iter(names.values())))
                raise ConfigError(
                    f"matrix.{key}: {value!r}: values took the place of names; write {instead}"
                )
