"""Run attacks on a recorded run, from every view, on every seed.

One that fails never stops the rest (`attacks.trial`). Results are written as they come
(`attacks/events.jsonl` below the run), so an interrupted suite goes on where it stopped; `results.json`
joins them at the end, and after an interrupt those that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from attacks.base import Attack, OutOfTime, Truth, every
from attacks.trial import finding, has_surfaces, run_one
from attacks.workers import Lost, in_processes
from fedproxy_secure.artifacts import RunFolder
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.progress import NoProgress, Progress
from fedproxy_secure.record.private import read_private
from fedproxy_secure.record.view import TRANSCRIPT, View, client_names, view
from fedproxy_secure.report.finding import FOLDER, Finding, Outcome, Profile, write_findings
from threat_models import ThreatModel

EVENTS = "events.jsonl"
Key = tuple[str, str, str]  # the seed's folder, threat model, attack


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attack from one view of one seed; all that a process needs to run it."""

    folder: Path
    model: ThreatModel
    attack: str
    llm: str | None
    profile: Profile
    seconds: float
    seed: int

    @property
    def key(self) -> Key:
        """Where its result belongs."""
        return self.folder.name, self.model.name, self.attack

    def run(self, one: Attack) -> Finding:
        """The finding. Raises `RunFolderError` if the transcript cannot be read."""
        return run_one(
            one,
            read_view(self.folder, self.model, self.llm),
            read_truth(self.folder, honest_besides=self.model.clients),
            profile=self.profile,
            seconds=self.seconds,
            seed=self.seed,
            name=self.folder.name,
        )


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds that hold a transcript.

    Raises `RunFolderError` if there is none.
    """
    found = sorted(p for p in run.glob("seed-*") if (p / "federation" / TRANSCRIPT).is_dir())
    if not found:
        raise RunFolderError(f"{run}: no seed of it was recorded; run with --record")
    return found


@lru_cache(maxsize=2)
def read_view(seed_folder: Path, model: ThreatModel, llm: str | None) -> View:
    """What the corrupted parties saw; the next attack from the same view gets it from memory."""
    return view(seed_folder, model, llm=llm)


@lru_cache(maxsize=2)
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
    jobs: int = 1,
    progress: Progress | None = None,
    on_result: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Every attack from every view on every recorded seed of a run; `seconds` is for each attack.

    The attacks' own randomness follows from `seed` in the run's first seed, from `seed + 1` in its second.

    With `resume` what was finished under the same profile and seed is kept. An attack that raises, hangs
    or kills its process is a row of the result and nothing more.

    Args:
        jobs: with more than one, each attack runs in a process of its own, so many at a time; attacks must
            then be known to `attacks.base.every`.
        on_result: is told every finding as it comes.

    Raises `RunFolderError` if the run was not recorded.
    """
    shown = progress or NoProgress()
    log_file = RunFolder(path=run / FOLDER)
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
    results = _finished(log_file, profile, {t.key: t.seed for t in trials}) if resume else {}
    if not resume:
        (log_file.path / EVENTS).unlink(missing_ok=True)
    todo = [t for t in trials if t.key not in results]
    read_view.cache_clear()  # the folder may be another run's by now
    read_truth.cache_clear()
    for folder, model in dict.fromkeys((t.folder, t.model) for t in todo):
        read_view(folder, model, llm)  # what cannot be read is found before anything runs
    by_name = {one.info.name: one for one in attacks}
    task = f"{profile} suite"
    shown.start(task, len(todo))  # of those left, so that the time left is not flattered
    try:
        with closing(_results(todo, by_name, jobs)) as coming:  # an interrupt ends the processes at once
            for result in coming:
                results[result.seed_folder, result.view, result.attack] = result
                log_file.append_jsonl(EVENTS, result.to_json())
                if on_result is not None:
                    on_result(result)
                shown.advance(task, note=f"{result.attack}: {result.outcome}")
        shown.done(task)
    finally:
        found = [results[t.key] for t in trials if t.key in results]
        write_findings(run, found)
    return found


def _results(todo: Sequence[Trial], attacks: dict[str, Attack], jobs: int) -> Generator[Finding]:
    """As they come."""
    apart = []
    for trial in todo:
        one = attacks[trial.attack]
        seen = read_view(trial.folder, trial.model, trial.llm)
        if jobs > 1 and has_surfaces(one.info, seen):
            apart.append(trial)
        else:
            yield trial.run(one)
    apart.sort(key=lambda t: -attacks[t.attack].info.long)
    seconds = apart[0].seconds if apart else 0.0
    with closing(in_processes(run_trial, apart, jobs=jobs, seconds=seconds)) as ended:
        for index, result in ended:
            yield _lost(apart[index], result) if isinstance(result, Lost) else result


def run_trial(trial: Trial) -> Finding:
    """One trial in this process, on one thread."""
    import torch

    torch.set_num_threads(1)
    return trial.run(every()[trial.attack])


def _lost(trial: Trial, lost: Lost) -> Finding:
    reason = str(OutOfTime(trial.seconds)) if lost.timed_out else f"its process ended with {lost.code}"
    return finding(
        every()[trial.attack].info,
        read_view(trial.folder, trial.model, trial.llm),
        outcome=Outcome.INCONCLUSIVE if lost.timed_out else Outcome.ERROR,
        reason=reason,
        seconds=trial.seconds,
        profile=trial.profile,
        seed=trial.seed,
        name=trial.folder.name,
    )


def _finished(folder: RunFolder, profile: Profile, seeds: Mapping[Key, int]) -> dict[Key, Finding]:
    """Findings of an earlier call that need not be made again: not errors, nor what ran out of time."""
    done: dict[Key, Finding] = {}
    for raw in folder.read_jsonl(EVENTS):
        result = Finding.from_json(raw)
        again = result.outcome == Outcome.ERROR or result.reason.startswith(OutOfTime.BEGINS)
        key = result.seed_folder, result.view, result.attack
        if (result.profile, result.seed) == (profile, seeds.get(key)) and not again:
            done[key] = result
    return done
