"""A verdict in plain words for each protection on each surface of privacy.

A protection is judged by the attacks that succeed without it. If no attack succeeds on the unprotected run,
nothing can be said about any protection, and the verdict states this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measure import MEASURES, measure_kind
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.evidence.surfaces import PRIVACY_SURFACES
from fedproxy_secure.report.page_words import Part, Sentence, Verbatim
from fedproxy_secure.report.protections.rows import (
    NOT_PAIRED,
    base_of,
    could_show_of,
    difference_of,
    value_of,
    why_without,
)
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import kinds_of, labelled
from fedproxy_secure.report.trilemma import AttackDifference

TITLE = "What each protection takes from the attacks"
ABOUT = (
    "How much each protection weakens the attacks that succeed without it: the attack's headline number "
    "without and with the protection, and the difference with its interval. An attack is at chance if its "
    "interval includes the value that guessing gives and its positive control succeeds; this does not "
    "prove safety. Only attacks that succeed without protection are listed, and this selection biases "
    "their unprotected values slightly upwards. A protection with a recipe in brackets also trains with "
    "other settings, so its difference is the effect of both."
)
CANNOT_TELL = (
    "This run cannot tell protections apart on this surface: no attack succeeds even without protection."
)
NO_ATTACK = "No attack that reads this surface produced a number on the unprotected configuration."
ABOVE = "; above chance, but less than counts as success"
BELOW = "; below chance, but by less than the margin"
TURNED = "; below chance by more than the margin, so its scores are informative once their sign is flipped"
MOST = 3  # attacks described for one protection on one surface; the others are only counted
Indexed = tuple[int, AttackDifference]


@dataclass(frozen=True, kw_only=True)
class SurfaceVerdict:
    """The verdicts on one surface.

    Args:
        surface: the surface of privacy.
        about: what it is.
        rest: the other settings of the configurations, in words.
        warning: why nothing can be said about protections; empty if there are verdicts.
        cells: for each protection its sentences, in the order of `Verdicts.kinds`; empty with a warning.
    """

    surface: str
    about: str
    rest: str
    warning: Sentence
    cells: tuple[tuple[Sentence, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """All verdicts; `kinds`: the protections."""

    kinds: tuple[str, ...]
    rows: tuple[SurfaceVerdict, ...]


def verdicts(report: Report) -> Verdicts | None:
    """Return the verdicts, or None if no attacked protection has an attacked unprotected counterpart."""
    items = labelled(report.configurations)
    attacked = [i for i in items if i.configuration.findings]
    words = {i.name: (i.kind, i.rest) for i in attacked}
    kinds = tuple(kinds_of([i for i in attacked if not i.is_baseline]))
    rows = []
    for rest in dict.fromkeys(i.rest for i in attacked if i.is_baseline):
        if not any(i.rest == rest and not i.is_baseline for i in attacked):
            continue
        by_kind: dict[str, list[Indexed]] = {kind: [] for kind in kinds}
        for index, d in enumerate(report.attack_differences):
            kind, its_rest = words.get(d.configuration, ("", ""))
            if kind and its_rest == rest:
                by_kind[kind].append((index, d))
        rows += [_verdict(surface, rest, by_kind) for surface in PRIVACY_SURFACES]
    return Verdicts(kinds=kinds, rows=tuple(rows)) if rows else None


def in_words(sentence: Sentence) -> str:
    """Return a sentence as text, numbers with their intervals and units."""
    return "".join(
        part if isinstance(part, str) else part.text if isinstance(part, Verbatim) else part.short
        for part in sentence
    )


def _verdict(surface: str, rest: str, by_kind: dict[str, list[Indexed]]) -> SurfaceVerdict:
    on_surface = {
        kind: [(i, d) for i, d in entries if d.surface == surface] for kind, entries in by_kind.items()
    }
    telling = {kind: [(i, d) for i, d in entries if d.shows] for kind, entries in on_surface.items()}
    warning: Sentence = ()
    cells: tuple[tuple[Sentence, ...], ...] = ()
    if not any(on_surface.values()):
        warning = (NO_ATTACK,)
    elif not any(telling.values()):
        warning = (
            CANNOT_TELL,
            *_could_have_shown(next(entries for entries in on_surface.values() if entries)),
        )
    else:
        cells = tuple(_cell(entries) for entries in telling.values())
    about = PRIVACY_SURFACES[surface]
    return SurfaceVerdict(surface=surface, about=about, rest=rest, warning=warning, cells=cells)


def _could_have_shown(entries: Sequence[Indexed]) -> Sentence:
    """Return the smallest values that attacks would have detected, each from its most sensitive view."""
    detectable = [(i, d) for i, d in entries if d.could_show is not None]
    best: dict[tuple[str, str], Indexed] = {}
    for index, d in sorted(detectable, key=lambda pair: pair[1].could_show or 0.0):
        best.setdefault((d.id, d.attack), (index, d))
    parts: list[Part] = []
    for index, d in sorted(best.values(), key=lambda pair: -_rank(pair[1]))[:MOST]:
        number = could_show_of(d, index)
        assert number is not None
        parts += ["; " if parts else " The attacks would have detected ", _what(d), " of at least ", number]
        parts += [" (", _from(d), ")"]
    return (*parts, ".") if parts else ()


def _cell(entries: Sequence[Indexed]) -> tuple[Sentence, ...]:
    """Return the sentences about one protection: its attacks, the most telling ones first."""
    worst: dict[tuple[str, str], Indexed] = {}  # of each attack, the view with the largest number
    for index, d in sorted(entries, key=lambda pair: -_left(pair[1])):
        worst.setdefault((d.id, d.attack), (index, d))
    ordered = sorted(worst.values(), key=lambda pair: (-_rank(pair[1]), -_excess(pair[1])))
    sentences = [_sentence(index, d) for index, d in ordered[:MOST]]
    if len(ordered) > 1:
        still_succeed = sum(_succeeds(d) for _, d in ordered)
        sentences.append(
            (
                _count(still_succeed, "attacks that still succeed", ordered),
                " of ",
                _count(len(ordered), "attacks that succeed without protection", ordered),
                " attacks that succeed without protection still succeed",
                *_not_decided(ordered),
                ".",
            )
        )
    return tuple(sentences)


def _not_decided(entries: Sequence[Indexed]) -> Sentence:
    number = sum(_undecided(d) for _, d in entries)
    if not number:
        return ()
    return "; ", _count(number, "undecided attacks", entries), " undecided"


def _sentence(index: int, d: AttackDifference) -> Sentence:
    base, value, change = base_of(d, index), value_of(d, index), difference_of(d, index)
    who: tuple[Part, ...] = (" (", _who(d), ").")
    if value is None or change is None:
        unprotected: Sentence = ("without protection, ", _what(d), " was ", base, *who)
        if d.outcome == Outcome.NOT_APPLICABLE:
            return ("Leaves the attack nothing to work on; ", *unprotected)
        return ("Not measured (", Verbatim(why_without(d)), "); ", *unprotected)
    details: tuple[Part, ...] = (": difference ", change, *(() if d.paired else (f", {NOT_PAIRED}",)))
    still = "; the attack still succeeds" if _succeeds(d) else ""
    if change.estimate.interval is None:
        return ("Changes ", _what(d), " from ", base, " to ", value, *details, "; no interval", still, *who)
    if change.estimate.below(0) and _at_chance(d):
        return ("Lowers ", _what(d), " from ", base, " to chance, ", value, *details, *who)
    if change.estimate.below(0):
        qualification: tuple[Part, ...] = (_side(d),)
        if still:
            qualification = (still,)
        elif d.outcome == Outcome.INCONCLUSIVE:
            qualification = ("; it is undecided whether the attack still succeeds: ", Verbatim(d.why))
        return ("Lowers ", _what(d), " from ", base, " to ", value, *details, *qualification, *who)
    if change.estimate.above(0):
        return ("Raises ", _what(d), " from ", base, " to ", value, *details, still, *who)
    return (
        "Makes no detectable difference to ",
        _what(d),
        ", ",
        base,
        " to ",
        value,
        *details,
        still,
        *who,
    )


def _what(d: AttackDifference) -> Verbatim:
    """Return the name of the number, such as `membership AUC`."""
    if d.measure in MEASURES.names() and measure_kind(d.measure).unit == d.base.unit:
        return Verbatim(measure_kind(d.measure).title)
    return Verbatim("AUC" if d.base.metric == "auc" else d.base.metric)


def _who(d: AttackDifference) -> Verbatim:
    """Return the attack, its view, and what it reads under the protection if that is another surface."""
    instead = f", which here reads the {d.surface_here}" if d.surface_here not in ("", d.surface) else ""
    return Verbatim(_from(d).text + instead)


def _from(d: AttackDifference) -> Verbatim:
    return Verbatim(f"{d.id} from {d.view.replace('_', ' ')}")


def _succeeds(d: AttackDifference) -> bool:
    return d.value is not None and d.outcome == Outcome.SUCCEEDED


def _undecided(d: AttackDifference) -> bool:
    """Return whether it is open if the attack succeeds: it has no number, or is inconclusive."""
    if d.value is None:
        return d.outcome != Outcome.NOT_APPLICABLE
    return d.outcome == Outcome.INCONCLUSIVE


def _at_chance(d: AttackDifference) -> bool:
    if d.value is None or d.value.interval is None:
        return False
    return d.outcome == Outcome.RESISTED and not d.value.above(d.chance) and not _below_chance(d)


def _below_chance(d: AttackDifference) -> bool:
    """Return whether an AUC's interval lies below chance."""
    return d.value is not None and d.value.unit == "AUC" and d.value.below(d.chance)


def _side(d: AttackDifference) -> str:
    """Return on which side of chance a value lies, if its interval excludes chance.

    An AUC below chance by more than the margin separates targets as well as one that far above chance.
    """
    if d.value is None or not _below_chance(d):
        return ABOVE
    margin = d.bar - d.chance
    return TURNED if d.value.below(d.chance - margin) else BELOW


def _rank(d: AttackDifference) -> int:
    return measure_kind(d.measure).headline if d.measure in MEASURES.names() else 0


def _excess(d: AttackDifference) -> float:
    return d.base.value - d.chance


def _left(d: AttackDifference) -> float:
    return float("-inf") if d.value is None else d.value.value


def _count(value: int, metric: str, entries: Sequence[Indexed]) -> Number:
    seeds = sorted({s for _, d in entries for s in d.base.seeds})
    exact = counted(value, metric=metric, unit="count", seeds=seeds)
    return Number(exact, pointer("attack_differences"))
