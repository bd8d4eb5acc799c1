"""Vega-Lite specs of the report's charts: dots with intervals, a Pareto front, curves over rounds.

Up and right are better: if lower values of a measure are better, its axis runs backwards, and the title
says so. The parameter `lit` holds the kinds that are not faded; the page's checkboxes set it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from fedproxy_secure.evidence.measure import Better
from fedproxy_secure.evidence.number import Number, unit_text
from fedproxy_secure.report.html.drawing import (
    RAMP,
    SCHEMA,
    Spec,
    kind_colours,
    kind_shapes,
    theme,
    variable,
)
from fedproxy_secure.report.trilemma import Measure

_LIT = "indexof(lit, datum.kind) >= 0"
_NARROW = 22  # letters of an axis title that fit a phone beside the names of the rows
_MOST_LABELS = 12  # points with a label; more labels would overlap


@dataclass(frozen=True, kw_only=True)
class Side:
    """The title of a chart's axis, and which direction is better."""

    title: str
    better: Better = "neither"

    @classmethod
    def of(cls, measure: Measure) -> Side:
        """Return the axis of a measure, with its unit."""
        kind = measure.kind
        unit = unit_text(measure.estimate.unit, signed=kind.signed)
        unit = "" if unit.isalpha() and unit in kind.title else unit
        return cls(title=kind.title + (f" ({unit})" if unit else ""), better=measure.better)

    @property
    def lines(self) -> list[str]:
        """The title, and which direction is better."""
        return [self.title] if self.better == "neither" else [self.title, f"{self.better} is better →"]

    def channel(self, field: str, *, ticks: int) -> Spec:
        """Return a quantitative axis."""
        return {
            "field": field,
            "type": "quantitative",
            "title": self.lines,
            "scale": {"zero": False, "nice": True, "reverse": self.better == "lower", "padding": 10},
            "axis": {"tickCount": ticks},
        }


def ends(number: Number, channel: str) -> Spec:
    """Return value and interval as `x`, `x_low`, `x_high`, with shares in percent.

    A number without an interval has `x` only.
    """
    e = number.estimate
    size = 100.0 if e.unit == "share" else 1.0
    fields = {channel: round(size * e.value, 6)}
    if e.interval is not None:
        low, high = e.interval
        fields |= {f"{channel}_low": round(size * low, 6), f"{channel}_high": round(size * high, 6)}
    return fields


def dots(
    values: Sequence[Spec], side: Side, kinds: Sequence[str], names: Sequence[str], *, description: str
) -> Spec:
    """Return a chart with one row for each of `names`.

    Each of `values` has `name`, `kind`, `tip`, and `x` with `x_low` and `x_high`.
    """
    y = {
        "field": "name",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(names)},
        "axis": {"labelLimit": 240, "grid": False, "labelColor": variable("ink"), "labelFontSize": 12},
    }
    x = side.channel("x", ticks=4)
    x["title"] = [line for long in side.lines for line in wrap(long, _NARROW)]
    return {
        **frame(values, kinds, description),
        "height": 26 * len(names),
        "encoding": {"y": y, **by_kind("color", kinds), "opacity": opacity()},
        "layer": [
            *_whiskers(values, "x", x, {}, 2.0),
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "x": x,
                    **by_kind("shape", kinds),
                    "tooltip": tooltip(("name", "which"), ("tip", side.title)),
                },
            },
        ],
    }


def front(
    values: Sequence[Spec],
    x_side: Side,
    y_side: Side,
    fill_side: Side | None,
    kinds: Sequence[str],
    *,
    description: str,
) -> Spec:
    """Return a chart of points with intervals in both directions.

    A dashed line joins the points on the front; the third axis is the fill. Each of `values` has `name`,
    `kind`, `label`, `front` (on it or not), `x` and `y` with `_low` and `_high`, the texts `x_tip` and
    `y_tip`, and with `fill_side` possibly `fill` and `fill_tip`.
    """
    x, y = x_side.channel("x", ticks=6), y_side.channel("y", ticks=6)
    faint = {**by_kind("color", kinds), "opacity": opacity(0.55)}
    tips = [("name", "which"), ("x_tip", x_side.title), ("y_tip", y_side.title)]
    fill: Spec = {"value": variable(RAMP[2])}
    if fill_side is not None:
        tips.append(("fill_tip", fill_side.title))
        fill = {
            "field": "fill",
            "type": "quantitative",
            "title": [f"fill: {fill_side.title}", f"{fill_side.better} is better"],
            "scale": {"type": "quantize", "range": [variable(r) for r in RAMP], "nice": True},
            "legend": {"gradientLength": 200, "gradientThickness": 10, "format": ".3~g"},
        }
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {
                "type": "line",
                "strokeDash": [5, 4],
                "strokeWidth": 1.5,
                "color": variable("muted"),
                "aria": False,
            },
            "encoding": {"x": x, "y": y, "order": {"field": "x", "type": "quantitative"}},
        },
        *_whiskers(values, "x", x, {"y": y, **faint}, 1.25),
        *_whiskers(values, "y", y, {"x": x, **faint}, 1.25),
        {
            "mark": {"type": "point", "size": 130, "strokeWidth": 2.5, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "fill": fill,
                "opacity": opacity(),
                **by_kind("stroke", kinds),
                **by_kind("shape", kinds),
                "tooltip": tooltip(*tips),
            },
        },
    ]
    placed = _placed(values, y_up=1 if y_side.better != "lower" else -1)
    if len(values) <= _MOST_LABELS:
        layers += [_labels(x, y, above=above) for above in sorted({v["above"] for v in placed})]
    return {**frame(placed, kinds, description), "height": 340, "layer": layers}


def curves(
    values: Sequence[Spec],
    title: str,
    kinds: Sequence[str],
    domain: tuple[float, float],
    *,
    description: str,
) -> Spec:
    """Return a chart with one line and its interval for each kind.

    Each of `values` has `round`, `kind`, `name`, `tip`, `y` and the ends of its interval.
    """
    x = {
        "field": "round",
        "type": "quantitative",
        "title": "round",
        "axis": {"tickMinStep": 1, "format": "d", "grid": False},
        "scale": {"nice": False, "padding": 8},
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "title": title,
        "scale": {"domain": list(domain), "zero": False, "nice": True},
        "axis": {"tickCount": 5},
    }
    band = {
        "mark": {"type": "area", "aria": False},
        "encoding": {
            "y": {**y, "field": "y_low"},
            "y2": {"field": "y_high"},
            "opacity": {"condition": {"test": _LIT, "value": 0.14}, "value": 0.03},
        },
    }
    return {
        **frame(values, kinds, description),
        "height": 200,
        "encoding": {"x": x, **by_kind("color", kinds)},
        "layer": [
            *([band] if any("y_low" in v for v in values) else []),
            {
                "mark": {"type": "line", "strokeWidth": 2, "aria": False},
                "encoding": {"y": y, "opacity": opacity()},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 36, "opacity": 1},
                "encoding": {
                    "y": y,
                    "opacity": opacity(),
                    **by_kind("shape", kinds),
                    "tooltip": tooltip(("name", "which"), ("round", "round"), ("tip", title)),
                },
            },
        ],
    }


def frame(values: Sequence[Spec], kinds: Sequence[str], description: str) -> Spec:
    """Return what all charts have in common: data, text alternative, theme, and the parameter `lit`."""
    return {
        "$schema": SCHEMA,
        "config": theme(),
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
        "params": [{"name": "lit", "value": list(kinds)}],
    }


def _whiskers(values: Sequence[Spec], channel: str, axis: Spec, encoding: Spec, width: float) -> list[Spec]:
    """Return the layer with the intervals of one channel; no layer if no value has an interval."""
    low, high = f"{channel}_low", f"{channel}_high"
    if not any(low in v for v in values):
        return []
    return [
        {
            "transform": [{"filter": f"isValid(datum.{low})"}],
            "mark": {"type": "rule", "strokeWidth": width, "aria": False},
            "encoding": {channel: {**axis, "field": low}, f"{channel}2": {"field": high}, **encoding},
        }
    ]


def _labels(x: Spec, y: Spec, *, above: bool) -> Spec:
    return {
        "transform": [{"filter": f"datum.above === {str(above).lower()}"}],
        "mark": {
            "type": "text",
            "align": "left",
            "dx": 10,
            "dy": -11 if above else 12,
            "fontSize": 11,
            "color": variable("muted"),
            "aria": False,
        },
        "encoding": {"x": x, "y": y, "text": {"field": "label"}, "opacity": opacity()},
    }


def _placed(values: Sequence[Spec], *, y_up: int) -> list[Spec]:
    """Return values with label positions: above the point, or below it if a higher point is close."""
    wide = max(v["x"] for v in values) - min(v["x"] for v in values) or 1.0
    high = max(v["y"] for v in values) - min(v["y"] for v in values) or 1.0

    def crowded(v: Spec) -> bool:
        return any(
            w is not v and abs(w["x"] - v["x"]) < wide / 5 and 0 <= y_up * (w["y"] - v["y"]) < high / 10
            for w in values
        )

    return [{**v, "above": not crowded(v)} for v in values]


def opacity(full: float = 1.0) -> Spec:
    """Return the opacity of marks: `full` for kinds that are lit."""
    return {"condition": {"test": _LIT, "value": full}, "value": 0.12}


def by_kind(channel: str, kinds: Sequence[str]) -> Spec:
    """Return the colour or shape of each kind."""
    chosen = kind_shapes(kinds) if channel == "shape" else kind_colours(kinds)
    scale: Mapping[str, Sequence[str]] = {"domain": list(kinds), "range": chosen}
    return {channel: {"field": "kind", "type": "nominal", "scale": scale, "legend": None}}


def tooltip(*pairs: tuple[str, str]) -> list[Spec]:
    """Return a tooltip of (field, title) pairs."""
    return [{"field": field, "title": title} for field, title in pairs]
