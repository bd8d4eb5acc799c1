"""Colours and Vega-Lite config of the report's charts, and drawing to SVG and PNG without a browser.

Colours are CSS variables, so that one drawing suits light, dark and print; a PNG has the light colours.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from fedproxy_secure.report.sweep import UNPROTECTED
from fedproxy_secure.runtime.escape import printable

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
VERSION = "6.4"  # a version of Vega-Lite that vl-convert contains
FONT = "Inter, ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
RAMP = tuple(f"ramp-{i}" for i in range(5))
LIGHT: Mapping[str, str] = {
    "ink": "#1c1f23",
    "muted": "#5b626b",
    "rule": "#dfe2e6",
    "paper": "#ffffff",
    "kind-0": "#b42318",
    "kind-1": "#1d5fbf",
    "kind-2": "#0f7b63",
    "kind-3": "#8a3ffc",
    "kind-4": "#8a5a00",
    "kind-5": "#5b626b",
    "ramp-0": "#f1f3f5",
    "ramp-1": "#d5d9df",
    "ramp-2": "#a9b1bb",
    "ramp-3": "#6d7783",
    "ramp-4": "#2b3139",
}
DARK: Mapping[str, str] = {
    "ink": "#e8eaed",
    "muted": "#a4abb5",
    "rule": "#33383f",
    "paper": "#15181c",
    "kind-0": "#ff8577",
    "kind-1": "#7fb2ff",
    "kind-2": "#4fc9a8",
    "kind-3": "#c4a1ff",
    "kind-4": "#e0b050",
    "kind-5": "#a4abb5",
    "ramp-0": "#1d2126",
    "ramp-1": "#3a4149",
    "ramp-2": "#666f7a",
    "ramp-3": "#a0a9b4",
    "ramp-4": "#e8eaed",
}
_VARIABLE = re.compile(r"var\(--([a-z0-9-]+)\)")


def variable(name: str) -> str:
    """Return the CSS variable of a colour."""
    return f"var(--{name})"


def kind_slots(kinds: Sequence[str]) -> list[int]:
    """Return the number of the colour and shape of each kind.

    0, red, means no protection. Protections get 1 to 4 in order; any further ones share 5.
    """
    protections = [kind for kind in kinds if kind != UNPROTECTED]
    return [0 if kind == UNPROTECTED else min(5, 1 + protections.index(kind)) for kind in kinds]


def kind_colours(kinds: Sequence[str]) -> list[str]:
    """Return one colour per kind, in order."""
    return [variable(f"kind-{slot}") for slot in kind_slots(kinds)]


def kind_shapes(kinds: Sequence[str]) -> list[str]:
    """Return one shape per kind, in order."""
    return [SHAPES[slot] for slot in kind_slots(kinds)]


def theme() -> Spec:
    """Return Vega-Lite's config: light axes, and the report's colours and font."""
    muted = variable("muted")
    return {
        "font": FONT,
        "background": None,
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titlePadding": 8,
            "gridColor": variable("rule"),
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "title": {
            "color": variable("ink"),
            "fontSize": 13,
            "fontWeight": 600,
            "anchor": "start",
            "offset": 10,
        },
        "legend": {
            "labelColor": muted,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleLimit": 340,
            "orient": "bottom",
            "direction": "horizontal",
        },
    }


def side_by_side(specs: Sequence[Spec], *, columns: int, width: int) -> Spec:
    """Return several charts as one picture of fixed width, with a legend of kinds.

    The page needs no such legend, because it has its own.
    """
    parts = []
    for spec in specs:
        part = {k: v for k, v in spec.items() if k not in ("$schema", "config", "autosize", "params")}
        parts.append(_with_legends({**copy.deepcopy(part), "width": width}))
    for index, part in enumerate(parts):  # rows have the same names; the first column shows them
        if index % columns and part.get("encoding", {}).get("y", {}).get("type") == "nominal":
            part["encoding"]["y"]["axis"]["labels"] = False
    return {
        "$schema": SCHEMA,
        "config": theme(),
        "background": variable("paper"),
        "padding": 16,
        "params": specs[0]["params"],
        "columns": columns,
        "spacing": 28,
        "concat": parts,
        "resolve": {"scale": {"fill": "independent"}},
    }


def to_svg(spec: Spec) -> str:
    """Return the chart as SVG; its colours stay CSS variables."""
    return _svg(json.dumps(visible(spec)))


def visible(spec: Any) -> Any:
    """Return a spec without control characters in its texts, which would make an SVG invalid XML."""
    if isinstance(spec, str):
        return printable(spec)
    if isinstance(spec, dict):
        return {key: visible(value) for key, value in spec.items()}
    return [visible(value) for value in spec] if isinstance(spec, list | tuple) else spec


def to_png(spec: Spec) -> bytes:
    """Return the chart as PNG in the light colours, at twice its size."""
    import vl_convert

    light = _VARIABLE.sub(lambda match: LIGHT[match[1]], to_svg(spec))
    png: bytes = vl_convert.svg_to_png(light, scale=2)
    return png


@lru_cache(maxsize=32)  # the page and the PNG files draw the same charts
def _svg(spec: str) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    return svg


@cache
def vega_script() -> str:
    """Return the JavaScript that draws specs in a browser: Vega, Vega-Lite and Vega-Embed, 0.9 MB."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VERSION)
    return script


def _with_legends(part: Any) -> Any:
    """Return the chart with a legend of kinds; the page uses its checkboxes as legend instead."""
    if isinstance(part, dict):
        for channel in ("color", "stroke", "shape"):
            inner = part.get(channel)
            if isinstance(inner, dict) and inner.get("field") == "kind":
                inner["legend"] = {"title": None, "symbolSize": 90, "columns": 3}
        for value in part.values():
            _with_legends(value)
    elif isinstance(part, list):
        for value in part:
            _with_legends(value)
    return part
