"""What is said of each protection, in plain words, of the attacks that succeed without it."""

import re
from dataclasses import replace

import pytest

from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.surfaces import MODEL, PLANTED, PRIVACY_SURFACES, SINGLE, SUM
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.protections.rows import side_table
from fedproxy_secure.report.protections.verdicts import CANNOT_TELL, NO_ATTACK, in_words, verdicts
from fedproxy_secure.report.text.markdown import markdown_report
from tests.support.page_walk import faults, parse
from tests.support.side_by_side import (
    MASKED,
    NO_NUMBER,
    OPEN,
    PRIVATE,
    configuration,
    finding,
    of,
    report_of,
    three,
)

NOTHING = {"estimates": (), "measures": {}, "detectable": (), "targets": None}


def said(report, surface, kind="masking"):
    """What the report says of a protection on a surface, as text."""
    made = verdicts(report)
    (row,) = (r for r in made.rows if r.surface == surface)
    if row.warning:
        return in_words(row.warning)
    return " ".join(map(in_words, row.cells[made.kinds.index(kind)]))


def test_a_drop_is_told_with_both_numbers_and_the_interval_of_the_difference(report):
    assert re.fullmatch(
        r"Lowers membership AUC from 0\.99 ± 0\.01 to 0\.79 \[.*\]: difference −0\.20 \[.*\], not paired; "
        r"the attack still succeeds \(X11 from server, which here reads the sum of updates\)\.",
        said(report, SINGLE),
    )


def test_a_drop_to_chance_says_so(report):
    text = said(report, SINGLE, "masking + DP")
    assert re.match(r"Lowers membership AUC from 0\.99 .* to chance, 0\.4\d .*: difference −0\.5", text)
    assert "still succeeds" not in text


@pytest.mark.parametrize(
    ("high", "line"),
    [
        (0.3, "; below chance by more than the margin, so its scores are informative once their"),
        (0.449, "; below chance by more than the margin, so its scores are informative once their"),
        (0.451, "; below chance, but by less than the margin"),
        (0.499, "; below chance, but by less than the margin"),
    ],
)
def test_an_auc_that_is_surely_below_chance_is_not_told_as_chance(high, line):
    turned = finding("from_update", 0.0, view="server", read=("AGG", "MOD"), exam="all clients'")
    low = replace(turned.estimates[0], value=0.2, low=0.1, high=high)
    turned = replace(turned, outcome=Outcome.RESISTED, estimates=(low,), targets=None)
    text = said(report_of(three((OPEN[0],), private=(turned,))), SINGLE, "masking + DP")
    assert "to chance" not in text
    assert line in text


def test_a_difference_whose_interval_holds_zero_is_none(report):
    text = said(report, SUM)
    assert text.startswith("Makes no detectable difference to membership AUC, ")
    assert "not paired" not in text
    assert "the attack still succeeds" in text


def test_a_sampled_difference_without_width_decides_nothing(report):
    def flat(d):
        if d.difference is None:
            return d
        value = d.difference.value
        return replace(d, difference=replace(d.difference, low=value, high=value, nature="sampled"))

    flattened = replace(report, attack_differences=tuple(map(flat, report.attack_differences)))
    text = said(flattened, SUM)
    assert text.startswith("Changes membership AUC from ")
    assert "; no interval" in text


def test_where_nothing_is_left_to_attack_that_is_said(report):
    text = said(report, PLANTED, "masking + DP")
    assert text.startswith("Leaves the attack nothing to work on; without protection, AUC was 0.9")


def test_what_was_not_measured_is_not_taken_for_protection():
    late = replace(PRIVATE[3], outcome=Outcome.INCONCLUSIVE, reason="ran out of its 9 s")
    broken = replace(PRIVATE[1], outcome=Outcome.ERROR, reason="ValueError: no")
    made = report_of(three(private=(late, broken)))
    for surface, why in ((PLANTED, "INCONCLUSIVE: ran out of its 9 s"), (SUM, "ERROR: ValueError: no")):
        assert said(made, surface, "masking + DP").startswith(f"Not measured ({why});")


def test_a_finding_that_is_inconclusive_is_no_chance_and_no_protection():
    """Slow attacks score few records, and the interval of few records reaches chance whatever leaks."""
    late = finding("from_update", 0.0, view="server", read=("AGG", "MOD"), exam="all clients'")
    late = replace(late, outcome=Outcome.INCONCLUSIVE, reason="ran out of its 9 s")
    other = finding("another", 3.0, read=("IND", "MOD"), view="server")
    gone = replace(other, outcome=Outcome.ERROR, reason="no", **NOTHING)
    text = said(report_of(three((OPEN[0], other), private=(late, gone))), SINGLE, "masking + DP")
    assert "to chance" not in text
    assert "; it is undecided whether the attack still succeeds: ran out of its 9 s (X11 from" in text
    assert text.endswith("0 of 2 attacks that succeed without protection still succeed; 2 undecided.")


def test_two_seeds_that_both_leak_are_something_to_protect_though_their_mean_is_unsure():
    plainly = [finding("from_sum", shift, seed=s) for s, shift in ((0, 1.2), (1, 4.0))]
    assert all(f.outcome == Outcome.SUCCEEDED for f in plainly)
    masked = [finding("from_sum", shift, seed=s) for s, shift in ((0, 1.2), (1, 3.5))]
    made = report_of(three(plainly, masked, ()))
    found = of(made, "from_sum", "masked")
    assert found.base.low < found.bar
    assert found.base.high <= 1
    assert found.shows
    assert "the attack still succeeds" in said(made, MODEL)


def test_a_protection_with_a_recipe_is_named_with_it():
    named = configuration("recipe", "masking", *PRIVATE, private=True, recipe="large batches")
    made = verdicts(report_of([*three()[:1], named]))
    assert made.kinds == ("masking + DP (large batches)",)


def test_where_the_unprotected_run_shows_nothing_no_protection_is_judged(report):
    text = said(report, MODEL)
    assert text.startswith(CANNOT_TELL)
    assert "The attacks would have detected membership AUC of at least 0.65 (X10 from client)." in text


def test_a_surface_that_nothing_read_is_named():
    made = report_of(three(OPEN[:1], MASKED[:1], PRIVATE[:1]))
    assert said(made, MODEL) == NO_ATTACK
    assert [r.surface for r in verdicts(made).rows] == list(PRIVACY_SURFACES)


def test_of_one_attack_the_view_that_finds_most_is_told_and_several_attacks_are_counted():
    plainly = [OPEN[1], replace(OPEN[1], view="server"), finding("another", 2.5, read=("AGG", "MOD"))]
    masked = [
        MASKED[1],
        finding("from_sum", 0.0, view="server", read=("AGG", "MOD")),
        finding("another", 0.0),
    ]
    text = said(report_of(three(plainly, masked, ())), SUM)
    assert text.count("from_sum") == 0
    assert text.count("(X8 from client") == 1
    assert "(X8 from server" not in text
    assert text.endswith("1 of 2 attacks that succeed without protection still succeed.")


def test_no_verdict_rests_on_findings_that_read_nothing():
    unread = ([replace(f, read=()) for f in part] for part in (OPEN, MASKED, PRIVATE))
    made = report_of(three(*unread))
    assert {in_words(r.warning) for r in verdicts(made).rows} == {NO_ATTACK}
    assert len(side_table(made).rows) == 4


def test_where_no_attack_left_a_number_without_protection_every_surface_says_so():
    nothing = replace(OPEN[3], **NO_NUMBER)
    made = report_of(three([nothing]))
    assert {in_words(r.warning) for r in verdicts(made).rows} == {NO_ATTACK}
    assert side_table(made) is None


def test_without_a_protection_beside_none_there_are_no_verdicts():
    made = report_of(three()[:1])
    assert (verdicts(made), side_table(made)) == (None, None)
    for form in (markdown_report, page):
        assert "What each protection takes" not in form(made)


def test_verdicts_stand_above_the_table_on_the_page_and_in_markdown(report):
    text = markdown_report(report)
    assert text.index("What each protection takes") < text.index("## Performance, privacy, IP, cost")
    html = page(report)
    assert html.index("What each protection takes") < html.index("The trilemma: configurations by measure")
    root = parse(html)
    shown = " ".join(e.text for e in root.every(css="verdicts"))
    for form in (text, shown):
        assert CANNOT_TELL in form
        assert "the attack still succeeds" in form
    assert faults(root) == []
