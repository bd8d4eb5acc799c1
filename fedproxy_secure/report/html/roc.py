"""Charts of ROC curves: one for each attack whose headline is an AUC over targets.

The axis of false positives is logarithmic (Carlini et al. 2022): what an attack finds while it is hardly
ever wrong is at its left, where a linear axis shows nothing. Such an axis has no 0: what is found without a
false positive is drawn at the left edge, which is half a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.evidence.roc import READ_AT, Roc, allowed_at
from fedproxy_secure.report.html.chart_specs import by_kind, frame, opacity, tooltip
from fedproxy_secure.report.html.drawing import Spec, variable
from fedproxy_secure.report.html.figure import Chart
from fedproxy_secure.report.measured.attacks import WITHOUT_NUMBERS
from fedproxy_secure.report.page_words import OUTCOME_WORDS, attacks_in_order
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import Labelled, kinds_of, labelled

TICKS = (0.01, 0.1, 1, 10, 100)  # percent
AT_FIXED = "TPR at "  # how numbers begin that are points of a curve, with their interval ...
OF_OTHERS = " FPR, "  # ... and what they have if they are of another score than the curve's
DECIDED = (Outcome.SUCCEEDED, Outcome.RESISTED)
_MOST_SAID = 12  # lines of a chart that its text describes; the table beside it has all


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One curve: a configuration's finding from one view and seed."""

    item: Labelled
    finding: Finding
    roc: Roc

    @property
    def name(self) -> str:
        """The configuration, the seed in words, and how the attack ended."""
        seed = self.finding.seed_folder.replace("-", " ")
        return f"{self.item.name}, {seed}, {OUTCOME_WORDS[self.finding.outcome]}"

    @property
    def decided(self) -> bool:
        """Whether the attack succeeded or was resisted."""
        return self.finding.outcome in DECIDED

    @property
    def auc(self) -> float:
        """The attack's headline."""
        assert self.finding.headline is not None
        return self.finding.headline.value

    @property
    def said(self) -> str:
        """What it finds without a false positive, and with one in ten, in words."""
        return (
            f"{self.name}: AUC {self.auc:.2f}, finds {self.roc.found(0)} of "
            f"{self.roc.positives} without a false positive, {self.roc.found(0.1)} with at most "
            f"{allowed_at(0.1, self.roc.negatives)} of {self.roc.negatives}"
        )


def roc_charts(report: Report) -> list[Chart]:
    """Return a chart for each attack with ROC curves, with a spec for each view, the most telling first.

    Attacks that raised an error have no curve. Those that were decided come before those that were not.
    """
    items = labelled(report.configurations)
    lines = [
        _Line(item=item, finding=finding, roc=finding.roc)
        for item in items
        for finding in item.configuration.findings
        if finding.roc is not None
        and finding.headline is not None
        and finding.outcome not in WITHOUT_NUMBERS
    ]
    lines.sort(key=lambda line: not line.decided)
    kinds = kinds_of(items)
    charts = []
    for number, (id, name) in enumerate(attacks_in_order([line.finding for line in lines])):
        of_attack = [line for line in lines if (line.finding.id, line.finding.attack) == (id, name)]
        title = f"{id} {name.replace('_', ' ')}"
        views = sorted(_views(of_attack).items(), key=lambda view: _most(view[1]), reverse=True)
        specs = [
            (
                f"the view {view}",
                roc_spec(seen, kinds, description=_says(title, view, seen)),
            )
            for view, seen in views
        ]
        charts.append(
            Chart(
                id=f"roc-{number}",
                title=title,
                description=str(specs[0][1]["description"]),
                specs=tuple(specs),
                numbers=tuple(number for _, seen in views for line in seen for number in _numbers(line)),
                kinds=tuple(kinds),
                choice="From",
            )
        )
    return charts


def roc_spec(lines: Sequence[_Line], kinds: Sequence[str], *, description: str) -> Spec:
    """Return a chart of one view's curves as steps, with points at 0, 0.1, 1 and 10 % false positives."""
    edge = min(50 / line.roc.negatives for line in lines)  # percent
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": ["false positives (% of those not there), logarithmic", f"view: {_view_of(lines)}"],
        "scale": {"type": "log", "domain": [edge, 100], "nice": False},
        "axis": {
            "values": [edge, *(t for t in TICKS if t > 1.5 * edge)],
            "labelExpr": f"datum.value <= {edge} ? 'none' : format(datum.value, '~g')",
        },
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": "found (% of those there)",
        "scale": {"domain": [0, 100]},
        "axis": {"tickCount": 5},
    }
    chance = [{"x": v, "y": v} for v in np.geomspace(edge, 100, 40).round(4).tolist()]
    steps = [
        {"x": at, "y": found, "line": number, "kind": line.item.kind}
        for number, line in enumerate(lines)
        for at, found in _drawn(line.roc, edge)
    ]
    points = [point for line in lines for point in _points(line, edge)]
    return {
        **frame(points, kinds, description),
        "height": 300,
        "layer": [
            {
                "data": {"values": chance},
                "mark": {"type": "line", "strokeDash": [5, 4], "color": variable("muted"), "aria": False},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": steps},
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.75, "aria": False},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "line", "type": "nominal"},
                    "opacity": opacity(0.85),
                    **by_kind("color", kinds),
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "opacity": opacity(),
                    **by_kind("color", kinds),
                    **by_kind("shape", kinds),
                    "tooltip": tooltip(("name", "which"), ("wrong", "false positives"), ("found", "found")),
                },
            },
        ],
    }


def _drawn(roc: Roc, edge: float) -> list[tuple[float, float]]:
    """Return the corners of a curve in percent, from the left edge to the right."""
    corners = [
        (max(edge, 100 * wrong / roc.negatives), 100 * found / roc.positives) for wrong, found in roc.steps
    ]
    return [(round(x, 4), round(y, 3)) for x, y in (*corners, (100.0, corners[-1][1]))]


def _points(line: _Line, edge: float) -> list[Spec]:
    """Return the points of a curve without false positives, and at rates that allow at least one."""
    roc = line.roc
    rates = [rate for rate in READ_AT if allowed_at(rate, roc.negatives)]
    return [
        {
            "x": round(max(edge, 100 * rate), 4),
            "y": round(100 * roc.found(rate) / roc.positives, 3),
            "kind": line.item.kind,
            "name": line.name,
            "wrong": f"at most {allowed_at(rate, roc.negatives)} of {roc.negatives}",
            "found": f"{roc.found(rate)} of {roc.positives}",
        }
        for rate in (0.0, *rates)
    ]


def _views(lines: Iterable[_Line]) -> dict[str, list[_Line]]:
    views: dict[str, list[_Line]] = {}
    for line in lines:
        views.setdefault(_view_of([line]), []).append(line)
    return views


def _view_of(lines: Sequence[_Line]) -> str:
    return lines[0].finding.view.replace("_", " ")


def _most(lines: Sequence[_Line]) -> tuple[bool, float]:
    return max((line.decided, line.auc) for line in lines)


def _says(title: str, view: str, lines: Sequence[_Line]) -> str:
    """Return a chart in words."""
    said = [line.said for line in lines[:_MOST_SAID]]
    more = len(lines) - len(said)
    rest = f" {more} more lines are in the table." if more else ""
    return f"{title} from the view {view}. {'. '.join(said)}.{rest}"


def _numbers(line: _Line) -> list[tuple[str, Number]]:
    """Return the headline, and its score's rates at fixed false positives, with their intervals."""
    source = line.item.configuration.source_of(line.finding)
    headline, *others = line.finding.estimates
    rates = [e for e in others if e.metric.startswith(AT_FIXED) and OF_OTHERS not in e.metric]
    title = f"{line.finding.id} from {_view_of([line])}"
    return [(f"{title}, {line.name}: {e.metric}", Number(e, source)) for e in (headline, *rates)]
