"""Sentences for the owner of the LLM: what each proxy gives away.

A proxy is what `compression` and `remove_ratio` make; configurations that differ in anything else hold the
same one. Where they differ in a number, the worst for the owner is told.
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
        proxy: which one, in words; empty where the report has only one.
        sentences: what a client holds, what only the owner has, how far the strongest attack gets.
    """

    proxy: str
    sentences: tuple[Sentence, ...]


def owners_rows(report: Report) -> tuple[OwnersRow, ...]:
    """Return a row for each proxy, in the order of the configurations; none where nothing was measured."""
    groups: dict[tuple[str, ...], list[Configuration]] = {}
    for c in report.configurations:
        groups.setdefault(tuple(c.settings.get(key, "") for key in PROXY_SETTINGS), []).append(c)
    rows = []
    for values, mine in groups.items():
        before = [s for make in (_held, _edge, _edge_by_loss) if (s := make(mine))]
        after = [s for make in (_left, _healed) if (s := make(mine))]
        if not before and not after and _strongest(mine, ip.EXTRACTION_R.key) is None:
            continue
        sentences = (*before, _extracted(mine), *after)
        words = [setting_words(k, v) for k, v in zip(PROXY_SETTINGS, values, strict=True) if v]
        rows.append(OwnersRow(proxy=", ".join(words) if len(groups) > 1 else "", sentences=sentences))
    return tuple(rows)


def _held(mine: Sequence[Configuration]) -> Sentence:
    measure = _worst(mine, ip.VERBATIM_SHARE.key, max)
    if measure is None:
        return ()
    return ("A client holds ", shown(measure), " of the LLM's weights number for number.")


def _edge(mine: Sequence[Configuration]) -> Sentence:
    said = "the fused LLM's accuracy minus the tuned proxy's is "
    return _whose_is_better(mine, ip.OWNERS_EDGE.key, "", said)


def _edge_by_loss(mine: Sequence[Configuration]) -> Sentence:
    said = "the tuned proxy's loss minus the fused LLM's is "
    return _whose_is_better(mine, ip.OWNERS_EDGE_NATS.key, " on free text", said)


def _whose_is_better(mine: Sequence[Configuration], key: str, where: str, said: str) -> Sentence:
    """Return whose model is the better one, and the difference `key`, which `said` names."""
    measure = _worst(mine, key, min)
    if measure is None:
        return ()
    low, high = measure.estimate.low, measure.estimate.high
    if low is None or high is None:
        begin = f"The owner's edge{where} was measured without an interval"
    elif low > 0:
        begin = f"The owner's model is better than the clients' model{where}"
    elif high < 0:
        begin = f"The clients' model is better than the owner's model{where}"
    else:
        begin = f"These records do not show which model is better{where}, the owner's or the clients'"
    return (f"{begin}: {said}", shown(measure), ".")


def _extracted(mine: Sequence[Configuration]) -> Sentence:
    """Return how far the strongest attack gets, which one it is, and what the API tells it."""
    strongest = _strongest(mine, ip.EXTRACTION_R.key)
    if strongest is None:
        return (NOT_ATTACKED,)
    number, configuration, finding = strongest
    told = configuration.api_answers
    who = f"{finding.id} from {finding.view.replace('_', ' ')}, {finding.profile}"
    unsure = ", inconclusive" if finding.outcome == Outcome.INCONCLUSIVE else ""
    return (
        "The strongest attack gets ",
        number,
        " of the way from the tuned proxy to the fused LLM (",
        Verbatim(who + unsure),
        *((f", through an API that returns {API_WORDS[told]}",) if told else ()),
        ").",
    )


def _left(mine: Sequence[Configuration]) -> Sentence:
    """Return how far the best copy stays from the LLM, in nats."""
    nearest = _strongest(mine, ip.KL_LEFT_NATS.key, choose=min)
    if nearest is None:
        return ()
    return (
        "The best copy of the fused LLM remains at a KL divergence of ",
        nearest[0],
        " from it; a perfect copy would have none.",
    )


def _healed(mine: Sequence[Configuration]) -> Sentence:
    strongest = _strongest(mine, ip.HEALING_R.key)
    if strongest is None:
        return ()
    return (
        "Without a single query, with public text and computing time alone, an attacker gets ",
        strongest[0],
        " of the way.",
    )


def _strongest(
    mine: Sequence[Configuration], key: str, choose: Callable[..., Any] = max
) -> tuple[Number, Configuration, Finding] | None:
    """Return the largest number, or another, that findings have of a measure, and where it is from."""
    found = [
        (Number(estimate, c.source_of(f)), c, f)
        for c in mine
        for f in c.findings
        for estimate in f.numbers(key)
    ]
    return choose(found, key=lambda entry: entry[0].estimate.value) if found else None


def _worst(mine: Sequence[Configuration], key: str, choose: Callable[..., Measure]) -> Measure | None:
    measures = [m for c in mine if (m := c.measure(key)) is not None]
    return choose(measures, key=lambda m: m.estimate.value) if measures else None
