"""One attack from one view: guess, score, both controls, outcome.

Whatever the attack does, what comes out is a `Finding`: one that raises is ERROR, one that cannot tell or
runs out of time INCONCLUSIVE, one whose view lacks what it needs NOT_APPLICABLE.

The truth is in this process while an attack guesses, and below it on the stack: an attack that looks there
finds it. A process without it would not change that, for the same user may read the transcript; see the
guarantees of `attacks.base`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Inconclusive,
    NotApplicable,
    OutOfTime,
    Truth,
)
from fedproxy_secure.randomness import stream
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.finding import Finding, Outcome, Profile

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
) -> Finding:
    """One attack from one view with both controls; never raises but for an interrupt.

    Args:
        seconds: the most it may take, controls included; numbers found until then are kept.
        name: of the seed's folder, for the finding.
    """
    began = time.monotonic()
    budget = Budget(profile=profile, seconds=seconds)
    estimates: tuple[Estimate, ...] = ()
    positive = negative = None
    try:
        _check_surfaces(one.info, seen)
        with _alarm(seconds):
            exam, guess, estimates = _attempt(one, seen, truth, budget, seed)
            with suppress(NotApplicable):  # a control that does not fit is a control that is not there
                positive = _positive(one, seen, truth, budget, seed, estimates)
            with suppress(NotApplicable):
                negative = _negative(one, seen, exam, guess, budget, seed)
        outcome, reason = judge(one.info, estimates[0], positive, negative)
    except NotApplicable as error:
        outcome, reason = Outcome.NOT_APPLICABLE, str(error)
    except Inconclusive as error:
        outcome, reason = Outcome.INCONCLUSIVE, str(error)
    except (Exception, SystemExit) as error:  # whatever it is, the rest of the suite goes on
        log.debug("attack %s failed", one.info.name, exc_info=True)
        outcome, reason = Outcome.ERROR, f"{type(error).__name__}: {str(error)[:200]}"
    return finding(
        one.info,
        seen,
        outcome=outcome,
        reason=reason,
        estimates=estimates,
        positive=positive,
        negative=negative,
        seconds=time.monotonic() - began,
        profile=profile,
        seed=seed,
        name=name,
    )


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
) -> Finding:
    """What came of an attack from a view."""
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
        positive=positive,
        negative=negative,
        seconds=seconds,
        seed=seed,
        mapping=info.mapping,
    )


def judge(
    info: AttackInfo, headline: Estimate, positive: Estimate | None, negative: Estimate | None
) -> tuple[Outcome, str]:
    """The outcome of a headline beside its controls, and one sentence why.

    SUCCEEDED: the interval's low end is above chance by more than the margin. RESISTED: the value is not,
    the positive control's interval is, and the headline's ends below it. Everything else is INCONCLUSIVE.
    """
    bar = info.chance + info.margin
    said = f"{headline.metric} {headline.value:.3g}"
    if negative is not None and low_end(negative) > bar:
        return Outcome.INCONCLUSIVE, f"negative control at {negative.value:.3g}: finds what is not there"
    if low_end(headline) > bar:
        return Outcome.SUCCEEDED, f"{said}, chance {info.chance:g}"
    if positive is None or low_end(positive) <= bar:
        found = "none" if positive is None else f"{positive.value:.3g}"
        return Outcome.INCONCLUSIVE, f"{said}; positive control {found}: its interval must be above {bar:g}"
    if headline.value > bar:
        return Outcome.INCONCLUSIVE, f"{said}: above {bar:g}, where its interval begins below"
    if headline.high is None or headline.high >= low_end(positive):
        return Outcome.INCONCLUSIVE, f"{said}: its interval reaches the positive control's"
    return Outcome.RESISTED, f"{said}; positive control {positive.value:.3g}"


def low_end(estimate: Estimate) -> float:
    """The interval's low end; a number without an interval proves nothing."""
    return float("-inf") if estimate.low is None else estimate.low


def has_surfaces(info: AttackInfo, seen: View) -> bool:
    """Whether the view has what the attack needs."""
    return any(needed <= seen.surfaces for needed in info.needs)


def _check_surfaces(info: AttackInfo, seen: View) -> None:
    if not has_surfaces(info, seen):
        wanted = " or ".join("+".join(sorted(n)) for n in info.needs)
        raise NotApplicable(
            f"needs {wanted}; this view has {', '.join(sorted(seen.surfaces)) or 'nothing'}"
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
    # the same view and question would give the same guess
    if empty_view is not seen or empty_exam.question is not exam.question:
        guess = one.guess(empty_view, empty_exam.question, budget, _stream(one, seed, "guess"))
    return replace(one.score(guess, empty_exam.answer)[0], seeds=(seed,))


def _stream(one: Attack, seed: int, what: str) -> np.random.Generator:
    return stream(seed, "attack", one.info.name, what)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` when the seconds are over, between any two lines of Python.

    Signals reach the main thread only; elsewhere the attack's own `budget.check` has to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: object) -> None:
        raise OutOfTime(seconds)

    before, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    others_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        left = max(others_s - (time.monotonic() - began), 1e-3) if others_s else 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)  # somebody else's alarm rings when it would have
