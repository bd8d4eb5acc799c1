"""Reading of settings from a YAML file and overrides; every error is one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.config.settings import Config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.runtime.files.names import SETTINGS_FILE
from fedproxy_secure.runtime.nearest import nearest
from fedproxy_secure.runtime.quoting import one_line, quoted
from fedproxy_secure.runtime.untrusted import GivenTwice, parse_yaml, read_bytes, yaml_reason


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `a.b=value` overrides, and check everything.

    Raises `ConfigError` with one line: the key, the value, the rule.
    """
    try:
        raw = parse_yaml(read_bytes(Path(path)).decode())
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; must be settings: give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {yaml_reason(error)}") from error
    except ValueError as error:  # another encoding, or a date that does not exist
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    raw = {} if raw is None else raw  # an empty file: all defaults
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold settings as `key: value`, holds {type(raw).__name__}")
    return parse_config(apply_overrides(raw, overrides or []))


def settings_in(folder: Path) -> Config:
    """Read the resolved settings of a run, a matrix or a comparison from its folder.

    Raises `RunFolderError` for a folder without any, `ConfigError` for settings that `load_config` refuses.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        raise RunFolderError(f"{folder}: is not a run folder: has no {SETTINGS_FILE}")
    return load_config(file)


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return nested settings with `a.b=value` overrides in them. Raises `ConfigError` for any other."""
    for override in overrides:
        _apply(raw, override)
    return raw


def parse_config(raw: dict[str, Any]) -> Config:
    """Check a nested dict of settings, and that the federation it describes can be protected as it asks.

    Raises `ConfigError` with one line.
    """
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error, raw)) from None
    config.check_protection()
    COMPRESSIONS.get(config.compress.kind).check_settings(config.compress)
    return config


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must be key.path=value")
    try:
        parsed = parse_yaml(value)
    except GivenTwice as error:
        raise ConfigError(f"--set {override}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
    except ValueError as error:  # such as a date that does not exist
        raise ConfigError(
            f"--set {override}: the value cannot be read: {error}; put text in quotes"
        ) from error
    *parents, last = key.split(".")
    node: Any = raw
    try:
        for parent, inner in pairwise([*parents, last]):
            if isinstance(node, list):
                node = node[int(parent)]
            else:
                if node.get(parent) is None:  # not there, or a section without any key
                    if inner.isdecimal():
                        raise ConfigError(
                            f"--set {override}: the file has no list {parent} of which one item could be "
                            "set; give the whole list, or write it into the file"
                        )
                    node[parent] = {}
                node = node[parent]
        if isinstance(node, list):
            node[int(last)] = parsed
        else:
            node[last] = parsed
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise ConfigError(f"--set {override}: there is no such key") from error


_MAPPING = "must be a mapping of settings (`key: value`), or leave the line out"
_RULES = {"model_type": _MAPPING, "dict_type": _MAPPING, "dict_attributes_type": _MAPPING}
_PATTERNS = {  # of names, in words
    r"^[A-Za-z0-9_]+$": "must be ASCII letters, digits and _, at least one",
    r"^[A-Za-z0-9_-]+$": "must be ASCII letters, digits, _ and -, at least one",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "must be ASCII letters, digits, _, . and -, the first not . or -",
}


def _one_line(error: ValidationError, raw: Any) -> str:
    # clients that a wrong `data.partition` could not make are no second error
    errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    first, places = errors[0], [_place(e["loc"], raw) for e in errors]
    where = one_line(".".join(map(str, places[0])))
    others = len(set(places)) - 1  # a value that fits none of several types has an error for each
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        *parents, unknown = first["loc"]
        return f"{where}: unknown key; {nearest(str(unknown), _keys_at(parents))}{more}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return (f"{where}: {message}" if where else message) + more
    if first["type"] == "missing":
        given = one_line(", ".join(map(str, first["input"])))
        return f"{where}: is missing; must be given beside {given or 'nothing'}; it has no default{more}"
    rules = [rule_in_words(e) for e, place in zip(errors, places, strict=True) if place == places[0]]
    rule = " or ".join([rules[0], *(r.removeprefix("must be ") for r in rules[1:])])
    if first["input"] is None:
        return f"{where}: is empty; {rule}{more}"
    return f"{where}={_shown(first['input'])}: {rule}{more}"


def _place(loc: Sequence[int | str], raw: Any) -> tuple[int | str, ...]:
    """Return the part of an error's place that is in the settings, without names of types."""
    place: list[int | str] = []
    for part in loc:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int):
            raw = raw[part]
        else:
            break
        place.append(part)
    return tuple(place)


def rule_in_words(error: ErrorDetails) -> str:
    """Return the rule that a value breaks, in words: what it must be."""
    if error["type"] == "tuple_type":
        value = error["input"]
        such = f", such as [{_shown(value).strip(chr(39))}]" if isinstance(value, str | int | float) else ""
        return f"must be a list{such}"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in _PATTERNS:
        return _PATTERNS[error["ctx"]["pattern"]]
    if error["type"] in _RULES:
        return _RULES[error["type"]]
    if error["type"] == "missing":
        return "is missing; must be given"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"must {message.removeprefix('Input should ')}"
        if message.startswith("Input should ")
        else (f"{message[0].lower()}{message[1:]}")
    )


def _shown(value: Any) -> str:
    """Return a value as `repr` shows it, cut to the length of a line."""
    try:
        return one_line(repr(value))
    except ValueError:  # an integer of more than 4,300 digits
        return quoted(value)


def _keys_at(path: list[Any]) -> list[str]:
    model: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in get_args(annotation) if isinstance(a, type)]
        model = inner[0] if inner else annotation
    return list(model.model_fields)
