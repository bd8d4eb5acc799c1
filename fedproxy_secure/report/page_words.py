"""The report in plain words: what each protection gives and costs. `method_words` tells of methods.

A sentence is a sequence of parts: `Number` (shown with its interval and source), `Verbatim` (a name or a
quotation), and plain words, which must not contain digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.finding import Finding, Outcome, in_order
from fedproxy_secure.evidence.number import Number, interval_overlaps
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import (
    AXIS_NAMES,
    TRILEMMA,
    Labelled,
    headline,
    kind_of_measure,
    kinds_of,
    labelled,
    shown,
)
from fedproxy_secure.report.trilemma import Measure
from fedproxy_secure.runtime.files.names import REPORT_JSON

OUTCOME_WORDS = {
    Outcome.SUCCEEDED: "succeeded",
    Outcome.RESISTED: "resisted",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.NOT_APPLICABLE: "not applicable",
    Outcome.ERROR: "error",
}


@dataclass(frozen=True)
class Verbatim:
    """A name or a quotation; digits in it are not measurements."""

    text: str


Part = str | Number | Verbatim
Sentence = tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """The results of a protection on each axis, and how its attacks ended."""

    kind: str
    lines: tuple[tuple[str, Sentence], ...]
    unsafe: bool


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One protection compared with another: each measure's title, and in how many pairs it is better."""

    kind: str
    base: str
    cells: tuple[tuple[str, Sentence], ...]


def scope(report: Report) -> Sentence:
    """Return the sentence about what was run."""
    seeds = Verbatim(", ".join(map(str, report.seeds)))
    if report.configurations:
        noun, count = "configurations", len(report.configurations)
    else:
        noun, count = "methods", len(report.rows)
    if count == 1:
        noun = noun.removesuffix("s")
    parts: list[Part] = [
        number_of(report, count, noun, REPORT_JSON),
        f" {noun}, seed{'s' * (len(report.seeds) > 1)} ",
        seeds,
        ".",
    ]
    if len(report.configurations) > 1:
        parts.append(" There is no single score: the right choice depends on what you can give up.")
    return tuple(parts)


def cards(report: Report) -> list[Card]:
    """Return one card per protection."""
    items = labelled(report.configurations)
    result = []
    for kind in kinds_of(items):
        group = [i for i in items if i.kind == kind]
        lines = [
            (AXIS_NAMES[axis], sentence)
            for axis in TRILEMMA
            if (key := headline(report.configurations, axis)) is not None
            and (sentence := _range(group, key))
        ]
        if attacks := _attacks(report, group):
            lines.append(("Attacks", attacks))
        result.append(
            Card(kind=kind, lines=tuple(lines), unsafe=any(i.configuration.unsafe for i in group))
        )
    return result


def contrasts(report: Report) -> list[Contrast]:
    """Return each protection compared with the first on each axis, by whether 95 % intervals overlap."""
    items = labelled(report.configurations)
    kinds = kinds_of(items)
    keys = [k for axis in TRILEMMA if (k := headline(report.configurations, axis)) is not None]
    rows = [
        Contrast(
            kind=kind,
            base=kinds[0],
            cells=tuple(_contrast(report, items, kinds[0], kind, key) for key in keys),
        )
        for kind in kinds[1:]
    ]
    return [c for c in rows if any(sentence for _, sentence in c.cells)]


def missing(report: Report) -> list[Sentence]:
    """Return sentences about what the report cannot say.

    They count seeds that failed, findings that show nothing, and what was not measured.
    """
    sentences: list[Sentence] = []
    failed = sum(len(c.failed) for c in report.configurations)
    if failed:
        number = number_of(report, failed, "seeds that did not finish", pointer("configurations"))
        sentences.append((number, f" {plural(failed, 'seed')} did not finish."))
    findings = [f for c in report.configurations for f in c.findings]
    open_ended = [f for f in findings if f.outcome in (Outcome.INCONCLUSIVE, Outcome.ERROR)]
    if open_ended:
        sentences.append(
            (
                number_of(report, len(open_ended), "findings that show nothing", pointer("configurations")),
                " of ",
                number_of(report, len(findings), "findings", pointer("configurations")),
                " findings show neither a leak nor protection: the attack was inconclusive or failed.",
            )
        )
    if report.not_measured:
        count = len(report.not_measured)
        number = number_of(report, count, "what was not measured", pointer("not_measured"))
        sentences.append(
            (number, f" {plural(count, 'thing')} {'was' if count == 1 else 'were'} not measured.")
        )
    return sentences


def _range(items: Sequence[Labelled], key: str) -> Sentence:
    """Return the lowest to the highest number, such as `closes 93.1 ± 2.0 to 97.0 ± 1.1 % of the gap`."""
    measures = [m for i in items if (m := i.configuration.measure(key)) is not None]
    if not measures:
        return ()
    kind = measures[0].kind
    before, _, after = (kind.phrase or kind.title + " {}").partition("{}")
    ordered = sorted(measures, key=lambda m: m.estimate.value)
    numbers: list[Part] = [shown(ordered[0])]
    if ordered[0].estimate.value != ordered[-1].estimate.value:
        numbers += [" to ", shown(ordered[-1])]
    return (Verbatim(before[:1].upper() + before[1:]), *numbers, Verbatim(after))


def _attacks(report: Report, items: Sequence[Labelled]) -> Sentence:
    findings = [f for i in items for f in i.configuration.findings]
    if not findings:
        return ()
    won = [f for f in findings if f.outcome == Outcome.SUCCEEDED]
    resisted = sum(f.outcome == Outcome.RESISTED for f in findings)
    applied = sum(f.outcome != Outcome.NOT_APPLICABLE for f in findings)
    source = pointer("configurations")
    parts: list[Part] = [
        number_of(report, len(won), "attacks that succeeded", source),
        " of ",
        number_of(report, applied, "attacks that had something to attack", source),
        " succeeded",
    ]
    if won:
        parts += [": ", Verbatim(", ".join(dict.fromkeys(id for id, _ in attacks_in_order(won))))]
    if resisted:
        number = number_of(report, resisted, "attacks that were resisted", source)
        parts += ["; ", number, " resisted, which does not prove safety"]
    if undecided := applied - len(won) - resisted:
        parts += [
            "; ",
            number_of(report, undecided, "inconclusive attacks", source),
            " inconclusive or failed",
        ]
    return tuple(parts)


def _contrast(
    report: Report, items: Sequence[Labelled], base: str, kind: str, key: str
) -> tuple[str, Sentence]:
    """Return a measure's title and the verdicts on pairs, such as `better in 2 of 2 pairs`.

    The two configurations of a pair differ only in the protection.
    """
    pairs = [
        (a, b)
        for i in items
        for j in items
        if i.kind == base
        and j.kind == kind
        and i.rest == j.rest
        and (a := i.configuration.measure(key)) is not None
        and (b := j.configuration.measure(key)) is not None
    ]
    title = kind_of_measure([i.configuration for i in items], key).title
    verdicts = [_verdict(a, b) for a, b in pairs]
    parts: list[Part] = []
    for word in ("better", "worse", "the same", "intervals overlap", "without an interval"):
        if number := verdicts.count(word):
            count = number_of(report, number, f"pairs {word}", pointer("configurations"))
            parts += [f"{', ' if parts else ''}{word} in ", count]
    if not parts:
        return title, ()
    total = number_of(report, len(pairs), "pairs that are alike in all else", pointer("configurations"))
    return title, (*parts, " of ", total, f" {plural(len(pairs), 'pair')}")


def _verdict(a: Measure, b: Measure) -> str:
    """Return whether `b` is better than `a`, judged by both intervals.

    They are not paired, so that a paired difference may tell configurations apart whose intervals overlap.
    """
    if a.estimate.value == b.estimate.value:
        return "the same"
    overlap = interval_overlaps(a.estimate, b.estimate)
    if overlap is None:
        return "without an interval"
    if overlap:
        return "intervals overlap"
    return "better" if (b.estimate.value > a.estimate.value) == (a.better == "higher") else "worse"


def number_of(report: Report, value: int, metric: str, source: str) -> Number:
    """Return an exact number of things in a report."""
    return Number(counted(value, metric=metric, unit="count", seeds=report.seeds), source)


def plural(count: int, word: str) -> str:
    """Return a word, with an s unless there is one of it."""
    return word if count == 1 else word + "s"


def attacks_in_order(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return (id, name) of each attack without repeats, A2 before A10."""
    return sorted({(f.id, f.attack) for f in findings}, key=lambda pair: (in_order(pair[0]), pair[1]))
