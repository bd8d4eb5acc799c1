"""Protections beside no protection: differences, the surfaces they are of, and the table side by side."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from fedproxy_secure.evidence.estimate import independent_difference
from fedproxy_secure.evidence.finding import Outcome, read_findings, write_findings
from fedproxy_secure.evidence.surfaces import MODEL, PLANTED, SINGLE, SUM, surface_of
from fedproxy_secure.evidence.targets import paired_by_target
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.protections.rows import side_table
from fedproxy_secure.report.protections.side_by_side import over_seeds
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.schema import report_schema
from fedproxy_secure.report.text.markdown import markdown_report
from tests.support.page_walk import parse
from tests.support.side_by_side import MASKED, OPEN, configuration, finding, of, report_of, three

# differences


def test_the_same_exam_is_paired_by_target_and_another_is_not(report):
    sums, update = of(report, "from_sum", "masked"), of(report, "from_update", "masked")
    expected = paired_by_target(MASKED[1].targets, OPEN[1].targets, metric="m", unit="AUC")
    assert sums.paired
    assert (sums.difference.low, sums.difference.high) == (expected.low, expected.high)
    assert not update.paired
    apart = independent_difference(MASKED[0].headline, OPEN[0].headline, metric="m")
    assert (update.difference.low, update.difference.high) == (apart.low, apart.high)
    assert "not paired" in update.difference.how


def test_a_difference_says_what_was_read_what_would_have_shown_and_whether_there_is_something(report):
    update = of(report, "from_update", "masked")
    assert (update.surface, update.surface_here) == (SINGLE, SUM)
    assert (update.shows, update.could_show, update.bar) == (True, 0.648, 0.55)
    assert update.difference.value == pytest.approx(update.value.value - update.base.value)
    assert not of(report, "from_model", "masked").shows
    nothing = of(report, "secret", "private")
    assert (nothing.value, nothing.difference) == (None, None)
    assert (nothing.outcome, nothing.why) == (Outcome.NOT_APPLICABLE, "no canaries")


def test_over_seeds_a_difference_is_paired_seed_by_seed_and_no_surer_than_one_seed():
    plainly = [finding("from_sum", 2.0, seed=s, exam=f"e{s}") for s in (0, 1, 2)]
    masked = [finding("from_sum", 1.0, seed=s, exam=f"e{s}") for s in (0, 1)]
    found = of(report_of(three(plainly, masked, ())), "from_sum", "masked")
    alone = [
        paired_by_target(m.targets, p.targets, metric="m", unit="AUC")
        for m, p in zip(masked, plainly, strict=False)
    ]
    assert found.difference.seeds == found.base.seeds == (0, 1)
    assert found.difference.value == pytest.approx(np.mean([a.value for a in alone]))
    assert found.difference.low <= np.mean([a.low for a in alone])
    assert found.paired
    other = [masked[0], replace(masked[1], targets=None)]
    assert not of(report_of(three(plainly, other, ())), "from_sum", "masked").paired
    assert over_seeds({3: plainly[0].headline}, metric="m").seeds == (3,)


def test_only_configurations_that_are_alike_in_all_else_are_compared():
    more = [
        *three(),
        configuration("other", "masking", *MASKED, ratio="0.25"),
        configuration("other open", "unsafe_plaintext", *OPEN, ratio="0.25"),
        configuration("alone", "masking", *MASKED, ratio="0.75"),
    ]
    pairs = {(d.configuration, d.against) for d in report_of(more).attack_differences}
    assert pairs == {("masked", "open"), ("private", "open"), ("other", "other open")}


def test_an_attack_whose_negative_control_finds_something_shows_nothing():
    wrong = replace(OPEN[1], negative=OPEN[0].headline)
    assert not of(report_of(three((wrong,))), "from_sum", "masked").shows


def test_findings_without_what_they_read_and_could_show_are_compared():
    bare = {"read": (), "detectable": (), "targets": None}
    made = report_of(three([replace(OPEN[1], **bare)], [replace(MASKED[1], **bare)], ()))
    found = of(made, "from_sum", "masked")
    assert found.shows
    assert (found.surface, found.could_show, found.paired) == ("", None, False)


def test_a_report_holds_no_targets_and_one_that_joins_it_keeps_what_they_showed(report):
    assert all(f.targets is None for c in report.configurations for f in c.findings)
    assert any(d.paired for d in report.attack_differences)
    joined = report_of(report.configurations, known=report.attack_differences)
    assert joined.attack_differences == report.attack_differences
    assert not any(d.paired for d in report_of(report.configurations).attack_differences)


def test_a_report_of_differences_survives_the_disk_and_follows_the_schema(report, tmp_path: Path):
    report.write(tmp_path)
    assert Report.load(tmp_path) == report
    jsonschema.validate(json.loads(report.to_json()), report_schema())


def test_findings_keep_their_targets_on_disk(tmp_path: Path):
    write_findings(tmp_path, OPEN)
    assert read_findings(tmp_path) == list(OPEN)


# surfaces


@pytest.mark.parametrize(
    ("read", "measures", "surface"),
    [
        (("IND", "MOD"), ["membership_auc"], SINGLE),
        (("AGG", "MOD"), ["token_auc"], SUM),
        (("MOD",), ["tpr_at_1pct_fpr"], MODEL),
        (("API",), ["membership_auc"], MODEL),
        (("MOD",), ["canary_exposure_bits"], PLANTED),
        (("MOD",), ["epsilon_audited"], ""),
        (("API", "MOD"), ["extraction_R"], ""),
        (("ACT", "MOD"), ["membership_auc"], ""),
        (("MOD",), [], ""),
        (("MOD",), ["nobody's"], ""),
        ((), ["membership_auc"], ""),
    ],
)
def test_the_surface_follows_from_what_was_read_and_what_was_looked_for(read, measures, surface):
    assert surface_of(replace(OPEN[0], read=read, measures=dict.fromkeys(measures, ()))) == surface


@pytest.mark.parametrize(
    ("mapping", "surface"),
    [(["AML.T0057", "LLM02"], MODEL), (["AML.T0024.001", "MEASURE 2.7"], ""), (["AML.T0024.002"], "")],
)
def test_an_attack_without_a_measure_speaks_of_records_if_it_maps_to_a_leak_of_them(mapping, surface):
    triples = tuple(("framework", "1", item) for item in mapping)
    assert surface_of(replace(OPEN[2], measures={}, mapping=triples)) == surface


# side by side


def test_the_table_has_a_row_an_attack_view_and_surface_and_a_column_a_protection(report):
    table = side_table(report)
    assert table.kinds == ("masking", "masking + DP")
    assert [(r.attack, r.view, r.surface) for r in table.rows] == [
        ("from_update", "server", SINGLE),
        ("from_sum", "client", SUM),
        ("from_model", "client", MODEL),
        ("secret", "client", PLANTED),
    ]
    sums = table.rows[1]
    assert sums.base.estimate == OPEN[1].headline
    assert sums.could_show.text == "0.65"
    assert sums.cells[0].value.estimate == MASKED[1].headline
    assert sums.cells[0].paired
    assert not table.rows[0].cells[0].paired
    assert table.rows[3].cells[1].why == "NOT_APPLICABLE: no canaries"


def test_the_table_is_on_the_page_and_in_markdown_with_what_is_not_paired(report):
    lines = [line for line in markdown_report(report).splitlines() if line.startswith("| X")]
    assert len(lines) == 4
    assert "not paired" in lines[0]
    assert "not paired" not in lines[1]
    assert "no number" in lines[3]
    html = page(report)
    assert "Attacks side by side" in html
    sources = {n.attributes["data-source"] for n in parse(html).every("data", css="num")}
    for index, d in enumerate(report.attack_differences):
        if d.difference is not None:
            assert f"report.json#/attack_differences/{index}/difference" in sources


def test_a_finding_on_the_page_says_what_it_would_have_shown(report):
    root = parse(page(report))
    told = [n for n in root.every("data", css="num") if "would have been seen" in n.attributes["title"]]
    assert {n.text for n in told} == {"0.65"}
    never = replace(OPEN[0].detectable[0], smallest=None)
    made = report_of(three([replace(OPEN[0], detectable=(never,))], MASKED[:1], ()))
    assert "no value" in " ".join(e.text for e in parse(page(made)).every(css="findings"))
