"""Run one attack from one view: guess, score, both controls, outcome.

The result is always a `Finding`. An attack that raises is ERROR; an attack that cannot tell or runs out of
time is INCONCLUSIVE; one whose view lacks what it needs is NOT_APPLICABLE. A control that cannot run is
left out.

The truth is in this process, on the stack below the attack while it guesses, so a malicious attack could
read it there. Running attacks in a process without the truth would not prevent that, because the same user
can read the transcript. See the guarantees of `attacks.base`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Inconclusive,
    NotApplicable,
    Truth,
)
from attacks.budget import OutOfTime, SecondsBar, alarm
from attacks.judging.measured import plain
from attacks.judging.outcome import judge
from attacks.judging.targets import detectable_of, targets_of
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome, Profile
from fedproxy_secure.evidence.measure import measure_kind
from fedproxy_secure.evidence.targets import Targets
from fedproxy_secure.record.view import View
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.randomness import stream

log = logging.getLogger(__name__)


def run_one(
    one: Attack,
    seen: View,
    truth: Truth,
    *,
    profile: Profile,
    seconds: float,
    seed: int,
    name: str = "",
    progress: Progress | None = None,
) -> Finding:
    """Run one attack from one view with both controls; only an interrupt is raised.

    Args:
        one: the attack.
        seen: the adversary's view.
        truth: what the honest clients held.
        profile: how much to spend.
        seconds: the most it may take, controls included; numbers found until then are kept.
        seed: seed of the attack's randomness.
        name: name of the seed's folder, for the finding.
        progress: where the seconds that pass are reported.
    """
    began = time.monotonic()
    budget = Budget(profile=profile, seconds=seconds)
    bar = SecondsBar(shown=progress or NoProgress(), task=f"{one.info.name}, {seen.threat_model}")
    bar.shown.start(bar.task, math.ceil(seconds))
    numbers, out_of_time = _Numbers(), False
    try:
        _check_surfaces(one.info, seen)
        with alarm(seconds, bar):
            _attack_and_controls(one, seen, truth, budget, seed, numbers, bar)
        outcome, reason = numbers.judged(one.info)
        out_of_time = numbers.out_of_time and outcome == Outcome.INCONCLUSIVE
    except OutOfTime as error:
        outcome, reason = Outcome.INCONCLUSIVE, f"{error} in {bar.part}"
        out_of_time = True
    except NotApplicable as error:
        outcome, reason = Outcome.NOT_APPLICABLE, str(error)
    except Inconclusive as error:
        outcome, reason = Outcome.INCONCLUSIVE, str(error)
    except (Exception, SystemExit) as error:  # the rest of the suite goes on
        log.debug("attack %s failed", one.info.name, exc_info=True)
        outcome, reason = Outcome.ERROR, f"{type(error).__name__}: {str(error)[:200]}"
    bar.shown.done(bar.task)
    return finding(
        one.info,
        seen,
        outcome=outcome,
        reason=reason,
        estimates=tuple(map(plain, numbers.estimates)),
        positive=numbers.positive and plain(numbers.positive),
        negative=numbers.negative and plain(numbers.negative),
        detectable=numbers.detectable,
        targets=numbers.targets,
        seconds=time.monotonic() - began,
        profile=profile,
        seed=seed,
        name=name,
        out_of_time=out_of_time,
        effort=numbers.effort,
    )


@dataclass(kw_only=True)
class _Numbers:
    """The results of an attack and its controls so far.

    Args:
        estimates: the attack's numbers, the headline first.
        detectable, targets: what the estimates could have shown, and how each target was judged.
        positive, negative: the controls' headlines.
        effort: how much work the attack itself did.
        without_positive: why there is no positive control, if it was started and did not finish.
        out_of_time: whether the positive control did not finish because time ran out.
    """

    estimates: tuple[Estimate, ...] = ()
    detectable: tuple[Detectable, ...] = ()
    targets: Targets | None = None
    positive: Estimate | None = None
    negative: Estimate | None = None
    effort: Mapping[str, int] = field(default_factory=dict)
    without_positive: str = ""
    out_of_time: bool = False

    def judged(self, info: AttackInfo) -> tuple[Outcome, str]:
        outcome, reason = judge(info, self.estimates[0], self.positive, self.negative, self.detectable)
        if self.without_positive and outcome != Outcome.SUCCEEDED:  # success needs no positive control
            return Outcome.INCONCLUSIVE, self.without_positive
        return outcome, reason


def _attack_and_controls(
    one: Attack, seen: View, truth: Truth, budget: Budget, seed: int, numbers: _Numbers, bar: SecondsBar
) -> None:
    """Run the attack, its negative control, then its positive control; write the results to `numbers`."""
    exam, guess, numbers.estimates = _attempt(one, seen, truth, budget, seed)
    numbers.effort = {name: int(count) for name, count in one.effort(guess).items()}
    _check_headline(one.info, numbers.estimates)
    _check_units(one.info, numbers.estimates)
    numbers.detectable = detectable_of(one.info, numbers.estimates)
    numbers.targets = targets_of(numbers.estimates[0], exam, truth)
    bar.part = "its negative control"
    with suppress(NotApplicable, Inconclusive):
        numbers.negative = _negative(one, seen, exam, guess, budget.halfway(), seed)
    bar.part = "its positive control"
    try:
        numbers.positive = _positive(one, seen, truth, budget, seed, numbers.estimates)
    except NotApplicable:
        pass
    except (OutOfTime, Inconclusive) as error:
        numbers.without_positive = f"{error} in {bar.part}"
        numbers.out_of_time = isinstance(error, OutOfTime)


def finding(
    info: AttackInfo,
    seen: View,
    *,
    outcome: Outcome,
    reason: str,
    seconds: float,
    profile: Profile,
    seed: int,
    name: str,
    estimates: tuple[Estimate, ...] = (),
    positive: Estimate | None = None,
    negative: Estimate | None = None,
    detectable: tuple[Detectable, ...] = (),
    targets: Targets | None = None,
    out_of_time: bool = False,
    effort: Mapping[str, int] | None = None,
) -> Finding:
    """Return the finding of an attack from a view, with the measures that it feeds."""
    return Finding(
        attack=info.name,
        id=info.id,
        title=info.title,
        view=seen.threat_model,
        surfaces=tuple(sorted(seen.surfaces)),
        seed_folder=name,
        profile=profile,
        outcome=outcome,
        reason=reason,
        estimates=estimates,
        measures=_measures(info, estimates),
        positive=positive,
        negative=negative,
        seconds=seconds,
        seed=seed,
        mapping=info.mapping,
        read=_read(info, seen),
        chance=info.chance,
        margin=info.margin,
        detectable=detectable,
        targets=targets,
        out_of_time=out_of_time,
        effort=effort or {},
    )


def _measures(info: AttackInfo, estimates: tuple[Estimate, ...]) -> dict[str, tuple[int, ...]]:
    """Return each measure that the attack feeds, with the positions of its numbers among the estimates."""
    positions: dict[str, tuple[int, ...]] = {}
    for feeds in info.measures:
        own_positions = tuple(i for i, e in enumerate(estimates) if feeds.takes(e.metric))
        positions[feeds.measure] = (*positions.get(feeds.measure, ()), *own_positions)
    return positions


def _check_headline(info: AttackInfo, estimates: tuple[Estimate, ...]) -> None:
    """Raise `DataError` unless the first estimate is the one that decides the outcome."""
    if (first := estimates[0].metric if estimates else "none") != info.headline:
        raise DataError(f"{info.name}: first estimate {first}: must be {info.headline}, its headline")


def _check_units(info: AttackInfo, estimates: tuple[Estimate, ...]) -> None:
    """Raise `DataError` if an estimate has a measure's name but not its unit."""
    for key, positions in _measures(info, estimates).items():
        unit = measure_kind(key).unit
        for estimate in (estimates[i] for i in positions):
            if estimate.unit != unit:
                raise DataError(
                    f"{estimate.metric}: unit={estimate.unit}: must be {unit}, the unit of {key}"
                )


def has_surfaces(info: AttackInfo, surfaces: frozenset[str]) -> bool:
    """Return whether a view of these surfaces has what the attack needs."""
    return any(needed <= surfaces for needed in info.needs)


def _read(info: AttackInfo, seen: View) -> tuple[str, ...]:
    """Return the first of the attack's sets of surfaces that the view has, which is the one it uses."""
    return tuple(sorted(next((needed for needed in info.needs if needed <= seen.surfaces), ())))


def _check_surfaces(info: AttackInfo, seen: View) -> None:
    if not has_surfaces(info, seen.surfaces):
        needed = " or ".join("+".join(sorted(n)) for n in info.needs)
        raise NotApplicable(
            f"needs {needed}; this view has {', '.join(sorted(seen.surfaces)) or 'nothing'}"
        )


def _attempt(
    one: Attack, seen: View, truth: Truth, budget: Budget, seed: int
) -> tuple[Exam, Any, tuple[Estimate, ...]]:
    exam = one.exam(truth, seen, _stream(one, seed, "exam"))
    guess = one.guess(seen, exam.question, budget, _stream(one, seed, "guess"))
    return exam, guess, tuple(replace(e, seeds=(seed,)) for e in one.score(guess, exam.answer))


def _positive(
    one: Attack,
    seen: View,
    truth: Truth,
    budget: Budget,
    seed: int,
    estimates: tuple[Estimate, ...],
) -> Estimate | None:
    control = one.positive(seen, truth)
    if control is None:
        return None
    open_view, open_truth = control
    if open_view is seen and open_truth is truth:
        return estimates[0]
    return _attempt(one, open_view, open_truth, budget, seed)[2][0]


def _negative(
    one: Attack, seen: View, exam: Exam, guess: Any, budget: Budget, seed: int
) -> Estimate | None:
    empty_view, empty_exam = one.negative(seen, exam, _stream(one, seed, "negative"))
    if empty_view is seen and empty_exam is exam:
        return None
    # an unchanged view and question would give the same guess
    if empty_view is not seen or empty_exam.question is not exam.question:
        guess = one.guess(empty_view, empty_exam.question, budget, _stream(one, seed, "guess"))
    return replace(one.score(guess, empty_exam.answer)[0], seeds=(seed,))


def _stream(one: Attack, seed: int, what: str) -> np.random.Generator:
    return stream(seed, "attack", one.info.name, what)
