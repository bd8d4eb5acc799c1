"""The charts of a report: the axes at a glance, the Pareto fronts, curves over rounds; as specs and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.evidence.measure import Axis
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.html import chart_specs
from fedproxy_secure.report.html.chart_specs import Side, ends
from fedproxy_secure.report.html.drawing import Spec, to_png
from fedproxy_secure.report.html.figure import Chart, Figure
from fedproxy_secure.report.html.roc import roc_charts
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import (
    AXIS_NAMES,
    TRILEMMA,
    Labelled,
    Span,
    front_in_words,
    headline,
    keys_of,
    kind_of_measure,
    kinds_of,
    labelled,
    on_front,
    percent,
    upward,
)
from fedproxy_secure.report.trilemma import Measure
from fedproxy_secure.runtime.artifacts import write_bytes


def figures(report: Report) -> list[Figure]:
    """Return all figures that the report has numbers for, in the order of the page."""
    candidates = [
        Figure(id="glance", title="At a glance", charts=tuple(_glance(report)), columns=3, width=190),
        Figure(id="pareto", title="Pareto fronts", charts=tuple(_fronts(report)), columns=2, width=380),
        Figure(id="methods", title="Methods", charts=tuple(_methods(report)), columns=1, width=460),
        *_curves(report),
        Figure(id="roc", title="ROC curves", charts=tuple(roc_charts(report)), columns=2, width=380),
    ]
    return [figure for figure in candidates if figure.charts]


def write_pngs(report: Report, folder: Path) -> list[Path]:
    """Write every figure as a PNG file into `folder`, in light colours, and return the paths.

    Raises `RunFolderError` if the folder cannot be written.
    """
    paths = []
    for figure in figures(report):
        write_bytes(folder / figure.picture, to_png(figure.spec))
        paths.append(folder / figure.picture)
    return paths


def _glance(report: Report) -> list[Chart]:
    """Return one panel per axis with each configuration's headline measure."""
    items = labelled(report.configurations)
    kinds = kinds_of(items)
    charts = []
    for axis in TRILEMMA:
        key = headline(report.configurations, axis)
        if key is None or len(items) < 2:
            continue
        entries = [(i, n) for i in items if (n := i.number(key)) is not None]
        side = Side.of(_first(items, key))
        description = (
            f"{AXIS_NAMES[axis]}: {side.title} of {len(entries)} configurations with 95 % intervals"
            f"{'' if side.better == 'neither' else f', {side.better} is better'}."
        )
        values = [{"name": i.name, "kind": i.kind, "tip": n.short, **ends(n, "x")} for i, n in entries]
        names = [i.name for i in items]
        spec = chart_specs.dots(values, side, kinds, names, description=description)
        charts.append(
            Chart(
                id=f"glance-{axis}",
                title=AXIS_NAMES[axis],
                description=description,
                specs=((side.title, spec),),
                numbers=tuple((i.name, n) for i, n in entries),
                kinds=tuple(kinds),
            )
        )
    return charts


def _fronts(report: Report) -> list[Chart]:
    """Return performance against privacy and against IP, a spec per measure; fill: the third axis."""
    items = labelled(report.configurations)
    x = headline(report.configurations, "performance")
    charts = []
    sides: tuple[tuple[Axis, Axis], ...] = (("privacy", "ip"), ("ip", "privacy"))
    for axis, third in sides:
        first = headline(report.configurations, axis)
        keys = sorted(
            keys_of(report.configurations, axis),
            key=lambda k: (k != first, -kind_of_measure(report.configurations, k).headline),
        )
        fill = headline(report.configurations, third)
        specs = [
            (k, s) for k in keys if x and _spread_out(items, x, k) and (s := _front(items, x, k, fill))
        ]
        if not specs or x is None:
            continue
        name = "IP" if axis == "ip" else axis
        numbers = [
            (f"{i.name}: {_first(items, key).kind.title}", n)
            for key in (x, *(k for k, _ in specs))
            for i in items
            if (n := i.number(key)) is not None
        ]
        charts.append(
            Chart(
                id=f"front-{axis}",
                title=f"Performance against {name}",
                description=str(specs[0][1]["description"]),
                specs=tuple((Side.of(_first(items, k)).title, spec) for k, spec in specs),
                numbers=tuple(numbers),
                kinds=tuple(kinds_of(items)),
                choice=f"{name if axis == 'ip' else 'Privacy'} measured by",
            )
        )
    return charts


def _front(items: Sequence[Labelled], x: str, y: str, fill: str | None) -> Spec:
    of_x, of_y = _first(items, x), _first(items, y)
    values: list[Spec] = []
    points: list[tuple[Span, Span]] = []
    for item in items:
        in_x, in_y = item.number(x), item.number(y)
        if in_x is None or in_y is None:
            continue
        value = {
            "name": item.name,
            "kind": item.kind,
            "label": item.rest.replace(" removed", ""),
            "x_tip": in_x.short,
            "y_tip": in_y.short,
            **ends(in_x, "x"),
            **ends(in_y, "y"),
        }
        if fill is not None and (in_fill := item.number(fill)) is not None:
            value |= {"fill": ends(in_fill, "x")["x"], "fill_tip": in_fill.short}
        values.append(value)
        points.append((upward(in_x.estimate, of_x.better), upward(in_y.estimate, of_y.better)))
    front = on_front([(in_x[1], in_y[1]) for in_x, in_y in points])
    values = [{**v, "front": f} for v, f in zip(values, front, strict=True)]
    filled = fill is not None and any("fill" in v for v in values)
    x_side, y_side = Side.of(of_x), Side.of(of_y)
    title = f"{x_side.title} against {y_side.title} of {len(values)} configurations"
    return chart_specs.front(
        values,
        x_side,
        y_side,
        Side.of(_first(items, fill)) if filled and fill is not None else None,
        kinds_of(items),
        description=f"{title}. {front_in_words([v['name'] for v in values], points)}",
    )


def _curves(report: Report) -> list[Figure]:
    """Return one figure per curve, with one panel for each combination of other settings."""
    items = labelled(report.configurations)
    titles = dict.fromkeys((c.key, c.title) for i in items for c in i.configuration.curves)
    curve_figures = []
    for key, title in titles:
        panels = tuple(_panels(items, key, title))
        curve_figures.append(
            Figure(id=f"curves-{key}", title=title, charts=panels, columns=min(3, len(panels)), width=280)
        )
    return curve_figures


def _panels(items: Sequence[Labelled], key: str, title: str) -> list[Chart]:
    points = [
        (item, number, Number(estimate, curve.source))
        for item in items
        for curve in item.configuration.curves
        if curve.key == key
        for number, estimate in curve.points
    ]
    everywhere = [v for *_, n in points for v in ends(n, "y").values()]
    domain = (min(everywhere), max(everywhere))
    panels = []
    for index, rest in enumerate(dict.fromkeys(item.rest for item, *_ in points)):
        panel_points = [d for d in points if d[0].rest == rest]
        kinds = kinds_of(items)
        values = [
            {"round": number, "kind": item.kind, "name": item.name, "tip": n.short, **ends(n, "y")}
            for item, number, n in panel_points
        ]
        description = f"{title}, round by round{', ' + rest if rest else ''}, with 95 % intervals."
        panels.append(
            Chart(
                id=f"curve-{key}-{index}",
                title=rest or title,
                description=description,
                specs=((title, chart_specs.curves(values, title, kinds, domain, description=description)),),
                numbers=tuple((f"{item.name}, round {number}", n) for item, number, n in panel_points),
                kinds=tuple(kinds),
            )
        )
    return panels


def _methods(report: Report) -> list[Chart]:
    """Return a chart of the fused LLM of every method of a comparison."""
    entries = [
        (_named(row.method, row.remove_ratio), _removed(row.remove_ratio), Number(row.average, source))
        for i, row in enumerate(report.rows)
        if row.average is not None and (source := pointer(f"rows/{i}/average"))
    ]
    if len(entries) < 2:
        return []
    kinds = list(dict.fromkeys(kind for _, kind, _ in entries))
    values = [{"name": name, "kind": kind, "tip": n.short, **ends(n, "x")} for name, kind, n in entries]
    side = Side(title="fused LLM (%)", better="higher")
    names = [name for name, *_ in entries]
    description = f"Correct answers of the fused LLM for {len(entries)} methods, with 95 % intervals."
    spec = chart_specs.dots(values, side, kinds, names, description=description)
    return [
        Chart(
            id="methods",
            title="Fused LLM by method",
            description=description,
            specs=((side.title, spec),),
            numbers=tuple((name, n) for name, _, n in entries),
            kinds=tuple(kinds),
        )
    ]


def _first(items: Sequence[Labelled], key: str) -> Measure:
    return next(m for i in items if (m := i.configuration.measure(key)) is not None)


def _spread_out(items: Sequence[Labelled], x: str, y: str) -> bool:
    """Return whether a chart of `x` against `y` is useful.

    Two configurations must have both, `y` must vary, and one direction of `y` must be better.
    """
    complete = [i for i in items if i.number(x) is not None and i.number(y) is not None]
    values = {n.estimate.value for i in complete if (n := i.number(y)) is not None}
    return len(values) > 1 and _first(complete, y).better != "neither"


def _named(method: str, ratio: float | None) -> str:
    return method.replace("_", " ") + ("" if ratio is None else f", {percent(ratio)} %")


def _removed(ratio: float | None) -> str:
    return "whole LLM" if ratio is None else f"{percent(ratio)} % removed"
