"""The scale of each task of a comparison: ceiling, LLM before tuning, and a constant answer.

constant_answers.json   which test records a constant answer gets right, as strings of 0 and 1

A mean over tasks hides that on some of them no model learns anything. A task counts if the ceiling lies
above the LLM before tuning and above the constant answer, beyond both intervals. The constant answer is the
most frequent answer of the training records, given to every test record. Computing it takes the records,
which a report does not read, so it is written to disk when cells run. Under differential privacy it is not
written, because it would reveal the most frequent answer without noise. Free text has no wrong answer, and
no such scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.data.records import Task, records_sha256
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.answers import (
    Bits,
    bits_from_text,
    bits_to_text,
    over_seeds_or_records,
    share_right,
)
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.experiments.results import text_clients
from fedproxy_secure.experiments.sweeps.method_cells import CellResult
from fedproxy_secure.experiments.sweeps.method_rows import Ends, ends_of
from fedproxy_secure.report.report import TaskScale
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.files.names import CONSTANT_ANSWERS
from fedproxy_secure.runtime.untrusted import read_json


def write_constant(config: Config, out: Path, tasks: Sequence[Task]) -> None:
    """Write which test records a constant answer gets right, unless differential privacy is on.

    Tasks of free text are left out; without other tasks nothing is written.

    Raises `RunFolderError` if the file cannot be written.
    """
    if config.privacy.unit != "none":
        return
    texts = text_clients(config)
    constant = constant_answers(task for task in tasks if task.name not in texts)
    if constant:
        right = {task: bits_to_text(tuple(bits)) for task, bits in constant.items()}
        write_bytes(out / CONSTANT_ANSWERS, json_bytes({"records": records_sha256(tasks), "right": right}))


def constant_answers(tasks: Iterable[Task]) -> Bits:
    """Return, by task, which test records the most frequent answer of its training records gets right."""
    return {task.name: task.constant_right() for task in tasks}


def read_constant(out: Path, results: Sequence[CellResult]) -> Bits | None:
    """Read which records a constant answer gets right; None without a file of the cells' records.

    Raises `RunFolderError` if the file is damaged.
    """
    path, made_with = out / CONSTANT_ANSWERS, {r.origin.records for r in results if r.origin is not None}
    if not path.exists():
        return None
    try:
        raw = read_json(path)
        right = {task: bits_from_text(text) for task, text in raw["right"].items()}
        if not made_with <= {raw["records"]}:
            return None
        for task, answers in ((t, a) for r in results for t, a in r.fused.items() if t in right):
            if len(answers) != len(right[task]):
                raise ValueError(f"{task}: {len(right[task])} records, cells have {len(answers)}")
        return right
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path}: is damaged: {error}; delete it and resume") from error


def task_scales(results: Sequence[CellResult], constant: Bits | None) -> list[TaskScale]:
    """Return the scale of each task, over the seeds that have both of its ends; [] without such seeds.

    `constant`: by task, which test records the constant answer gets right. None, or a task that it lacks,
    means unknown: such tasks get no scale.
    """
    ends = ends_of(results)
    seeds = [s for s in ends.floor if s in ends.ceiling]
    if constant is None or not seeds:
        return []
    tasks = ends.floor[seeds[0]].fused
    return [_scale(task, constant[task], ends, seeds) for task in tasks if task in constant]


def scale_notes(config: Config, results: Sequence[CellResult], constant: Bits | None) -> list[str]:
    """Return why the report lacks the tasks' scales, if only the constant answer is missing."""
    ends = ends_of(results)
    if constant is not None or not any(all(pair) for pair in ends.scale(lambda r: r.fused).values()):
        return []  # without both ends, or with free text alone, there is no scale
    note = "Not told: on which tasks the ceiling is above a constant answer, and the gap closed over these."
    if config.privacy.unit != "none":
        return [f"{note} The most frequent answer of training records is private."]
    return [f"{note} The folder has no {CONSTANT_ANSWERS} of these records; `compare --resume` writes it."]


def tasks_that_count(scales: Iterable[TaskScale]) -> list[str]:
    """Return the names of the tasks that count."""
    return [scale.task for scale in scales if scale.counts]


def _scale(task: str, constant: Sequence[bool], ends: Ends, seeds: Sequence[int]) -> TaskScale:
    floor = {s: {task: ends.floor[s].fused[task]} for s in seeds}
    ceiling = {s: {task: ends.ceiling[s].fused[task]} for s in seeds}
    always: dict[int, Bits] = {s: {task: constant} for s in seeds}

    def above(baseline: Mapping[int, Bits], name: str) -> Estimate:
        pairs = {s: (ceiling[s], baseline[s]) for s in seeds}
        return over_seeds_or_records(pairs, operator.sub, f"ceiling minus {name} on {task}")

    above_constant, above_zero_shot = above(always, "constant answer"), above(floor, "zero-shot")
    return TaskScale(
        task=task,
        constant=share_right(always, f"accuracy of the most frequent answer on {task}"),
        zero_shot=share_right(floor, f"zero-shot accuracy on {task}"),
        ceiling=share_right(ceiling, f"accuracy of the ceiling on {task}"),
        above_constant=above_constant,
        above_zero_shot=above_zero_shot,
        counts=all(e.above(0) for e in (above_constant, above_zero_shot)),
    )
