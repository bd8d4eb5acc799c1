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


def check_moved(raw: Mapping[str, Any]) -> None:
    """Raise `ConfigError`, which says what to write, for settings of an earlier form."""
    for old, new in MOVED.items():
        section, _, key = old.partition(".")
        if isinstance(raw.get(section), Mapping) and key in raw[section]:
            raise ConfigError(f"{old}: is now {new}; write {new.replace('.', ': {')}: ...}}")
    matrix = raw.get("matrix")
    if not isinstance(matrix, Mapping):
        return
    for key, value_of in (("protections", _protection), ("fusions", _fusion)):
        values = matrix.get(key)
        for value in values if isinstance(values, list | tuple) else []:
            if isinstance(value, str):
                raise ConfigError(
                    f"matrix.{key}: {value!r}: must be a mapping, no longer a name; write {value_of(value)}"
                )


def _protection(name: str) -> str:
    """Return the value that a name stood for, such as `masking_dp8`."""
    scheme, _, epsilon = name.partition("_dp")
    return f"{{scheme: {scheme}, epsilon: {epsilon}}}" if epsilon else f"{{scheme: {scheme}}}"


def _fusion(name: str) -> str:
    """Return the value that a name stood for, such as `h_ties_coordinate`."""
    rule = name.removesuffix("_coordinate")
    return f"{{rule: {rule}}}" if rule == name else f"{{rule: {rule}, granularity: coordinate}}"
