"""Numbers, headlines and protections in words, on the page and in the summary of a pull request."""

import json
import re
from dataclasses import replace

import pytest

from fedproxy_secure.cli.experiments import show_report
from fedproxy_secure.evidence.estimate import Estimate, Nature, counted
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.number import Number, interval_overlaps
from fedproxy_secure.report import method_words, page_words
from fedproxy_secure.report.html.drawing import kind_slots
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.report import MethodDifference, MethodRow, Report
from fedproxy_secure.report.sweep import headline, kinds_of, labelled, on_front
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.pull_request import pull_request_summary
from fedproxy_secure.report.text.sarif import sarif
from tests.support.page_walk import parse
from tests.support.sample_report import sample_comparison, sample_report


def number(value: float, low: float | None, high: float | None, unit: str, signed: bool = False) -> Number:
    e = Estimate(
        metric="m",
        value=value,
        low=low,
        high=high,
        n=3,
        unit=unit,
        seeds=(0, 1, 2),
        how="for a test",
        nature="sampled",
    )
    return Number(e, "result.json#m", signed=signed)


def sure(value: float, unit: str, nature: Nature = "counted") -> Number:
    e = replace(counted(value, metric="m", unit=unit, seeds=(0,)), nature=nature)
    return Number(e, "result.json#m")


def test_the_pull_request_summary_has_stamps_numbers_and_red_findings(report: Report):
    text = pull_request_summary(report)
    assert text.count("[!CAUTION]") == 1
    assert "unsafe_plaintext" in text
    assert "code 137" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len([r for r in rows if "% removed |" in r or "**(unsafe)** |" in r]) >= 6
    for id, outcome in (("A2", "SUCCEEDED"), ("A12", "ERROR")):
        assert any(r.startswith(f"| {id} ") and f"| {outcome} |" in r for r in rows)
    assert not any("RESISTED" in r for r in rows)
    assert len(text) < 6000
    assert len({r.count(" | ") for r in rows if r.startswith("| A")}) == 1


def test_every_form_of_an_interrupted_comparison_says_what_it_lacks_and_what_is_unsafe(tmp_path, capsys):
    lacks = "2 of 18 cells are missing: fedot at 0.25 (seeds 0, 1)."
    stamp = "unsafe_plaintext: the server sees each update."
    made = replace(sample_comparison(), unfinished=(lacks,), unsafe={stamp: ("fedot", "fedproxy_h_ties")})
    made.write(tmp_path)
    show_report(Report.load(tmp_path), tmp_path)
    (top,) = parse(page(made)).every("aside", css="stamps")
    (run,) = sarif(made)["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert lacks in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert [r["level"] for r in run["results"]] == ["warning"]
    forms = (
        pull_request_summary(made).replace("\\", ""),
        markdown_report(made).replace("\\", ""),
        " ".join(capsys.readouterr().out.split()),
        top.text,
        json.dumps(run),
    )
    for form in forms:
        for told in (lacks, stamp, "fedot", "fedproxy_h_ties"):
            assert told in form


def test_pipes_and_markup_in_names_do_not_break_the_summary(report: Report):
    first = replace(report.configurations[0], name="a | b **c** <img src=x> [x](y)\nz")
    text = pull_request_summary(replace(report, configurations=(first, *report.configurations[1:])))
    (row,) = [r for r in text.splitlines() if r.startswith("| a ")]
    whole = next(r for r in text.splitlines() if r.startswith("| masking, 25"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", whole))
    assert not re.search(r"(?<!\\)<img", text)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(0.972, 0.958, 0.986, "share"), "97.2 ± 1.4 %"),
        (number(0.972, 0.950, 0.980, "share"), "97.2 [95.0, 98.0] %"),
        (number(0.972, None, None, "share"), "97.2 %"),
        (sure(0.5, "share"), "50 %"),
        (number(0.5, 0.5, 0.5, "share"), "50.0 %"),
        (number(-0.0121, -0.02, -0.0042, "share", signed=True), "−1.2 ± 0.8 points"),
        (number(0.0, -0.01, 0.01, "share", signed=True), "+0.0 ± 1.0 points"),
        (number(0.5, 0.25, 1.5, "nats", signed=True), "+0.500 [+0.250, +1.500] nats"),
        (number(0.935, 0.92, 0.95, "AUC"), "0.94 ± 0.01"),
        (sure(4_100_000, "bytes"), "4.1 MB"),
        (number(812.4e6, 800e6, 824.8e6, "bytes"), "812 ± 12 MB"),
        (sure(1e-5, "delta"), "1e-5"),
        (sure(1.00004e-5, "delta"), "1.001e-5"),
        (sure(8.0049, "epsilon"), "8.005"),
        (sure(8.00049, "epsilon"), "8.001"),
        (sure(8.0, "epsilon"), "8"),
        (sure(2.9199, "epsilon", "lower bound"), "at least 2.91"),
        (sure(0.0, "ratio", "lower bound"), "at least 0"),
        (number(0.996, 0.9948, 0.9972, "AUC"), "0.996 ± 0.001"),
        (number(0.99996, 0.99995, 0.99997, "AUC"), "0.99996 ± 0.00001"),
        (number(0.00186, 0.00154, 0.00218, "nats"), "0.0019 ± 0.0003 nats"),
        (number(0.9999, 0.9996, 1.0, "share"), "99.99 [99.96, 100.00] %"),
        (sure(1, "clients"), "1 client"),
        (number(12.345, 12.0, 12.69, "s"), "12.3 ± 0.3 s"),
        (number(1234.5, None, None, "s"), "1,234 s"),
    ],
)
def test_a_number_is_written_with_its_interval_and_unit(shown: Number, text: str):
    assert shown.short == text


def test_what_was_sampled_is_never_called_exact_and_a_lower_bound_is_called_one():
    assert "no interval" in number(0.0, 0.0, 0.0, "share").title
    assert ": exact;" in sure(0.0, "share").title
    assert "at least this, with 95 % confidence" in sure(2.9, "epsilon", "lower bound").title


def test_intervals_that_touch_overlap_and_a_missing_one_tells_nothing():
    a, b = number(1, 0, 2, "s").estimate, number(3, 2, 4, "s").estimate
    assert interval_overlaps(a, b) is True
    assert interval_overlaps(a, number(3, 2.1, 4, "s").estimate) is False
    assert interval_overlaps(a, number(3, None, None, "s").estimate) is None
    assert interval_overlaps(a, number(3, 3, 3, "s").estimate) is None  # what was sampled is never certain


def test_the_front_has_what_nothing_beats():
    points = [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0), (0.9, 0.9), (2.0, 0.5), (2.0, 0.4)]
    assert on_front(points) == [True, True, True, False, True, False]


def test_the_headline_of_an_axis_is_what_most_configurations_have(report: Report):
    assert headline(report.configurations, "performance") == "gap_closed"
    assert headline(report.configurations, "privacy") == "tpr_at_1pct_fpr"
    without = tuple(
        replace(c, measures=tuple(m for m in c.measures if m.key != "tpr_at_1pct_fpr" or i < 2))
        for i, c in enumerate(report.configurations)
    )
    assert headline(without, "privacy") == "token_auc"
    assert headline((), "ip") is None


def test_two_configurations_never_share_their_words(report: Report):
    twice = (*report.configurations, *(replace(c, name=f"again {c.name}") for c in report.configurations))
    words = [(i.kind, i.rest) for i in labelled(twice)]
    assert len(set(words)) == len(twice)


CLOSE = (0.12, 0.125)  # ratios that read alike without a decimal


def test_two_remove_ratios_that_differ_never_read_alike():
    made = sample_report(protections=("unsafe_plaintext", "masking"), ratios=CLOSE, seeds=(0,))
    assert {i.rest for i in labelled(made.configurations)} == {"12 % removed", "12.5 % removed"}
    text = parse(page(made)).text
    assert "12 % removed" in text
    assert "12.5 % removed" in text
    rows = tuple(
        replace(r, remove_ratio=c) for r, c in zip(sample_comparison().rows[2:4], CLOSE, strict=True)
    )
    compared = replace(sample_comparison(), rows=rows, differences=())
    assert "| 12.5 % |" in markdown_report(compared)
    assert "12.5 % removed" in parse(page(compared)).text


def test_differential_privacy_is_told_also_where_the_settings_name_the_scheme_alone(report: Report):
    private = next(c for c in report.configurations if c.measure("epsilon_claimed") is not None)
    settings = {**private.settings, "protection": "masking"}
    joined = replace(private, settings=settings, privacy_unit="record")
    (same,) = labelled([private])
    (told,) = labelled([joined])
    assert told.kind == same.kind == "masking + DP 8"


def test_a_protection_that_no_installed_package_has_is_named_by_its_scheme(report: Report):
    other = replace(report.configurations[-1], scheme="their_sum", recipe="t=3 small", privacy_unit="none")
    assert [item.kind for item in labelled([other])] == ["their sum (t=3 small)"]


def test_no_protection_comes_first_and_it_alone_is_red(report: Report):
    backwards = labelled(report.configurations[::-1])
    kinds = kinds_of(backwards)
    assert kinds == ["no protection", "masking + DP 8", "masking"]
    assert kind_slots(kinds) == [0, 1, 2]
    assert kind_slots(["masking"]) == [1]
    assert kind_slots([*"abcdefg", "no protection"]) == [1, 2, 3, 4, 5, 5, 5, 0]


def test_a_card_counts_only_attacks_that_had_something_to_attack(report: Report):
    first = page_words.cards(report)[0]
    said = "".join(
        p.text if isinstance(p, page_words.Verbatim | Number) else p for p in dict(first.lines)["Attacks"]
    )
    mine = [f for c in report.configurations if c.unsafe for f in c.findings]
    applied = [f for f in mine if f.outcome != Outcome.NOT_APPLICABLE]
    assert len(applied) < len(mine)
    assert said == f"{len(applied)} of {len(applied)} succeeded: A2, A3, A5, A7, A12"


def test_plain_words_hold_no_digit_that_is_not_a_number_or_a_quotation(report: Report):
    sentences = [page_words.scope(report), *page_words.missing(report)]
    sentences += [line for card in page_words.cards(report) for _, line in card.lines]
    sentences += [line for c in page_words.contrasts(report) for _, line in c.cells]
    sentences += method_words.compared(sample_comparison())
    assert len(sentences) > 12
    assert not [
        part for line in sentences for part in line if isinstance(part, str) and re.search(r"\d", part)
    ]


def test_a_protection_is_better_only_beyond_both_intervals(report: Report):
    (masking, private) = page_words.contrasts(report)

    assert said(dict(masking.cells)["gap closed"]) == "intervals overlap in 2 of 2 pairs"
    assert said(dict(private.cells)["gap closed"]) == "worse in 2 of 2 pairs"
    assert "cannot tell" not in parse(page(report)).text


def said(line: page_words.Sentence) -> str:
    return "".join(p.text if isinstance(p, page_words.Verbatim | Number) else p for p in line)


def close_methods(key: str, *differences: tuple[str, str, float | None, float, float]) -> Report:
    """Three methods whose own intervals overlap, with paired differences in `average` or `loss`."""
    rows = tuple(
        MethodRow(
            method=name,
            remove_ratio=ratio,
            **{key: number(value, value - 0.1, value + 0.1, "share").estimate},
        )
        for name, ratio, value in (("a", 0.25, 0.5), ("b", 0.25, 0.45), ("c", None, 0.48))
    )
    pairs = tuple(
        MethodDifference(
            method=method,
            against=against,
            remove_ratio=ratio,
            **{"average": None, key: number((low + high) / 2, low, high, "share", signed=True).estimate},
        )
        for method, against, ratio, low, high in differences
    )
    return replace(sample_comparison(), rows=rows, differences=pairs)


LEVEL, NEAR, BETTER = "not told apart", "without the interval of a paired difference", "better than it"


def test_methods_that_their_paired_difference_tells_apart_are_not_called_level():
    found = close_methods("average", ("a", "b", 0.25, 0.01, 0.09), ("c", "a", 0.25, -0.03, -0.01))
    assert [said(line) for line in method_words.compared(found)] == [
        "Most correct answers: a at 25 % removed with 50.0."
    ]


def test_methods_are_level_by_their_paired_difference_and_the_others_only_have_intervals_that_overlap():
    found = close_methods("average", ("b", "a", 0.25, -0.09, 0.01), ("c", "a", 0.5, -0.03, -0.01))
    _, level, near = (said(line) for line in method_words.compared(found))
    assert level == "1 other method is not told apart from it by paired differences."
    assert near == (
        "1 other method without the interval of a paired difference to it has an interval that overlaps "
        "the best method's."
    )
    ((first, *others)) = (said(line) for line in method_words.compared(close_methods("average")))
    assert first.startswith("Most correct answers: a")
    assert [line.split(" ", 1)[1] for line in others] == [
        "other methods without the interval of a paired difference to it have intervals that overlap "
        "the best method's."
    ]


@pytest.mark.parametrize("pair", [("a", "b", 0.25, -0.05, -0.01), ("b", "a", 0.25, 0.01, 0.05)])
def test_a_method_that_is_better_than_the_best_on_common_seeds_is_said_to_be_so(pair):
    found = close_methods("average", pair, ("a", "c", 0.25, -0.05, 0.05))
    _, better, level = (said(line) for line in method_words.compared(found))
    assert better == (
        "1 other method is better than it by paired differences, on the seeds that both have."
    )
    assert level == "1 other method is not told apart from it by paired differences."


def test_a_paired_difference_without_an_interval_tells_no_more_than_none():
    found = close_methods("average", ("a", "b", 0.25, -0.05, -0.01), ("a", "c", 0.25, 0.01, 0.05))
    pair = replace(found.differences[0], average=number(0.05, None, None, "share").estimate)
    _, near = (
        said(x) for x in method_words.compared(replace(found, differences=(pair, found.differences[1])))
    )
    assert near.startswith(f"1 other method {NEAR} to it has an interval")


@pytest.mark.parametrize(
    ("low", "high", "level", "better"), [(0.01, 0.05, 0, 0), (-0.01, 0.05, 1, 0), (-0.05, -0.01, 0, 1)]
)
def test_the_least_loss_is_ahead_where_the_paired_difference_is_below_zero(low, high, level, better):
    found = close_methods("loss", ("c", "b", 0.25, low, high), ("b", "a", 0.25, -0.09, -0.01))
    sentences = [said(line) for line in method_words.compared(found)]
    assert sentences[0].startswith("Least loss on free text: b")
    assert sum(LEVEL in line for line in sentences) == level
    assert sum(BETTER in line for line in sentences) == better
    assert not any(NEAR in line for line in sentences)
