"""A policy: rules that every configuration of a report must keep, as YAML.

    schema_version: 1
    name: mine
    applies_to: {protection: "masking*"}   # settings, as patterns; without it: every configuration
    require_signed_audit: true
    rules:
      - max_token_auc: 0.6
      - max_epsilon: 8
        applies_to: {protection: masking_dp8}
      - resist: [A2, A3]
        views: [server]
        not_applicable: pass

Unknown keys and rules, keys given twice and rules without effect are refused, so that a typing error cannot
make the gate pass.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fedproxy_secure.config import ANSWERS
from fedproxy_secure.crypto.key_file import PRIVATE_KEY
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.gate.rules import OTHERS, TOTAL_EPSILON, Limit, limit_names, limit_of
from fedproxy_secure.runtime.nearest import file_or_shipped, nearest
from fedproxy_secure.runtime.untrusted import parse_yaml, read_bytes, yaml_reason

SCHEMA_VERSION = 1
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs" / "policies", PACKAGE.parent / "configs" / "policies")  # installed; source
QUALIFIERS = ("applies_to", "views", "not_applicable")
FLAGS = ("require_signed_audit", "allow_failed_seeds")
TOP = ("schema_version", "name", "applies_to", *FLAGS, "signer", "rules")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a policy.

    Args:
        name: name of the rule.
        bound: its value in the policy: a number, `True`, a unit or a tuple of attacks.
        limit: what the number bounds; None for a rule that is not a limit.
        applies_to: settings that a configuration must have, each with patterns of its values, such as
            `masking*`; empty: all configurations.
        views: for `resist`, the views from which each attack must have been resisted; empty: every view
            from which it was tried.
        not_applicable: whether an attack without anything to attack counts as resisted.
    """

    name: str
    bound: Any
    limit: Limit | None = None
    applies_to: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    not_applicable: bool = False

    @property
    def text(self) -> str:
        """The rule as written in the policy."""
        bound = self.bound
        if isinstance(bound, tuple):
            bound = "[" + ", ".join(bound) + "]"
        elif isinstance(bound, bool):
            bound = "true"
        elif isinstance(bound, float):
            bound = f"{bound:g}"
        return f"{self.name}: {bound}"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules, and the requirements on the report itself.

    Args:
        name: name of the policy.
        rules: its rules.
        require_signed_audit: whether the report's audit log must be signed.
        allow_failed_seeds: whether a configuration may be judged by the seeds that finished.
        signer: the public key that must have signed, hex; None until the caller names one.
        sha256: SHA-256 of the policy's file, hex.
    """

    name: str
    rules: tuple[Rule, ...]
    require_signed_audit: bool = False
    allow_failed_seeds: bool = False
    signer: str | None = None
    sha256: str = ""


def find_policy(name: str) -> Path:
    """Return the file called `name`, or the shipped policy of that name, with or without `.yaml`.

    Raises `ConfigError` that names shipped policies.
    """
    return file_or_shipped(name, FOLDERS, kind="policy")


def load_policy(path: Path) -> Policy:
    """Read a policy. Raises `ConfigError` in one line: the key, the value, the rule."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_policy(data, path)


def parse_policy(data: bytes, path: Path) -> Policy:
    """Return the policy in a YAML text; `path` is its file, for errors and for the policy's default name.

    Raises what `load_policy` raises.
    """
    try:
        raw = parse_yaml(data)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {yaml_reason(error)}") from error
    try:
        return _policy(raw, hashlib.sha256(data).hexdigest(), path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _policy(raw: Any, sha256: str, stem: str) -> Policy:
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {type(raw).__name__}"
        raise ConfigError(f"{found}; must hold a policy as `key: value`, such as `rules:` and a rule")
    for key in raw:
        if key not in TOP:
            raise ConfigError(f"{key}: unknown key; {nearest(str(key), TOP)}")
    version = raw.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # `true` and `1.0` equal 1
        raise ConfigError(f"schema_version={version}: must be {SCHEMA_VERSION}")
    flags = {name: raw.get(name, False) for name in FLAGS}
    for name, value in flags.items():
        if not isinstance(value, bool):
            _refuse(name, value, "true or false")
    signer = raw.get("signer")
    if signer is not None and not (_is_key(signer) and flags["require_signed_audit"]):
        shown = "a private key" if PRIVATE_KEY in str(signer) else signer
        _refuse("signer", shown, "64 hex digits of a public key, with require_signed_audit: true")
    rules = raw.get("rules")
    if not isinstance(rules, list) or not rules:
        _refuse("rules", rules, "a list of at least one rule")
    common = _applies_to(raw.get("applies_to", {}), "applies_to")
    return Policy(
        name=str(raw.get("name", stem)),
        rules=tuple(_rule(item, common, f"rules.{i}") for i, item in enumerate(rules)),
        signer=signer,
        sha256=sha256,
        **flags,
    )


def _rule(raw: Any, common: Mapping[str, tuple[str, ...]], where: str) -> Rule:
    if not isinstance(raw, dict):
        _refuse(where, raw, "`rule: bound`")
    names = [key for key in raw if key not in QUALIFIERS]
    for key in names:
        if key not in OTHERS and limit_of(str(key)) is None:
            near = nearest(str(key), [*limit_names(), *OTHERS, *QUALIFIERS])
            raise ConfigError(f"{where}.{key}: unknown rule; {near}")
    if len(names) != 1:
        raise ConfigError(f"{where}: has {len(names)} rules; must have one; begin each rule with a dash")
    (name,) = names
    where = f"{where}.{name}"
    views = raw.get("views", [])
    if not _is_names(views) or (views and name != "resist"):
        _refuse(f"{where}: views", views, "names of threat models, and only with the rule `resist`")
    allowed = raw.get("not_applicable")
    limit = limit_of(name)
    attacked = name in ("resist", "require_audit_within_claim") or (limit is not None and limit.by_attacks)
    if allowed not in (None, "pass") or (allowed and not attacked):
        _refuse(f"{where}: not_applicable", allowed, "`pass`, and only with a rule on attacks")
    if name == TOTAL_EPSILON and "applies_to" in raw:
        _refuse(f"{where}: applies_to", raw["applies_to"], "left out: the rule covers the whole report")
    settings = _applies_to(raw["applies_to"], f"{where}: applies_to") if "applies_to" in raw else common
    return Rule(
        name=name,
        bound=_bound(name, raw[name], where, limit),
        limit=limit,
        applies_to=settings,
        views=tuple(views),
        not_applicable=allowed == "pass",
    )


def _bound(name: str, raw: Any, where: str, limit: Limit | None) -> Any:
    if limit is not None:
        number = isinstance(raw, int | float) and not isinstance(raw, bool)
        if not number or not limit.low <= raw <= limit.high or not _is_float(raw):
            _refuse(where, raw, limit.bound_text)
        return float(raw)
    if name == "resist":
        fits = _is_names(raw) and len(raw) > 0
        return tuple(raw) if fits else _refuse(where, raw, OTHERS[name])
    if name == "require_unit":
        fits = raw in ("record", "client")
    elif name == "require_api":
        fits = raw in ANSWERS
    elif name == "min_seeds":
        fits = isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1
    else:
        fits = raw is True
    return raw if fits else _refuse(where, raw, OTHERS[name])


def _applies_to(raw: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Return the settings that a rule applies to; in a report they are texts, so 0.50 becomes 0.5."""
    if not isinstance(raw, dict):
        _refuse(where, raw, "`setting: value` or `setting: [value, value]`")
    settings = {}
    for key, value in raw.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) in (str, int, float) for v in values):
            _refuse(f"{where}.{key}", value, "a value or a list of values")
        if not all(isinstance(v, str) or _is_float(v) for v in values):
            _refuse(f"{where}.{key}", value, "of numbers that a float can hold")
        settings[str(key)] = tuple(v if isinstance(v, str) else f"{v:g}" for v in values)
    return settings


def _is_float(number: float) -> bool:
    """Return whether a number is finite as a float; integers of a policy have at most 64 bits."""
    return math.isfinite(float(number))


def _is_names(raw: Any) -> bool:
    return isinstance(raw, list) and all(isinstance(v, str) for v in raw)


def _is_key(raw: Any) -> bool:
    return isinstance(raw, str) and len(raw) == 64 and all(c in "0123456789abcdef" for c in raw)


def _refuse(where: str, value: object, rule: str) -> NoReturn:
    raise ConfigError(f"{where}={value!r}: must be {rule}")
