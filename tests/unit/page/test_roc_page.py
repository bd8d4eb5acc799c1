"""ROC curves on a report's page: a chart for each attack, a choice for each view, also in words."""

from dataclasses import replace

import pytest

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.roc import Roc
from fedproxy_secure.report.html.charts import figures, write_pngs
from fedproxy_secure.report.html.drawing import to_svg
from fedproxy_secure.report.html.figure import Chart
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.report import Report
from tests.support.page_walk import parse
from tests.support.side_by_side import MASKED, OPEN, PRIVATE, finding, report_of, three

FEW = Roc(positives=4, negatives=3, steps=((0, 2), (1, 3), (3, 4)))


def charts(report: Report) -> list[Chart]:
    return [c for f in figures(report) if f.id == "roc" for c in f.charts]


def with_rates(found: Finding) -> Finding:
    rate = Estimate(
        metric="TPR at 1.0% FPR",
        value=0.25,
        low=0.2,
        high=0.3,
        n=100,
        unit="share",
        seeds=(0,),
        how="for the test",
        nature="sampled",
    )
    others = (replace(rate, metric=m) for m in ("cosine", "TPR at 1.0% FPR, loss (0 false positives)"))
    return replace(found, estimates=(*found.estimates, rate, *others))


def test_each_attack_has_a_chart_and_a_line_for_each_configuration():
    drawn = charts(report_of(three()))
    assert [c.title for c in drawn] == ["X6 secret", "X8 from sum", "X10 from model", "X11 from update"]
    spec = drawn[1].specs[0][1]
    steps, points = spec["layer"][1]["data"]["values"], spec["data"]["values"]
    assert {(s["line"], s["kind"]) for s in steps} == {
        (0, "no protection"),
        (1, "masking"),
        (2, "masking + DP"),
    }
    assert {p["name"] for p in points} == {
        "open, seed 0, succeeded",
        "masked, seed 0, succeeded",
        "private, seed 0, resisted",
    }


def test_the_line_has_the_steps_in_percent_from_the_left_edge_to_the_right():
    report = report_of(three())
    unprotected = report.configurations[0]
    shown = replace(unprotected, findings=(replace(unprotected.findings[0], roc=FEW),))
    (chart,) = charts(replace(report, configurations=(shown,)))
    (_, spec), *none = chart.specs
    assert not none
    chance, steps = (layer["data"]["values"] for layer in spec["layer"][:2])
    points = spec["data"]["values"]
    edge = 50 / 3  # half a target
    assert [(s["x"], s["y"]) for s in steps] == [
        (pytest.approx(edge, abs=1e-4), 50),
        (pytest.approx(100 / 3, abs=1e-4), 75),
        (100, 100),
        (100, 100),
    ]
    assert spec["layer"][1]["encoding"]["x"]["scale"] == {
        "type": "log",
        "domain": [pytest.approx(edge), 100],
        "nice": False,
    }
    assert all(p["x"] == p["y"] for p in chance)
    assert [(p["wrong"], p["found"]) for p in points] == [("at most 0 of 3", "2 of 4")]  # 10 % of 3 is none


def test_the_view_that_finds_most_is_shown_first_and_the_others_are_a_choice():
    weak, strong = (finding("from_sum", s, view=v) for s, v in ((0.5, "client"), (3.0, "active_server")))
    (chart,) = charts(report_of(three((weak, strong), (), ())))
    assert [name for name, _ in chart.specs] == ["the view active server", "the view client"]
    assert chart.choice == "From"
    text = page(report_of(three((weak, strong), (), ())))
    assert "<option>the view client</option>" in text


def test_an_attack_that_raised_an_error_has_no_curve():
    broken = replace(OPEN[1], outcome=Outcome.ERROR)
    assert charts(report_of(three((broken,), (), ()))) == []


def test_what_was_not_decided_comes_last_and_is_called_inconclusive():
    """Where a control failed, the highest AUC proves nothing."""
    strong = finding("from_sum", 3.0, view="active_server", outcome=Outcome.INCONCLUSIVE)
    weak = finding("from_sum", 0.5, view="client")
    beside = replace(strong, view="client")
    (chart,) = charts(report_of(three((strong, beside), (weak,), ())))
    assert [name for name, _ in chart.specs] == ["the view client", "the view active server"]
    drawn = list(dict.fromkeys(p["name"] for p in chart.specs[0][1]["data"]["values"]))
    assert drawn == ["masked, seed 0, resisted", "open, seed 0, inconclusive"]
    assert "open, seed 0, inconclusive: AUC" in chart.description
    assert "X8 from client, open, seed 0, inconclusive: auc" in [name for name, _ in chart.numbers]


def test_the_chart_is_told_in_words_and_its_numbers_stand_beside_it():
    report = report_of(three(tuple(map(with_rates, OPEN[:1])), MASKED[:1], PRIVATE[:1]))
    (chart,) = charts(report)
    roc = report.configurations[0].findings[0].roc
    assert roc is not None
    says = f"finds {roc.found(0)} of 100 without a false positive, {roc.found(0.1)} with at most 10 of 100"
    begins = "X11 from update from the view server. open, seed 0, succeeded: AUC 0.99,"
    assert chart.description.startswith(f"{begins} {says}.")
    assert [name for name, _ in chart.numbers] == [
        "X11 from server, open, seed 0, succeeded: auc",
        "X11 from server, open, seed 0, succeeded: TPR at 1.0% FPR",
        "X11 from server, masked, seed 0, succeeded: auc",
        "X11 from server, private, seed 0, resisted: auc",
    ]
    root = parse(page(report))
    (section,) = (e for e in root.every("section") if e.attributes.get("id") == "roc")
    assert chart.description in section.text
    assert all(name in section.text for name, _ in chart.numbers)


def test_the_description_of_many_lines_says_how_many_more_there_are():
    seeds = tuple(finding("from_sum", 1.0, seed=s) for s in range(14))
    (chart,) = charts(report_of(three(seeds, (), ())))
    assert chart.description.count("AUC") == 12
    assert chart.description.endswith("2 more lines are in the table.")


def test_without_curves_there_is_neither_chart_nor_section():
    bare = [replace(c, findings=tuple(replace(f, targets=None) for f in c.findings)) for c in three()]
    report = report_of(bare)
    assert charts(report) == []
    assert 'id="roc"' not in page(report)


def test_the_curves_are_drawn_also_without_a_browser(tmp_path):
    report = report_of(three())
    svg = to_svg(charts(report)[0].specs[0][1])
    assert ">none<" in svg
    assert "view: client" in svg
    assert tmp_path / "roc.png" in write_pngs(report, tmp_path)
