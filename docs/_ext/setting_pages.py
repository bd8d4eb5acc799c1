"""The settings as Markdown, from the pydantic models."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from markdown_parts import markdown_table
from pydantic import BaseModel

from fedproxy_secure import Config


def every_section() -> str:
    """A section for each section of the settings: what it is for, its keys, their values and defaults."""
    parts: list[str] = []
    top = []
    for key, field in Config.model_fields.items():
        models = _models(field.annotation)
        if models and not _sequence(field.annotation):
            parts += _section(key, models[0])
        else:
            top.append(_row(key, field))
    return "\n\n".join(["## At the top", markdown_table(HEADINGS, top), *parts])


HEADINGS = ("key", "values", "default")


def _section(path: str, model: type[BaseModel]) -> list[str]:
    rows, below = [], []
    for key, field in model.model_fields.items():
        rows.append(_row(key, field))
        for part in _models(field.annotation):
            suffix = "[]" if _sequence(field.annotation) else ""
            below += _section(f"{path}.{key}{suffix}", part)
    text = (model.__doc__ or "").strip()
    return [f"## `{path}`", re.sub(r"\n +", "\n", text), markdown_table(HEADINGS, rows), *below]


def _row(key: str, field: Any) -> tuple[str, str, str]:
    default = field.get_default(call_default_factory=True, validated_data={})
    required = field.is_required()
    return (
        f"`{key}`",
        _values(field.annotation, field.metadata),
        "required" if required else _default(default),
    )


def _default(value: Any) -> str:
    if isinstance(value, BaseModel) or (
        isinstance(value, tuple) and value and isinstance(value[0], BaseModel)
    ):
        return "see below"
    if isinstance(value, tuple) and len(value) > 4:
        return f"all {len(value)}"
    return f"`{json.dumps(value, default=str)}`"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]


def _sequence(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list, dict, Mapping)


def _values(annotation: Any, metadata: Any = ()) -> str:
    """A type in words: its choices, or its kind with its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [_values(a, metadata) for a in arguments if a is not type(None)]
        return " or ".join([*words, *["nothing"] * (type(None) in arguments)])
    if origin in (tuple, list):
        return f"list of {_values(arguments[0])}"
    if origin in (dict, Mapping):
        return f"mapping to {_values(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return " ".join((names.get(annotation, str(annotation)), *_bounds(metadata))).strip()


def _bounds(metadata: Any) -> list[str]:
    found = []
    for item in metadata:
        inner = getattr(item, "metadata", None)
        if inner:
            found += _bounds(inner)
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (bound := getattr(item, attribute, None)) is not None:
                found.append(f"{sign} {bound:g}")
    return found
