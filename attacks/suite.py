"""Run attacks on a recorded run, from every view, on every seed.

An attack that fails never stops the rest (`attacks.trial`). Each result is appended to
`attacks/events.jsonl` below the run as it comes, so an interrupted suite can resume where it stopped.
At the end, or after an interrupt, `results.json` collects the finished results. Earlier results stay in it
until they are replaced, so running one attack again does not discard the results of others. Results of
attacks and seeds that no longer exist are dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from attacks.base import Attack, Truth
from attacks.budget import OutOfTime
from attacks.registry import check_measures, every, get
from attacks.trial import finding, has_surfaces, run_one
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.finding import Finding, Outcome, Profile, write_findings
from fedproxy_secure.evidence.kept import (
    Key,
    append_event,
    forget_events,
    kept_findings,
    key_of,
    read_events,
)
from fedproxy_secure.models.memory import free_memory
from fedproxy_secure.record.private import client_names, read_private
from fedproxy_secure.record.view import View, view
from fedproxy_secure.runtime.files.names import FEDERATION, SEED_PREFIX, TRANSCRIPT
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.workers import Lost, in_processes
from threat_models import ThreatModel

log = logging.getLogger(__name__)
KEYS = ("seed_folder", "view", "attack")  # a finding's part of `Key`
Jobs = int | Callable[[], int]  # attacks at once; a function is called again until it returns more than 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attack from one view of one seed, with all that a process needs to run it."""

    folder: Path
    model: ThreatModel
    attack: str
    llm: str | None
    profile: Profile
    seconds: float
    seed: int

    @property
    def key(self) -> Key:
        """The seed's folder, threat model and attack that the result belongs to."""
        return self.folder.name, self.model.name, self.attack

    def run(self, one: Attack, progress: Progress | None = None) -> Finding:
        """Run the attack. Raises `RunFolderError` if the transcript cannot be read."""
        result = run_one(
            one,
            read_view(self.folder, self.model, self.llm),
            read_truth(self.folder, honest_besides=self.model.clients),
            profile=self.profile,
            seconds=self.seconds,
            seed=self.seed,
            name=self.folder.name,
            progress=progress,
        )
        free_memory()  # glibc would keep half a gigabyte of a large model for later
        return result


def seed_folders(run: Path) -> list[Path]:
    """Return the folders of a run's seeds that hold a transcript.

    Raises `RunFolderError` if there is none.
    """
    folders = sorted(p for p in run.glob(f"{SEED_PREFIX}*") if (p / FEDERATION / TRANSCRIPT).is_dir())
    if not folders:
        raise RunFolderError(f"{run}: no seed was recorded, or transcripts were erased; run with --record")
    return folders


@lru_cache(maxsize=2)
def read_view(seed_folder: Path, model: ThreatModel, llm: str | None) -> View:
    """Read what the corrupted parties saw; the result is cached for the next attack from the same view."""
    return view(seed_folder, model, llm=llm)


@lru_cache(maxsize=2)
def read_truth(seed_folder: Path, *, honest_besides: int = 0) -> Truth:
    """Read what the honest clients held; the first `honest_besides` clients are corrupted and left out."""
    transcript = seed_folder / FEDERATION / TRANSCRIPT
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
    jobs: Jobs = 1,
    progress: Progress | None = None,
    on_result: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Run every attack from every view on every recorded seed of a run.

    The attacks' own randomness follows from `seed` in the run's first seed, from `seed + 1` in its second,
    and so on. An attack that raises, hangs or kills its process becomes a row of the result and stops
    nothing else.

    Args:
        run: folder of the recorded run.
        attacks: the attacks to run.
        threat_models: the adversaries whose views are attacked.
        profile: how much to spend.
        seconds: the most that one attack may take from one view.
        seed: seed of the attacks' randomness in the run's first seed.
        resume: whether to keep what an earlier call finished under the same profile and seed.
        llm: path of the owner's model, for views of the server.
        jobs: how many attacks run at once. With more than one, each runs in a process of its own, or shares
            one with attacks of the same `shares`, and `attacks.registry.every` must know it. A function is
            called before each attack, until it returns more than 1.
        progress: where progress is reported; by default nowhere.
        on_result: called with every finding as it comes.

    Raises `RunFolderError` if the run was not recorded, `ConfigError` if an attack feeds a measure that is
    not registered.
    """
    check_measures(attacks)
    trials = [
        Trial(
            folder=folder,
            model=model,
            attack=one.info.name,
            llm=llm,
            profile=profile,
            seconds=seconds,
            seed=seed + number,
        )
        for number, folder in enumerate(seed_folders(run))
        for model in threat_models
        for one in attacks
    ]
    results = _finished(run, profile, {t.key: t.seed for t in trials}) if resume else {}
    todo = [t for t in trials if t.key not in results]
    surfaces = _surfaces(todo)  # a transcript that cannot be read fails before anything runs
    earlier = _earlier(run)
    if not resume:  # a later resumed suite must not keep them
        keys = {t.key for t in trials}
        forget_events(run, lambda raw: tuple(str(raw.get(name)) for name in KEYS) in keys)
    bars, task = progress or NoProgress(), f"{profile} suite"
    bars.start(task, len(todo))  # only attacks still to run, so that the remaining time is right
    running = _results(todo, {one.info.name: one for one in attacks}, surfaces, jobs, bars)
    try:
        with closing(running):  # an interrupt ends processes
            for result in running:
                results[key_of(result)] = result
                append_event(run, result)
                if on_result is not None:
                    on_result(result)
                bars.advance(task, note=f"{result.attack}: {result.outcome}")
        bars.done(task)
    finally:
        findings = [results[t.key] for t in trials if t.key in results]
        write_findings(run, [*findings, *(f for f in earlier if key_of(f) not in results)])
    return findings


def _surfaces(trials: Sequence[Trial]) -> dict[tuple[Path, ThreatModel], frozenset[str]]:
    """Return the surfaces of each view, read anew. Raises `RunFolderError` for one that cannot be read."""
    read_view.cache_clear()  # the folder may hold another run by now
    read_truth.cache_clear()
    views = dict.fromkeys((t.folder, t.model, t.llm) for t in trials)
    return {(folder, model): read_view(folder, model, llm).surfaces for folder, model, llm in views}


def _results(
    todo: Sequence[Trial],
    attacks: dict[str, Attack],
    surfaces: Mapping[tuple[Path, ThreatModel], frozenset[str]],
    jobs: Jobs,
    bars: Progress,
) -> Generator[Finding]:
    """Yield the findings as they come."""
    if jobs == 1:
        for trial in todo:
            yield trial.run(attacks[trial.attack], bars)
        return
    groups: dict[tuple[Path, str], list[Trial]] = {}
    for trial in todo:
        info = attacks[trial.attack].info
        if has_surfaces(info, surfaces[trial.folder, trial.model]):
            groups.setdefault((trial.folder, info.shares or f"{trial.key}"), []).append(trial)
        else:
            yield trial.run(attacks[trial.attack], bars)

    def length(group: Sequence[Trial]) -> int:
        return sum(attacks[trial.attack].info.long for trial in group)

    waiting = deque(sorted(groups.values(), key=length, reverse=True))
    while waiting:
        at_once = jobs() if callable(jobs) else jobs
        if at_once > 1:
            yield from _apart(waiting, at_once, bars)
            return
        for trial in waiting.popleft():
            yield trial.run(attacks[trial.attack], bars)


def _apart(groups: Iterable[Sequence[Trial]], jobs: int, bars: Progress) -> Generator[Finding]:
    """Run each group in a process of its own; if it dies, run each of its trials in its own process."""
    tasks, alone = list(groups), list[Sequence[Trial]]()
    results = in_processes(run_trials, tasks, jobs=jobs, seconds=_seconds, progress=lambda _: bars)
    with closing(results):
        for index, result in results:
            group = tasks[index]
            if not isinstance(result, Lost):
                yield from result
            elif len(group) == 1:
                yield _lost(group[0], result)
            else:
                alone += [(trial,) for trial in group]
    if alone:
        yield from _apart(alone, jobs, bars)


def _seconds(group: Sequence[Trial]) -> float:
    return sum(trial.seconds for trial in group)


def run_trials(group: Sequence[Trial], *, progress: Progress | None = None) -> list[Finding]:
    """Run trials in this process, on one thread, one after another."""
    import torch

    torch.set_num_threads(1)
    return [trial.run(get(trial.attack), progress) for trial in group]


def _lost(trial: Trial, lost: Lost) -> Finding:
    reason = str(OutOfTime(trial.seconds)) if lost.timed_out else " ".join(str(lost).split())[:200]
    return finding(
        every()[trial.attack].info,
        read_view(trial.folder, trial.model, trial.llm),
        outcome=Outcome.INCONCLUSIVE if lost.timed_out else Outcome.ERROR,
        reason=reason,
        seconds=trial.seconds,
        profile=trial.profile,
        seed=trial.seed,
        name=trial.folder.name,
        out_of_time=lost.timed_out,
    )


def _earlier(run: Path) -> list[Finding]:
    """Return the findings of earlier calls; drop those of seeds whose folder is gone."""
    findings = kept_findings(run).values()
    gone = {f.seed_folder for f in findings if not (run / f.seed_folder).is_dir()}
    if gone:
        log.warning("%s: findings are dropped, as the seed is gone: %s", run, ", ".join(sorted(gone)))
        forget_events(run, lambda raw: str(raw.get("seed_folder")) in gone)
    return [f for f in findings if f.seed_folder not in gone]


def _finished(run: Path, profile: Profile, seeds: Mapping[Key, int]) -> dict[Key, Finding]:
    """Return the findings of an earlier call that are kept.

    Attacks that ended in an error or ran out of time are run again.
    """
    done: dict[Key, Finding] = {}
    for result in read_events(run):
        repeat = result.outcome == Outcome.ERROR or result.out_of_time
        key = key_of(result)
        if (result.profile, result.seed) == (profile, seeds.get(key)) and not repeat:
            done[key] = result
    return done
