"""Protections beside no protection: differences, verdicts in plain words, and the table side by side."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from attacks.judging.measured import plain
from attacks.statistics import auc_estimate
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import independent_difference
from fedproxy_secure.evidence.finding import Finding, Outcome, read_findings, write_findings
from fedproxy_secure.evidence.surfaces import MODEL, PLANTED, PRIVACY_SURFACES, SINGLE, SUM, surface_of
from fedproxy_secure.evidence.targets import Targets, paired_by_target
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.protections.rows import side_table
from fedproxy_secure.report.protections.side_by_side import over_seeds, side_by_side
from fedproxy_secure.report.protections.verdicts import CANNOT_TELL, NO_ATTACK, in_words, verdicts
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.schema import report_schema
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.trilemma import Configuration
from tests.support.page_walk import faults, parse

LABELS = np.arange(200) < 100
RECORDS = np.random.default_rng(5).normal(size=200)  # how hard each record is, whatever the protection
SECRET = {"measures": {"canary_exposure_bits": ()}}
NO_NUMBER = {
    "estimates": (),
    "detectable": (),
    "targets": None,
    "outcome": Outcome.NOT_APPLICABLE,
    "reason": "no canaries",
}


def finding(attack, shift, *, view="client", read=("MOD",), seed=0, exam="e", **changes):
    """An attack on the same 200 records; `shift`: how far members stand out."""
    own = np.random.default_rng([seed, int(100 * shift)]).normal(size=200)
    estimate = auc_estimate(RECORDS + own + shift * LABELS, LABELS, metric="auc")
    kinds, values = estimate.judged
    made = Finding(
        attack=attack,
        id=f"X{len(attack)}",
        title="an attack",
        view=view,
        surfaces=("AGG", "IND", "MOD"),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=Outcome.SUCCEEDED if estimate.low > 0.55 else Outcome.RESISTED,
        reason="because",
        estimates=(replace(plain(estimate), seeds=(seed,)),),
        measures={"membership_auc": (0,)},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=seed,
        mapping=(),
        read=read,
        chance=0.5,
        margin=0.05,
        detectable=(
            Detectable(metric="auc", unit="AUC", bar=0.55, smallest=0.648, how="100 there, 100 not"),
        ),
        targets=Targets(exam=exam, kinds=kinds, values=values),
    )
    return replace(made, **changes)


NOTHING = {"estimates": (), "measures": {}, "detectable": (), "targets": None}


def configuration(name, scheme, *findings, private=False, recipe="", ratio="0.5"):
    return Configuration(
        name=name,
        scheme=scheme,
        recipe=recipe,
        settings={"protection": scheme, "remove_ratio": ratio},
        seeds=(0,),
        findings=findings,
        privacy_unit="record" if private else "none",
    )


OPEN = (
    finding("from_update", 4.0, read=("IND", "MOD"), view="server", exam="one client's"),
    finding("from_sum", 2.0, read=("AGG", "MOD")),
    finding("from_model", 0.0),
    finding("secret", 3.0, **SECRET),
)
MASKED = (
    finding("from_update", 1.5, read=("AGG", "MOD"), view="server", exam="all clients'"),
    finding("from_sum", 1.9, read=("AGG", "MOD")),
    finding("from_model", 0.1),
    finding("secret", 2.9, **SECRET),
)
PRIVATE = (
    finding("from_update", 0.0, read=("AGG", "MOD"), view="server", exam="all clients'"),
    finding("from_sum", 0.2, read=("AGG", "MOD")),
    finding("from_model", 0.1),
    finding("secret", 0.0, **SECRET, **NO_NUMBER),
)


def three(plainly=OPEN, masked=MASKED, private=PRIVATE):
    """A matrix of no protection, masking, and masking with differential privacy."""
    return [
        configuration("open", "unsafe_plaintext", *plainly),
        configuration("masked", "masking", *masked),
        configuration("private", "masking", *private, private=True),
    ]


def report_of(configurations, known=()):
    shown, differences = side_by_side(configurations, known)
    return Report(
        name="made",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0,),
        configurations=shown,
        attack_differences=differences,
    )


@pytest.fixture(scope="module")
def report():
    """One attack on each surface; that on the final model finds nothing even without protection."""
    return report_of(three())


def of(report, attack, name):
    (found,) = (d for d in report.attack_differences if (d.attack, d.configuration) == (attack, name))
    return found


def said(report, surface, kind="masking"):
    """What the report says of a protection on a surface, as text."""
    made = verdicts(report)
    (row,) = (r for r in made.rows if r.surface == surface)
    if row.warning:
        return in_words(row.warning)
    return " ".join(map(in_words, row.cells[made.kinds.index(kind)]))


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


def test_it_survives_the_disk_and_follows_the_schema(report, tmp_path: Path):
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


# verdicts


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
