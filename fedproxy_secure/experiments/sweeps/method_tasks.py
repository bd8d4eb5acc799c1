"""What each task of a comparison can show: its ceiling beside the LLM before tuning and a constant answer.

constant_answers.json   which test records a constant answer gets right, as strings of 0 and 1

A mean over tasks hides that on some of them no model learns anything. A task counts where the
ceiling lies above the LLM before tuning and above the constant answer, beyond both intervals. The constant
answer is the one that training records have most often, given to every test record. It needs the records,
which a report does not, so whoever runs cells writes it down. Under differential privacy nobody does: it
says without noise what is most frequent. Free text has no wrong answer, and no such scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.data.records import Task
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
from fedproxy_secure.experiments.sweeps.method_cells import CellResult, records_sha256
from fedproxy_secure.experiments.sweeps.method_rows import Ends, ends_of
from fedproxy_secure.report.report import TaskScale
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.files.names import CONSTANT_ANSWERS
from fedproxy_secure.runtime.untrusted import read_json


def write_constant(config: Config, out: Path, tasks: Sequence[Task]) -> None:
    """Write what a constant answer gets right, unless the settings ask for differential privacy.

    Tasks of free text are left out; where there is no other nothing is written.

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
    """Read what a constant answer gets right; None if nobody wrote it, or of other records than the cells'.

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
    """Return what each task can show, by the seeds that have both ends of the scale; [] without such.

    `constant`: by task, which test records the constant answer gets right; None, or tasks that it lacks:
    not known.
    """
    ends = ends_of(results)
    seeds = [s for s in ends.floor if s in ends.ceiling]
    if constant is None or not seeds:
        return []
    judged = ends.floor[seeds[0]].fused
    return [_scale(task, constant[task], ends, seeds) for task in judged if task in constant]


def scale_notes(config: Config, results: Sequence[CellResult], constant: Bits | None) -> list[str]:
    """Return why the report does not say what tasks can show, where it could if that were known."""
    ends = ends_of(results)
    if constant is not None or not any(all(both) for both in ends.scale(lambda r: r.fused).values()):
        return []  # without both ends, and of free text alone, nobody expects it
    said = "Not told: on which tasks the ceiling is above a constant answer, and the gap closed over these."
    if config.privacy.unit != "none":
        return [f"{said} The most frequent answer of training records is private."]
    return [f"{said} The folder has no {CONSTANT_ANSWERS} of these records; `compare --resume` writes it."]


def tasks_that_count(scales: Iterable[TaskScale]) -> list[str]:
    """Return the names of the tasks that count."""
    return [scale.task for scale in scales if scale.counts]


def _scale(task: str, constant: Sequence[bool], ends: Ends, seeds: Sequence[int]) -> TaskScale:
    floor = {s: {task: ends.floor[s].fused[task]} for s in seeds}
    ceiling = {s: {task: ends.ceiling[s].fused[task]} for s in seeds}
    always: dict[int, Bits] = {s: {task: constant} for s in seeds}

    def above(other: Mapping[int, Bits], what: str) -> Estimate:
        pairs = {s: (ceiling[s], other[s]) for s in seeds}
        return over_seeds_or_records(pairs, operator.sub, f"ceiling minus {what} on {task}")

    above_constant, above_zero_shot = above(always, "constant answer"), above(floor, "zero-shot")
    return TaskScale(
        task=task,
        constant=share_right(always, f"accuracy of the most frequent answer on {task}"),
        zero_shot=share_right(floor, f"zero-shot accuracy on {task}"),
        ceiling=share_right(ceiling, f"accuracy of the ceiling on {task}"),
        above_constant=above_constant,
        above_zero_shot=above_zero_shot,
        counts=all(e.low is not None and e.low > 0 for e in (above_constant, above_zero_shot)),
    )
