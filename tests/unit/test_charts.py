"""The charts draw what was measured, up and right is better, and the front is what nothing beats."""

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.html.charts import figures, write_pngs
from fedproxy_secure.report.html.drawing import LIGHT, RAMP, theme, to_png, to_svg, vega_script
from fedproxy_secure.report.html.figure import Chart
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import Span, front_in_words, may_be_beaten, on_front, upward
from tests.support.page_walk import parse
from tests.support.sample_report import sample_comparison, sample_report

POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report(rounds=4)


def chart(report: Report, id: str) -> Chart:
    return next(c for f in figures(report) for c in f.charts if c.id == id)


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = spec["data"]["values"]
    return found


def points_layer(spec: dict[str, Any]) -> dict[str, Any]:
    return next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point")


@given(POINTS)
def test_no_point_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]):
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    front = on_front(points)
    assert any(front)
    for point, there in zip(points, front, strict=True):
        assert there != any(beats(other, point) for other in points)


def test_a_report_has_a_glance_two_fronts_a_figure_a_curve_and_one_of_roc_curves(report: Report):
    assert [(f.id, len(f.charts)) for f in figures(report)] == [
        ("glance", 3),
        ("pareto", 2),
        ("curves-loss", 2),
        ("curves-step_norm", 2),
        ("roc", 1),
    ]
    assert [f.id for f in figures(sample_comparison())] == ["methods"]
    assert figures(replace(report, configurations=())) == []


def test_the_points_and_whiskers_are_the_measures_in_percent(report: Report):
    drawn = {v["name"]: v for v in values(chart(report, "front-privacy").specs[0][1])}
    assert len(drawn) == len(report.configurations)
    for c in report.configurations:
        for axis, key in (("x", "gap_closed"), ("y", "tpr_at_1pct_fpr"), ("fill", "kl_left_nats")):
            measure = c.measure(key)
            assert measure is not None
            e = measure.estimate
            assert drawn[c.name][axis] == pytest.approx(e.value * (1 if axis == "fill" else 100), abs=1e-5)
            if axis != "fill":
                assert e.low is not None
                assert drawn[c.name][f"{axis}_low"] == pytest.approx(100 * e.low, abs=1e-5)
                assert drawn[c.name][f"{axis}_high"] == pytest.approx(100 * (e.high or math.nan), abs=1e-5)


@pytest.mark.parametrize("id", ["front-privacy", "front-ip"])
def test_an_axis_whose_measure_is_better_lower_runs_backwards_and_says_so(report: Report, id: str):
    for _, spec in chart(report, id).specs:
        for channel in ("x", "y"):
            axis = points_layer(spec)["encoding"][channel]
            assert axis["title"][-1] in ("lower is better →", "higher is better →")
            assert axis["scale"]["reverse"] == axis["title"][-1].startswith("lower")


def test_the_front_in_the_chart_follows_which_way_is_better(report: Report):
    for _, spec in chart(report, "front-privacy").specs:
        axis = points_layer(spec)["encoding"]
        signs = [-1 if axis[c]["scale"]["reverse"] else 1 for c in ("x", "y")]
        drawn = values(spec)
        expected = on_front([(signs[0] * v["x"], signs[1] * v["y"]) for v in drawn])
        assert [v["front"] for v in drawn] == expected
        assert all(v["name"] in spec["description"] for v in drawn if v["front"])


@given(POINTS)
def test_points_may_be_beaten_where_their_intervals_reach_a_point_that_is_not_surely_worse(points):
    apart = list(dict.fromkeys(points))
    near = [((x - 0.6, x, x + 0.6), (y - 0.6, y, y + 0.6)) for x, y in apart]
    for (x, y), may in zip(apart, may_be_beaten(near), strict=True):
        assert may == any((a, b) != (x, y) and a >= x - 1 and b >= y - 1 for a, b in apart)


def test_the_front_is_told_in_words_with_the_members_that_intervals_leave_unsure():
    def exact(x: float, y: float) -> tuple[Span, Span]:
        return (x, x, x), (y, y, y)

    def wide(x: float, y: float) -> tuple[Span, Span]:
        return (x - 1, x, x + 1), (y - 1, y, y + 1)

    sure = front_in_words(["a", "b", "c"], [exact(1, 3), exact(3, 1), exact(1, 1)])
    assert sure.startswith("On the front by mean values: a; b. Within the 95 % intervals no other")
    unsure = front_in_words(["a", "b", "c"], [wide(1, 3), exact(9, 0), exact(0, 2.5)])
    assert unsure.endswith("another configuration may beat some of them (a) on both axes.")
    unknown = (upward(number(1, None), "higher"), upward(number(1, None), "lower"))
    said = front_in_words(["a", "b"], [unknown, exact(0, -2)])
    assert said.endswith("another configuration may beat each of them on both axes.")
    assert upward(number(1, 0.5), "lower") == (-1.5, -1, -0.5)
    assert upward(number(1, 0), "lower") == (-math.inf, -1, math.inf)  # what was sampled is never certain


def number(value: float, half: float | None) -> Estimate:
    low, high = (None, None) if half is None else (value - half, value + half)
    return Estimate(
        metric="m",
        value=value,
        low=low,
        high=high,
        n=1,
        unit="s",
        seeds=(0,),
        how="by hand",
        nature="sampled",
    )


def test_the_page_says_below_each_front_what_is_on_it_and_how_sure_that_is(report: Report):
    text = parse(page(report)).text
    for id in ("front-privacy", "front-ip"):
        assert " ".join(chart(report, id).description.split()) in text
        assert "Within the 95 % intervals" in chart(report, id).description


def test_every_measure_of_privacy_that_differs_can_be_chosen_the_headline_first(report: Report):
    names = [name for name, _ in chart(report, "front-privacy").specs]
    assert names[0] == "members found at 1\u00a0% false positives (%)"
    assert {"vocabulary AUC", "whole records found (%)", "fewest clients in a sum"} <= set(names)
    assert "ε claimed" not in names  # the same wherever it is
    assert "CKA of LLM and proxy (CKA)" not in [n for n, _ in chart(report, "front-ip").specs]


def test_a_configuration_without_the_measure_is_left_out_and_not_drawn_at_zero(report: Report):
    first = report.configurations[0]
    less = replace(first, measures=tuple(m for m in first.measures if m.key != "tpr_at_1pct_fpr"))
    made = chart(replace(report, configurations=(less, *report.configurations[1:])), "front-privacy")
    spec = next(s for name, s in made.specs if name.startswith("members"))
    assert len(values(spec)) == len(report.configurations) - 1
    assert first.name not in {v["name"] for v in values(spec)}


def test_a_single_seed_is_drawn_without_a_whisker():
    single = chart(sample_report(seeds=(0,), rounds=2), "front-privacy").specs[0][1]
    assert not [v for v in values(single) if "x_low" in v]
    assert "rule" not in [layer["mark"]["type"] for layer in single["layer"]]


def test_rows_of_the_three_panels_are_the_same_also_where_a_measure_is_missing(report: Report):
    first = report.configurations[0]
    less = replace(first, measures=tuple(m for m in first.measures if m.axis != "ip"))
    made = replace(report, configurations=(less, *report.configurations[1:]))
    rows = [
        chart(made, f"glance-{axis}").specs[0][1]["encoding"]["y"]["scale"]["domain"]
        for axis in ("performance", "privacy", "ip")
    ]
    assert rows == [[c.name for c in made.configurations]] * 3


def test_panels_of_a_curve_share_their_scale(report: Report):
    panels = [c for f in figures(report) if f.id == "curves-step_norm" for c in f.charts]
    domains = [points_layer(p.specs[0][1])["encoding"]["y"]["scale"]["domain"] for p in panels]
    assert domains[0] == domains[1]
    ends = [v[k] for p in panels for v in values(p.specs[0][1]) for k in ("y", "y_low", "y_high")]
    assert domains[0] == [min(ends), max(ends)]


def test_an_svg_has_a_point_for_each_configuration_and_its_colours_stay_variables(report: Report):
    figure = next(f for f in figures(report) if f.id == "pareto")
    svg = to_svg(figure.spec)
    marks = re.findall(r'<path aria-label="[^"]*"[^>]*role="graphics-symbol"[^>]*>', svg)
    assert len(marks) == 2 * len(report.configurations)
    assert "var(--kind-0)" in svg
    unknown = set(re.findall(r"var\(--([a-z0-9-]+)\)", svg)) - set(LIGHT)
    assert unknown == set()
    assert "#4c78a8" not in svg  # Vega's own blue: something would have no colour of ours


def test_pngs_are_written_beside_the_page_in_light_colours(report: Report, tmp_path: Path):
    written = write_pngs(report, tmp_path)
    assert [p.name for p in written] == [f.picture for f in figures(report)]
    for path in written:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        wide, high = struct.unpack(">II", data[16:24])
        assert wide > 800
        assert high > 300


def test_the_third_axis_changes_the_picture(report: Report):
    """A PNG is drawn from the spec: other fills, other bytes; the same spec, the same bytes."""
    figure = next(f for f in figures(report) if f.id == "pareto")
    other = json.loads(json.dumps(figure.spec).replace(f"var(--{RAMP[4]})", "var(--kind-0)"))
    assert to_png(figure.spec) == to_png(figure.spec)
    assert to_png(figure.spec) != to_png(other)


def test_what_draws_in_the_browser_is_one_script_that_cannot_end_its_element():
    script = vega_script()
    assert "window.vegaEmbed" in script
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert "\r" not in script  # the parser would make it \n, and the hash wrong
    assert len(script) < 1_200_000


def test_the_theme_names_only_known_colours():
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", json.dumps(theme()))) <= set(LIGHT)
