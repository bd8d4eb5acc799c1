"""A policy: rules that every configuration of a report must keep, as YAML.

    schema_version: 1
    name: mine
    applies_to: {protection: [masking, masking_dp8]}   # settings; without it: every configuration
    require_signed_audit: true
    rules:
      - max_token_auc: 0.6
      - max_epsilon: 8
        applies_to: {protection: masking_dp8}
      - resist: [A2, A3]
        views: [server]
        not_applicable: pass

Unknown keys and rules, keys given twice and rules without effect are refused: a slip must not open a gate.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.report.measured import EXTRACTION, LEAKS
from fedproxy_secure.untrusted import parse_yaml, read_bytes

SCHEMA_VERSION = 1
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs" / "policies", PACKAGE.parent / "configs" / "policies")  # installed; source
Side = Literal["max", "min"]
EXTRACTED = frozenset({"A12"})


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A rule on measures: `keys` must be at most (`max`) or at least (`min`) the bound.

    `attacks`: ids of those that measure it; none of them may have been inconclusive. The bound must lie in
    [`low`, `high`].
    """

    keys: tuple[str, ...]
    side: Side
    attacks: frozenset[str] = frozenset()
    low: float = 0.0
    high: float = math.inf


def _most(*keys: str, high: float = math.inf) -> Limit:
    attacks = {a for key in keys for a in (LEAKS[key][1] if key in LEAKS else ())}
    extracted = EXTRACTED if any(key in EXTRACTION for key in keys) else frozenset()
    return Limit(keys=keys, side="max", attacks=frozenset(attacks) | extracted, high=high)


def _least(*keys: str, low: float = 0.0, high: float = math.inf) -> Limit:
    return Limit(keys=keys, side="min", low=low, high=high)


# the one place that ties a rule's name to measures
LIMITS: Mapping[str, Limit] = {
    "min_accuracy_fused": _least("accuracy_fused", high=1),
    "min_gap_closed": _least("gap_closed", low=-math.inf),
    "max_perplexity_after": _most("perplexity_after"),
    "max_epsilon": _most("epsilon_claimed", "epsilon_spent"),  # spent: by all seeds together
    "max_total_epsilon": _most("epsilon_total"),
    "max_delta": _most("delta", high=1),
    "max_audited_epsilon": _most("epsilon_audited"),
    "max_tpr_at_1pct_fpr": _most("tpr_at_1pct_fpr", high=1),
    "max_membership_auc": _most("membership_auc", high=1),
    "max_token_auc": _most("token_auc", high=1),
    "max_exact_sequence_recall": _most("exact_sequence_recall", high=1),
    "max_exposure_bits": _most("canary_exposure_bits"),
    "min_cohort": _least("effective_cohort"),
    "max_verbatim_share": _most("verbatim_share", high=1),
    "min_owners_edge": _least("owners_edge", low=-1, high=1),
    "max_proxy_accuracy": _most("proxy_accuracy", high=1),
    "min_proxy_kl_nats": _least("proxy_kl_nats"),
    "max_proxy_cka": _most("proxy_cka", high=1),
    "max_extraction_R": _most("extraction_R"),
    "max_api_gain": _most("api_gain"),
    "max_proxy_gain": _most("proxy_gain"),
    "max_healing_R": _most("healing_R"),
    "max_upload_bytes": _most("upload_bytes"),
    "max_download_bytes": _most("download_bytes"),
    "max_protocol_bytes": _most("protocol_bytes"),
    "max_seconds_federate": _most("seconds_federate"),
    "max_seconds_total": _most("seconds_total"),
    "max_peak_memory_bytes": _most("peak_memory_bytes"),
}
WHOLE = frozenset({"max_total_epsilon"})  # of all configurations together, whatever they are
# rules that are no limit of a measure -> what they must be given
OTHERS: Mapping[str, str] = {
    "forbid_unsafe": "true",
    "require_unit": "record or client",
    "require_audit_within_claim": "true",
    "resist": "attacks by id or name, such as [A2, A3]",
    "min_seeds": "a whole number >= 1",
}
QUALIFIERS = ("applies_to", "views", "not_applicable")
FLAGS = ("require_signed_audit", "allow_failed_seeds")
TOP = ("schema_version", "name", "applies_to", *FLAGS, "signer", "rules")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. `bound`: what stands after its name: a number, `True`, a unit or a tuple of attacks.

    `applies_to`: settings and the values of each that it is for; empty: all. `views`: of `resist`, from
    which each attack must have been resisted; empty: from wherever it was tried. `not_applicable`: whether
    an attack that found nothing to attack counts as resisted.
    """

    name: str
    bound: Any
    applies_to: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    not_applicable: bool = False

    @property
    def text(self) -> str:
        """As the policy has it."""
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
    """Rules, and what the report itself must be. `signer`: the public key that must have signed, hex.

    `allow_failed_seeds`: whether a configuration may be judged by the seeds that finished. `sha256`: of the
    file.
    """

    name: str
    rules: tuple[Rule, ...]
    require_signed_audit: bool = False
    allow_failed_seeds: bool = False
    signer: str | None = None
    sha256: str = ""


def find_policy(name: str, folders: Sequence[Path] = FOLDERS) -> Path:
    """The file called `name`, or the shipped policy of that name.

    Raises `ConfigError` that names the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"{name}: there is no such file or shipped policy{_hint(name, list(shipped))}")


def load_policy(path: Path) -> Policy:
    """Read a policy. Raises `ConfigError` with one line: the key, the value, the rule."""
    try:
        data = read_bytes(path)
        raw = parse_yaml(data, _Strict)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    try:
        return _policy(raw, hashlib.sha256(data).hexdigest(), path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Strict(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, once no key repeats."""
        names = Counter(str(key.value) for key, _ in node.value)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ConfigError(f"line {node.start_mark.line + 1}: {twice[0]} is given twice")
        return super().construct_mapping(node, deep=deep)


def _policy(raw: Any, sha256: str, stem: str) -> Policy:
    if not isinstance(raw, dict):
        raise ConfigError(f"must hold `key: value`, holds {type(raw).__name__}")
    for key in raw:
        if key not in TOP:
            raise ConfigError(f"{key}: unknown key{_hint(key, TOP)}")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"schema_version={raw.get('schema_version')}: must be {SCHEMA_VERSION}")
    flags = {name: raw.get(name, False) for name in FLAGS}
    for name, value in flags.items():
        if not isinstance(value, bool):
            _refuse(name, value, "true or false")
    signer = raw.get("signer")
    if signer is not None and not (_is_key(signer) and flags["require_signed_audit"]):
        _refuse("signer", signer, "64 hex digits, with require_signed_audit: true")
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
        if key not in LIMITS and key not in OTHERS:
            raise ConfigError(f"{where}.{key}: unknown rule{_hint(key, [*LIMITS, *OTHERS, *QUALIFIERS])}")
    if len(names) != 1:
        raise ConfigError(f"{where}: has {len(names)} rules; must have one, each begins with a dash")
    (name,) = names
    where = f"{where}.{name}"
    views = raw.get("views", [])
    if not _is_names(views) or (views and name != "resist"):
        _refuse(f"{where}: views", views, "names of threat models, with resist alone")
    allowed = raw.get("not_applicable")
    attacked = name in ("resist", "require_audit_within_claim") or (name in LIMITS and LIMITS[name].attacks)
    if allowed not in (None, "pass") or (allowed and not attacked):
        _refuse(f"{where}: not_applicable", allowed, "`pass`, with rules on attacks alone")
    if name in WHOLE and "applies_to" in raw:
        _refuse(f"{where}: applies_to", raw["applies_to"], "left out: the rule is for the whole report")
    own = _applies_to(raw["applies_to"], f"{where}: applies_to") if "applies_to" in raw else common
    return Rule(
        name=name,
        bound=_bound(name, raw[name], where),
        applies_to=own,
        views=tuple(views),
        not_applicable=allowed == "pass",
    )


def _bound(name: str, raw: Any, where: str) -> Any:
    if name in LIMITS:
        limit = LIMITS[name]
        number = isinstance(raw, int | float) and not isinstance(raw, bool)
        if not number or not math.isfinite(raw) or not limit.low <= raw <= limit.high:
            _refuse(where, raw, f"a number >= {limit.low:g}" + _up_to(limit.high))
        return float(raw)
    if name == "resist":
        fits = _is_names(raw) and len(raw) > 0
        return tuple(raw) if fits else _refuse(where, raw, OTHERS[name])
    if name == "require_unit":
        fits = raw in ("record", "client")
    elif name == "min_seeds":
        fits = isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1
    else:
        fits = raw is True
    return raw if fits else _refuse(where, raw, OTHERS[name])


def _applies_to(raw: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Settings are texts in a report; 0.50 in a policy means the text 0.5."""
    if not isinstance(raw, dict):
        _refuse(where, raw, "`setting: value` or `setting: [value, value]`")
    made = {}
    for key, value in raw.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) in (str, int, float) for v in values):
            _refuse(f"{where}.{key}", value, "a value or a list of values")
        made[str(key)] = tuple(v if isinstance(v, str) else f"{v:g}" for v in values)
    return made


def _is_names(raw: Any) -> bool:
    return isinstance(raw, list) and all(isinstance(v, str) for v in raw)


def _is_key(raw: Any) -> bool:
    return isinstance(raw, str) and len(raw) == 64 and all(c in "0123456789abcdef" for c in raw)


def _up_to(high: float) -> str:
    return "" if math.isinf(high) else f" and <= {high:g}"


def _refuse(where: str, value: object, rule: str) -> NoReturn:
    raise ConfigError(f"{where}={value!r}: must be {rule}")


def _hint(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
