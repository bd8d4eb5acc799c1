"""Run attacks on a recorded run: view, guess, score, both controls, outcome.

One that fails never stops the rest. Results are written as they come (`attacks/events.jsonl` below the
run), so an interrupted suite goes on where it stopped; `results.json` joins them at the end.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Inconclusive,
    NotApplicable,
    OutOfTime,
    Truth,
)
from fedproxy_secure.artifacts import RunFolder
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.progress import NoProgress, Progress
from fedproxy_secure.randomness import stream
from fedproxy_secure.record.private import read_private
from fedproxy_secure.record.view import TRANSCRIPT, View, client_names, view
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.finding import FOLDER, Finding, Outcome, Profile, write_findings
from threat_models import ThreatModel

log = logging.getLogger(__name__)
EVENTS = "events.jsonl"


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds that hold a transcript.

    Raises `RunFolderError` if there is none.
    """
    found = sorted(p for p in run.glob("seed-*") if (p / "federation" / TRANSCRIPT).is_dir())
    if not found:
        raise RunFolderError(f"{run}: no seed of it was recorded; run with --record")
    return found


def read_truth(seed_folder: Path, *, honest_besides: int = 0) -> Truth:
    """What the honest clients held: all but the first `honest_besides`, which are corrupted."""
    transcript = seed_folder / "federation" / TRANSCRIPT
    names = client_names(transcript)[honest_besides:]
    return Truth(clients={name: read_private(transcript, name) for name in names})


def run_suite(
    run: Path,
    *,
    attacks: Sequence[Attack],
    threat_models: Sequence[ThreatModel],
    profile: Profile = "smoke",
    seconds: float = 600.0,
    seed: int = 0,
    resume: bool = False,
    llm: str | None = None,
    progress: Progress | None = None,
    on_result: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Every attack from every view on every recorded seed of a run; `seconds` is for each attack.

    With `resume` what was finished under the same profile and seed is kept. An attack that raises, or runs
    out of time, is a row of the result and nothing more.

    Raises `RunFolderError` if the run was not recorded.
    """
    shown = progress or NoProgress()
    folders = seed_folders(run)
    log_file = RunFolder(path=run / FOLDER)
    done = _finished(log_file, profile, seed) if resume else {}
    if not resume and (log_file.path / EVENTS).exists():
        (log_file.path / EVENTS).unlink()
    results: list[Finding] = []
    task = f"{profile} suite"
    shown.start(task, len(folders) * len(threat_models) * len(attacks))
    for folder in folders:
        for model in threat_models:
            seen = view(folder, model, llm=llm)
            truth = read_truth(folder, honest_besides=model.clients)
            for one in attacks:
                key = (folder.name, model.name, one.info.name)
                result = done.get(key)
                if result is None:
                    result = run_one(
                        one, seen, truth, profile=profile, seconds=seconds, seed=seed, name=folder.name
                    )
                    log_file.append_jsonl(EVENTS, result.to_json())
                    if on_result is not None:
                        on_result(result)
                results.append(result)
                shown.advance(task, note=f"{one.info.name}: {result.outcome}")
    shown.done(task)
    write_findings(run, results)
    return results


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
    """One attack from one view with both controls; never raises but for an interrupt."""
    began = time.monotonic()
    info = one.info
    budget = Budget(profile=profile, seconds=seconds)
    estimates: tuple[Estimate, ...] = ()
    positive = negative = None
    try:
        _check_surfaces(info, seen)
        with _alarm(seconds):
            estimates = _attempt(one, seen, truth, budget, seed)
            positive = _positive(one, seen, truth, budget, seed, estimates)
            negative = _negative(one, seen, truth, budget, seed)
        outcome, reason = judge(info, estimates[0], positive, negative)
    except NotApplicable as error:
        outcome, reason = Outcome.NOT_APPLICABLE, str(error)
    except Inconclusive as error:
        outcome, reason = Outcome.INCONCLUSIVE, str(error)
    except Exception as error:  # whatever it is, the rest of the suite goes on
        log.exception("attack %s failed", info.name)
        outcome, reason = Outcome.ERROR, f"{type(error).__name__}: {str(error)[:200]}"
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
        seconds=time.monotonic() - began,
        seed=seed,
        mapping=info.mapping,
    )


def judge(
    info: AttackInfo, headline: Estimate, positive: Estimate | None, negative: Estimate | None
) -> tuple[Outcome, str]:
    """The outcome of a headline beside its controls, and one sentence why.

    SUCCEEDED: the interval's low end is above chance by more than the margin. RESISTED: the value is not,
    though the positive control's is. Everything else is INCONCLUSIVE.
    """
    bar = info.chance + info.margin
    if negative is not None and _low(negative) > bar:
        return Outcome.INCONCLUSIVE, f"negative control at {negative.value:.3g}: finds what is not there"
    if _low(headline) > bar:
        return Outcome.SUCCEEDED, f"{headline.metric} {headline.value:.3g}, chance {info.chance:g}"
    if positive is None or _low(positive) <= bar:
        found = "none" if positive is None else f"{positive.value:.3g}"
        return Outcome.INCONCLUSIVE, f"positive control: {found}; must be above {bar:g}"
    if headline.value > bar:
        return Outcome.INCONCLUSIVE, f"{headline.metric} {headline.value:.3g}: interval reaches {bar:g}"
    return (
        Outcome.RESISTED,
        f"{headline.metric} {headline.value:.3g}; positive control {positive.value:.3g}",
    )


def _low(estimate: Estimate) -> float:
    """The interval's low end; a number without an interval proves nothing."""
    return float("-inf") if estimate.low is None else estimate.low


def _check_surfaces(info: AttackInfo, seen: View) -> None:
    if not any(needed <= seen.surfaces for needed in info.needs):
        wanted = " or ".join("+".join(sorted(n)) for n in info.needs)
        raise NotApplicable(
            f"needs {wanted}; this view has {', '.join(sorted(seen.surfaces)) or 'nothing'}"
        )


def _attempt(one: Attack, seen: View, truth: Truth, budget: Budget, seed: int) -> tuple[Estimate, ...]:
    exam = one.exam(truth, seen, _stream(one, seed, "exam"))
    guess = one.guess(seen, exam.question, budget, _stream(one, seed, "guess"))
    return tuple(_seeded(e, seed) for e in one.score(guess, exam.answer))


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
    return _attempt(one, open_view, open_truth, budget, seed)[0]


def _negative(one: Attack, seen: View, truth: Truth, budget: Budget, seed: int) -> Estimate | None:
    exam = one.exam(truth, seen, _stream(one, seed, "exam"))
    empty_view, empty_exam = one.negative(seen, exam, _stream(one, seed, "negative"))
    if empty_view is seen and empty_exam is exam:
        return None
    guess = one.guess(empty_view, empty_exam.question, budget, _stream(one, seed, "guess"))
    return _seeded(one.score(guess, empty_exam.answer)[0], seed)


def _stream(one: Attack, seed: int, what: str) -> np.random.Generator:
    return stream(seed, "attack", one.info.name, what)


def _seeded(estimate: Estimate, seed: int) -> Estimate:
    return Estimate(**{**vars(estimate), "seeds": (seed,)})


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` when the seconds are over, also inside long library calls' Python parts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: object) -> None:
        raise OutOfTime(f"ran out of its {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _finished(folder: RunFolder, profile: Profile, seed: int) -> dict[tuple[str, str, str], Finding]:
    done = {}
    for raw in folder.read_jsonl(EVENTS):
        result = Finding.from_json(raw)
        if (result.profile, result.seed) == (profile, seed) and result.outcome != Outcome.ERROR:
            done[result.seed_folder, result.view, result.attack] = result
    return done
