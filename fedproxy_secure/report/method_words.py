"""A comparison of methods in plain words: the best ones, and which others may be as good."""

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

    Methods share seeds and records, so that their paired difference counts. Where the report has none, it
    is only said whether intervals overlap, which does not show that methods are alike.
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
    rivals = [(_ahead(report, best, r, key, sign=sign), other) for _, r, other in rows if r is not best]
    level = [ahead for ahead, _ in rivals if ahead is False]
    near = [other for ahead, other in rivals if ahead is None and interval_overlaps(other, estimate)]
    sentences: list[Sentence] = [
        (
            begin,
            Verbatim(best.method.replace("_", " ") + ratio),
            " with ",
            Number(estimate, pointer(f"rows/{i}/{key}")),
            ".",
        )
    ]
    if level:
        number = number_of(report, len(level), "methods level with the best", pointer("differences"))
        says = f" other {plural(len(level), 'method')} {'is' if len(level) == 1 else 'are'} not told apart "
        sentences.append((number, says + "from it by paired differences."))
    if near:
        number = number_of(report, len(near), "methods whose intervals overlap the best's", pointer("rows"))
        has = "has an interval that overlaps" if len(near) == 1 else "have intervals that overlap"
        says = f" other {plural(len(near), 'method')} without a paired difference to it {has} its own."
        sentences.append((number, says))
    return sentences


def _ahead(report: Report, best: MethodRow, rival: MethodRow, key: str, *, sign: int) -> bool | None:
    """Return whether `best` is ahead of `rival` beyond the interval of their paired difference.

    Returns None if the report has no such difference. `sign`: 1 if more is better, -1 if less is.
    """
    ratios: set[float | None] = {r.remove_ratio for r in (best, rival) if r.remove_ratio is not None}
    for pair in report.differences:
        estimate: Estimate | None = getattr(pair, key)
        names = (pair.method, pair.against)
        if (
            estimate is None
            or {*names} != {best.method, rival.method}
            or {pair.remove_ratio} != (ratios or {None})
        ):
            continue
        if estimate.low is None or estimate.high is None:
            return False
        forwards = (names[0] == best.method) == (sign > 0)
        return estimate.low > 0 if forwards else estimate.high < 0
    return None
