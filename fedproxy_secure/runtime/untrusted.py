"""Reading of JSON and YAML from other parties: any text gives a value or one expected error.

    nesting   at most `MOST_NESTED` levels: a line of 200,000 brackets exhausts the stack of any parser
    size      files have at most `MOST_BYTES`, and no more than that is ever read into memory
    files     `read_plain_file` reads no links, pipes or devices, for folders that another party filled
    YAML      at most `MOST_NODES` values after references are followed, because ten lines can name a
              billion; no key twice in a mapping, where YAML would use the last; no number of more than 64
              bits or to base 60 (such as `12:30`), because both take quadratic time

Guarantees: no text causes a `RecursionError`, and neither does printing a returned value. Not guaranteed:
that the value is meaningful; readers check types and ranges themselves.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fedproxy_secure.runtime.quoting import MOST_VALUE, one_line

MOST_NESTED = 64
MOST_BYTES = 2**28
MOST_LINE_BYTES = 2**24  # of a line in a file of records; a record is cut to a few thousand tokens
MOST_NODES = 100_000
_MOST_DIGITS = 200  # of an integer: up to 64 bits, a sign, `0b` and underscores


def parse_json(raw: str | bytes, *, repeats: bool = True) -> Any:
    """Return the value of a JSON text in UTF-8; raise `ValueError` for other or too deeply nested text.

    `repeats`: whether an object may have a key twice, of which the last counts; if not, it is refused, too.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        value = json.loads(text, object_pairs_hook=None if repeats else _keys_differ)
    except RecursionError:
        raise _too_deep() from None
    except _TooMuch:
        raise
    except UnicodeDecodeError as error:  # its own text quotes the byte
        raise ValueError(f"is not JSON: is not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {str(error).splitlines()[0][:200]}") from None
    if text.count("[") + text.count("{") > MOST_NESTED:
        _check(value, most_nodes=None)
    return value


def _keys_differ(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        first = dict[str, int]()
        for at, (key, _) in enumerate(pairs, start=1):
            if first.setdefault(key, at) < at:
                places = f"{first[key]} and {at}"  # not quoted: the key may be private
                raise _TooMuch(f"keys {places} of an object are the same; must differ; rename or drop one")
    return value


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises `OSError` if it cannot be read, `ValueError` as `parse_json` does and above `MOST_BYTES`.
    """
    return parse_json(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises `OSError`, and `ValueError` above `MOST_BYTES`."""
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES:,} bytes")
    return raw


def read_plain_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file; do not follow links, or wait for or read pipes and devices.

    Raises `OSError` if it cannot be opened, `ValueError` if it is not a regular file or has more than
    `most` bytes.
    """
    try:
        with open(path, "rb", opener=no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("is no file")
            raw = file.read(most + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("is a link; must be a file") from None
        raise
    if len(raw) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return raw


def no_link(path: str, flags: int) -> int:
    """Open a file as `open` does without an `opener`, but neither through a link nor waiting for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class _TooMuch(ValueError):
    """A value that is nested too deeply or too large, a refused number of YAML or repeated key of JSON."""


class GivenTwice(yaml.YAMLError):
    """A mapping of a YAML text has a key twice; the text names the line and the key."""


class _Strict(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, numbers to base 60 and integers above 64 bits."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the base class's result, after checking that no mapping in it repeats a key.

        The check must precede the construction of mappings, in which `<<` merges in keys of others.
        """
        root: yaml.Node | None = super().get_single_node()
        waiting, seen = [root], set[int]()
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
        return root

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace `<<` by the keys of the mappings it names; refuse more than `MOST_NODES` of them."""
        merged = [value for key, value in node.value if key.tag == MERGE]
        parts = [p for o in merged for p in (o.value if isinstance(o, yaml.SequenceNode) else [o])]
        maps = [part for part in parts if isinstance(part, yaml.MappingNode) and part is not node]
        for part in maps:
            self.flatten_mapping(part)  # in place, so once for each
        if sum(len(part.value) for part in maps) > MOST_NODES:
            raise _TooMuch(f"holds more than {MOST_NODES:,} values")
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        keys = set[Any]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue  # keys that are lists or mappings are refused by the base class
            equals = key.tag == "tag:yaml.org,2002:value"  # the key `=`, which the base class reads as text
            value: Any = key.value if equals else self.construct_object(key)  # `on` and `true` are one key
            if not isinstance(value, Hashable):
                continue  # a tag made it a list, which the base class refuses
            if value in keys:
                name = one_line(str(key.value), MOST_VALUE)
                raise GivenTwice(f"line {key.start_mark.line + 1}: {name} is given twice")
            keys.add(value)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer of at most 64 bits; refuse any other."""
        text = self._decimal(node)
        value = 2**64 if len(text) > _MOST_DIGITS else super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**64:
            raise _TooMuch(f"{_place(node, text)} must have at most 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Return a number; refuse one to base 60."""
        self._decimal(node)
        return super().construct_yaml_float(node)

    def _decimal(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if ":" in text:
            raise _TooMuch(
                f"{_place(node, text)} is a number to base 60; must be decimal, or text in quotes"
            )
        return text


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_yaml_float)


def _place(node: yaml.ScalarNode, text: str) -> str:
    return f"line {node.start_mark.line + 1}: {one_line(text, MOST_VALUE)}:"


def parse_yaml(raw: str | bytes) -> Any:
    """Return the value of a YAML text.

    Raises `yaml.YAMLError` for text that is not YAML, its subclass `GivenTwice` for a repeated key, and
    `ValueError` for a value nested too deeply or too large. `yaml_reason` describes the error in one line.
    """
    try:
        value = yaml.load(raw, Loader=_Strict)  # noqa: S506 - stricter than `SafeLoader`
    except RecursionError:
        raise _too_deep() from None
    except (AttributeError, LookupError, TypeError, OverflowError):  # PyYAML does not check tags
        raise ValueError("has a value that is not of its tag") from None
    _check(value, most_nodes=MOST_NODES)
    return value


def yaml_reason(error: yaml.YAMLError | ValueError) -> str:
    """Return the reason of an error of `parse_yaml` in one line, with the place in the text if known."""
    if isinstance(error, GivenTwice | _TooMuch):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark is not None:
        return f"is not YAML: line {error.problem_mark.line + 1}: {error.problem}"
    return f"is not YAML: {(str(error).splitlines() or ['cannot be read'])[0]}"


def _too_deep() -> _TooMuch:
    return _TooMuch(f"is nested more than {MOST_NESTED} levels deep")


def _check(value: Any, *, most_nodes: int | None) -> None:
    """Raise `ValueError` if a value is nested too deeply, or holds more than `most_nodes`."""
    layer, level = [value], 0
    count = 0
    while layer:
        below: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                below += item.values()
                below += (k for k in item if isinstance(k, tuple))
            elif isinstance(item, list | tuple | set):
                below += item
            if most_nodes is not None and count + len(below) > most_nodes:
                raise _TooMuch(f"holds more than {most_nodes:,} values")
        count += len(below)
        level += 1
        if level > MOST_NESTED + 1:
            raise _too_deep()
        layer = below
