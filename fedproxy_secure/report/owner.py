"""Sentences for the owner of the LLM: what each proxy gives away.

`compression` and `remove_ratio` determine a proxy; configurations that differ only in other settings share
it. If they differ in a number, the sentence has the worst one for the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedproxy_secure.config import Answers
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measures import ip
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.page_words import Sentence, Verbatim
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import PROXY_SETTINGS, setting_words, shown
from fedproxy_secure.report.trilemma import Configuration, Measure

TITLE = "How much of the LLM clients obtain"
ABOUT = (
    "Extraction is measured from the tuned proxy, which every client holds anyway, up to the fused LLM. It "
    "is relative to the proxy: if the proxy is as good as the LLM, little is left to extract. To compare "
    "proxies, use how far the best copy remains from the LLM. These numbers are the best that the attacks "
    "in this report reached; a stronger attack may get further."
)
NOT_ATTACKED = "How much a client can extract is unknown: no extraction attack produced a number."
API_WORDS: Mapping[Answers, str] = {
    "text": "only the likeliest token",
    "top_k": "the likeliest tokens with their probabilities",
    "logits": "all logits",
}


@dataclass(frozen=True, kw_only=True)
class OwnersRow:
    """The sentences about one proxy.

    Args:
        proxy: which one, in words; empty if the report has only one.
        sentences: what a client holds, what only the owner has, how far the strongest attack gets.
    """

    proxy: str
    sentences: tuple[Sentence, ...]


def owners_rows(report: Report) -> tuple[OwnersRow, ...]:
    """Return a row for each measured proxy, in the order of the configurations."""
    groups: dict[tuple[str, ...], list[Configuration]] = {}
    for c in report.configurations:
        groups.setdefault(tuple(c.settings.get(key, "") for key in PROXY_SETTINGS), []).append(c)
    rows = []
    for values, group in groups.items():
        before = [s for make in (_held, _edge, _edge_by_loss) if (s := make(group))]
        after = [s for make in (_left, _healed) if (s := make(group))]
        if not before and not after and _strongest(group, ip.EXTRACTION_R.key) is None:
            continue
        sentences = (*before, _extracted(group), *after)
        words = [setting_words(k, v) for k, v in zip(PROXY_SETTINGS, values, strict=True) if v]
        rows.append(OwnersRow(proxy=", ".join(words) if len(groups) > 1 else "", sentences=sentences))
    return tuple(rows)


def _held(group: Sequence[Configuration]) -> Sentence:
    measure = _worst(group, ip.VERBATIM_SHARE.key, max)
    if measure is None:
        return ()
    return ("A client holds ", shown(measure), " of the LLM's weights number for number.")


def _edge(group: Sequence[Configuration]) -> Sentence:
    subject = "the fused LLM's accuracy minus the tuned proxy's is "
    return _whose_is_better(group, ip.OWNERS_EDGE.key, "", subject)


def _edge_by_loss(group: Sequence[Configuration]) -> Sentence:
    subject = "the tuned proxy's loss minus the fused LLM's is "
    return _whose_is_better(group, ip.OWNERS_EDGE_NATS.key, " on free text", subject)


def _whose_is_better(group: Sequence[Configuration], key: str, scope: str, subject: str) -> Sentence:
    """Return whose model is better, and the difference `key`, which `subject` names."""
    measure = _worst(group, key, min)
    if measure is None:
        return ()
    low, high = measure.estimate.interval or (None, None)
    if low is None or high is None:
        begin = f"The owner's edge{scope} was measured without an interval"
    elif low > 0:
        begin = f"The owner's model is better than the clients' model{scope}"
    elif high < 0:
        begin = f"The clients' model is better than the owner's model{scope}"
    else:
        begin = f"These records do not show which model is better{scope}, the owner's or the clients'"
    return (f"{begin}: {subject}", shown(measure), ".")


def _extracted(group: Sequence[Configuration]) -> Sentence:
    """Return how far the strongest attack gets, which one it is, and what the API returns to it."""
    strongest = _strongest(group, ip.EXTRACTION_R.key)
    if strongest is None:
        return (NOT_ATTACKED,)
    number, configuration, finding = strongest
    answers = configuration.api_answers
    who = f"{finding.id} from {finding.view.replace('_', ' ')}, {finding.profile}"
    unsure = ", inconclusive" if finding.outcome == Outcome.INCONCLUSIVE else ""
    return (
        "The strongest attack gets ",
        number,
        " of the way from the tuned proxy to the fused LLM (",
        Verbatim(who + unsure),
        *((f", through an API that returns {API_WORDS[answers]}",) if answers else ()),
        ").",
    )


def _left(group: Sequence[Configuration]) -> Sentence:
    """Return how far the best copy stays from the LLM, in nats."""
    nearest = _strongest(group, ip.KL_LEFT_NATS.key, choose=min)
    if nearest is None:
        return ()
    return (
        "The best copy of the fused LLM remains at a KL divergence of ",
        nearest[0],
        " from it; a perfect copy would have none.",
    )


def _healed(group: Sequence[Configuration]) -> Sentence:
    strongest = _strongest(group, ip.HEALING_R.key)
    if strongest is None:
        return ()
    return (
        "Without a single query, with public text and computing time alone, an attacker gets ",
        strongest[0],
        " of the way.",
    )


def _strongest(
    group: Sequence[Configuration], key: str, choose: Callable[..., Any] = max
) -> tuple[Number, Configuration, Finding] | None:
    """Return the number that `choose` takes from the findings' numbers of a measure, with its origin."""
    entries = [
        (Number(estimate, c.source_of(f)), c, f)
        for c in group
        for f in c.findings
        for estimate in f.numbers(key)
    ]
    return choose(entries, key=lambda entry: entry[0].estimate.value) if entries else None


def _worst(group: Sequence[Configuration], key: str, choose: Callable[..., Measure]) -> Measure | None:
    measures = [m for c in group if (m := c.measure(key)) is not None]
    return choose(measures, key=lambda m: m.estimate.value) if measures else None
