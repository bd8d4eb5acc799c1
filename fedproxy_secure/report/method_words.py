"""A comparison of methods in plain words: the best ones, and which others may be as good or better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.number import Number, interval_overlaps
from fedproxy_secure.report.page_words import Sentence, Verbatim, number_of, plural
from fedproxy_secure.report.report import MethodRow, Report, pointer
from fedproxy_secure.report.sweep import percent


def compared(report: Report) -> list[Sentence]:
    """Return sentences about a comparison of methods: the best ones, and which others may be as good.

    Methods share seeds and records, so that their paired difference counts. Where the report has none, or
    none with an interval, it is only said whether their own intervals overlap, which does not show that
    methods are alike. A method with a lower mean may be ahead on the seeds that it shares with the best.
    """
    rows = list(enumerate(report.rows))
    right = [(i, r, r.average) for i, r in rows if r.average is not None]
    lost = [(i, r, r.loss) for i, r in rows if r.loss is not None]
    return [
        *_best(report, "Most correct answers: ", right, "average", max),
        *_best(report, "Least loss on free text: ", lost, "loss", min),
    ]


def _best(
    report: Report,
    begin: str,
    rows: Sequence[tuple[int, MethodRow, Estimate]],
    key: str,
    choose: Callable[..., Any],
) -> list[Sentence]:
    if not rows:
        return []
    i, best, estimate = choose(rows, key=lambda entry: entry[2].value)
    ratio = "" if best.remove_ratio is None else f" at {percent(best.remove_ratio)} % removed"
    sign = 1 if choose is max else -1
    rivals = [(_lead(report, best, r, key, sign=sign), other) for _, r, other in rows if r is not best]
    better = [lead for lead, _ in rivals if lead is not None and lead < 0]
    level = [lead for lead, _ in rivals if lead == 0]
    near = [other for lead, other in rivals if lead is None and interval_overlaps(other, estimate)]
    sentences: list[Sentence] = [
        (
            begin,
            Verbatim(best.method.replace("_", " ") + ratio),
            " with ",
            Number(estimate, pointer(f"rows/{i}/{key}")),
            ".",
        )
    ]
    if better:
        number = number_of(
            report, len(better), "methods ahead of the best on common seeds", pointer("differences")
        )
        says = (
            f" other {plural(len(better), 'method')} {'is' if len(better) == 1 else 'are'} better than it "
        )
        sentences.append((number, says + "by paired differences, on the seeds that both have."))
    if level:
        number = number_of(report, len(level), "methods level with the best", pointer("differences"))
        says = f" other {plural(len(level), 'method')} {'is' if len(level) == 1 else 'are'} not told apart "
        sentences.append((number, says + "from it by paired differences."))
    if near:
        number = number_of(report, len(near), "methods whose intervals overlap the best's", pointer("rows"))
        has = "has an interval that overlaps" if len(near) == 1 else "have intervals that overlap"
        says = (
            f" other {plural(len(near), 'method')} without the interval of a paired difference to it {has} "
        )
        sentences.append((number, says + "the best method's."))
    return sentences


def _lead(report: Report, best: MethodRow, rival: MethodRow, key: str, *, sign: int) -> int | None:
    """Return 1 if `best` is ahead of `rival` beyond the interval of their paired difference, -1 if behind.

    Returns 0 if the interval includes 0, and None if the report has no such difference with an interval.
    `sign`: 1 if more is better, -1 if less is.
    """
    ratios: set[float | None] = {r.remove_ratio for r in (best, rival) if r.remove_ratio is not None}
    for pair in report.differences:
        estimate: Estimate | None = getattr(pair, key)
        names = (pair.method, pair.against)
        if (
            estimate is None
            or estimate.interval is None
            or {*names} != {best.method, rival.method}
            or {pair.remove_ratio} != (ratios or {None})
        ):
            continue
        above = estimate.above(0) - estimate.below(0)
        return above * sign * (1 if names[0] == best.method else -1)
    return None
