"""`report`: join the results of runs and matrices on disk into one report."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedproxy_secure.config import Config, settings_in
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.results import text_clients
from fedproxy_secure.experiments.run_report import settings_of
from fedproxy_secure.report.composition import Training
from fedproxy_secure.report.measured import (
    ATTACKED,
    SeedRun,
    attacked,
    configuration_of,
    lacking_on_some_seed,
    read_seeds,
    without_losses,
)
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import (
    CEILING_NOT_COUNTED,
    guarantees_of,
    total,
    unfinished_training,
)
from fedproxy_secure.report.trilemma import AttackDifference, Configuration
from fedproxy_secure.runtime.artifacts import environment
from fedproxy_secure.runtime.files.names import (
    AUDIT_LOG,
    CELLS,
    MANIFEST,
    REPORT_JSON,
    RESULT,
    SIGNATURE,
    seed_folder,
)

# a folder, its configurations, and the differences that its report holds; the targets behind them are gone
_Part = tuple[Path, Sequence[Configuration], Sequence[AttackDifference]]
_Shape = Mapping[str, int | tuple[int, ...]]  # what is known of each task's test records
SAME_INPUTS = (
    "Runs of the same settings share a line. Their test records were compared by number and, for free "
    "text, by the tokens of each response; whether records and LLM are the same was not checked."
)


def join(folders: Sequence[Path], out: Path, *, command: str) -> Report:
    """Write one report over runs and matrices to `out`; runs of the same settings share a line.

    Configurations of the same name get their folder's name added; a folder that is given twice counts once.
    The report has the environment of this process; that of each run is in the run's folder.

    Raises `RunFolderError` for a folder that is neither a run nor a matrix, is damaged, or has no finished
    seed, for runs of the same settings on other numbers of test records, and for an `out` that is the
    folder of a run, because its own report is signed.
    """
    if out.resolve() in [f.resolve() for f in folders]:
        raise RunFolderError(f"--out {out}: is one of the folders to join; choose another")
    if run_file := next((name for name in (MANIFEST, AUDIT_LOG, SIGNATURE) if (out / name).exists()), None):
        raise RunFolderError(f"--out {out}: has {run_file}, so it is a run's own folder; choose another")
    parts: list[_Part] = []
    records: set[str] = set()
    apis: dict[str, dict[str, None]] = {}
    runs: dict[str, list[tuple[Path, Config]]] = {}
    not_measured: dict[str, None] = {}
    ceiling = False
    folders = list({folder.resolve(): folder for folder in folders}.values())
    settings = [settings_in(folder) for folder in folders]
    for folder, config in zip(folders, settings, strict=True):
        records.add(_records_of(config))
        apis.setdefault(config.api.says, {})[folder.name] = None
        if (folder / CELLS).is_dir():
            report = Report.load(folder)
            if not report.configurations:
                raise RunFolderError(
                    f"{folder}: is a comparison, not a run or a matrix; its own report is in it, and "
                    "`compare --report-only` writes that again"
                )
            parts.append((folder, report.configurations, report.attack_differences))
            not_measured |= dict.fromkeys(report.not_measured)
            ceiling = True
        else:
            alike = config.model_copy(update={"seeds": (0,)}).sha256()
            runs.setdefault(alike, []).append((folder, config))
    for alike_runs in runs.values():
        configuration = _configuration(alike_runs, out)
        parts.append((alike_runs[0][0], (configuration,), ()))
        not_measured |= dict.fromkeys(without_losses([configuration], text_clients(alike_runs[0][1])))
        not_measured |= dict.fromkeys(lacking_on_some_seed([configuration]))
        if not all(attacked(folder) for folder, _ in alike_runs):
            not_measured[ATTACKED] = None
    joined, known_differences = _named_apart(parts)
    configurations, differences = side_by_side(joined, known_differences)
    together = total(joined, same_records=len(records) == 1)
    digest = hashlib.sha256(json.dumps([c.sha256() for c in settings]).encode()).hexdigest()
    report = Report(
        name=" + ".join(dict.fromkeys(c.name for c in settings)),
        command=command,
        config_sha256=digest,
        environment=environment(None),
        seeds=tuple(sorted({s for c in joined for s in c.seeds})),
        configurations=configurations,
        attack_differences=differences,
        notes=(
            "Joined from several folders; SHA-256 of the settings is over all of theirs.",
            *((SAME_INPUTS,) if any(len(alike_runs) > 1 for alike_runs in runs.values()) else ()),
            *(f"{', '.join(names)}: {says}" if len(apis) > 1 else says for says, names in apis.items()),
        ),
        not_measured=tuple(not_measured),
        total_epsilon=together.epsilon,
        composition=(*together.says, *((CEILING_NOT_COUNTED,) if ceiling and together.says else ())),
    )
    publish(report, out)
    return report


def _named_apart(parts: Sequence[_Part]) -> tuple[list[Configuration], list[AttackDifference]]:
    """Return all configurations and differences; names in several folders get the folder's name added."""
    names = Counter(c.name for _, configurations, _ in parts for c in configurations)
    places = Counter(folder.resolve().name for folder, _, _ in parts)
    joined: list[Configuration] = []
    all_differences: list[AttackDifference] = []
    for number, (folder, configurations, differences) in enumerate(parts, start=1):
        name = folder.resolve().name
        place = name if places[name] == 1 else f"{name}, folder {number}"  # a path may name a user
        apart = {n: n if count == 1 else f"{n} ({place})" for n, count in names.items()}
        joined += [replace(c, name=apart[c.name]) for c in configurations]
        all_differences += [
            replace(
                d,
                configuration=apart.get(d.configuration, d.configuration),
                against=apart.get(d.against, d.against),
            )
            for d in differences
        ]
    return joined, all_differences


def _configuration(runs: Sequence[tuple[Path, Config]], out: Path) -> Configuration:
    """Join runs that differ only in their seeds; a repeated seed counts once, but its epsilon twice."""
    config = runs[0][1]
    seeds: dict[int, SeedRun] = {}
    besides: list[Training] = []
    shapes: dict[str, _Shape] = {}
    for folder, run_config in runs:
        finished = [s for s in run_config.seeds if (folder / seed_folder(s) / RESULT).exists()]
        for seed_run in read_seeds(folder, finished, root=out):
            shapes[f"{folder}, seed {seed_run.seed}"] = _shape(seed_run)
            besides += [seeds[seed_run.seed].training(config)] if seed_run.seed in seeds else []
            seeds[seed_run.seed] = seed_run
        for seed in run_config.seeds:
            if seed not in finished:
                besides += unfinished_training(folder, seed, run_config)
    _check_same_shape(shapes)
    if not seeds:
        raise RunFolderError(f"{runs[0][0]}: has no finished seed; resume it first")
    unfinished = sorted({seed for _, run_config in runs for seed in run_config.seeds} - seeds.keys())
    paid = [*(s.training(config) for s in seeds.values()), *besides]
    reports = [Report.load(folder) for folder, _ in runs if (folder / REPORT_JSON).exists()]
    return configuration_of(
        [seeds[s] for s in sorted(seeds)],
        config,
        name=config.name,
        settings=settings_of(config),
        guarantees=guarantees_of(config, paid),
        failed=[f"seed {seed}: did not finish" for seed in unfinished],
        commands=tuple(r.command for r in reports),
        besides=besides,
    )


def _shape(seed_run: SeedRun) -> _Shape:
    """Return by task the number of test records or, of free text, the tokens of each response."""
    answers = {task: len(bits) for task, bits in seed_run.answers("zero_shot").items()}
    return {**answers, **{task: lost.tokens for task, lost in seed_run.losses("zero_shot").items()}}


def _check_same_shape(shapes: Mapping[str, _Shape]) -> None:
    """Raise `RunFolderError` unless all seeds have the same tasks and as many test records of each."""
    (first, shape), *others = shapes.items() or [("", {})]
    for place, other in others:
        differing = [task for task in {**shape, **other} if shape.get(task) != other.get(task)]
        if differing:
            raise RunFolderError(
                f"{place}: has other test records of {', '.join(differing)} than {first} (by their number "
                "or by the tokens of responses), although its settings are the same; runs of one line "
                "must have read the same records; join the others into a report of their own"
            )


def _records_of(config: Config) -> str:
    """Return a text that is equal for settings that train on the same records."""
    clients = [client.model_dump(mode="json") for client in config.data.clients]
    return json.dumps([config.data.root, clients], sort_keys=True)
