"""What a model answered right and what a method reached; answers as the strings of 0 and 1 in records."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedproxy_secure.config import Config
from fedproxy_secure.data.templates import ONE_CHOICE
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import bits_from_text, bits_to_text

NORM = "_norm"  # ends the key under which a record has a model's answers by acc_norm
# templates of question-answering tasks, of which users of lm-eval read acc_norm
READ_BY_NORM = ("openbookqa", "arc_easy", "arc_challenge", "commonsenseqa", "multiple_choice")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Which of one task's test records a model answered right, in the records' order.

    Args:
        correct: by lm-eval's `acc`: the most likely choice is the right one.
        correct_norm: by `acc_norm`: the same with log-likelihoods per character of the choice.

    Raises `ValueError` unless both have one value for each record.
    """

    correct: tuple[bool, ...]
    correct_norm: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.correct) != len(self.correct_norm):
            raise ValueError(
                f"answers by acc and acc_norm: {len(self.correct)} and {len(self.correct_norm)} records; "
                "must be equally many"
            )

    @property
    def value(self) -> float:
        """Share of right answers by `acc`, [0, 1]."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method reached with one seed.

    Args:
        fused: accuracy per task of the model the owner ends with.
        tuned: of the small model the clients hold; None where there is none.
        upload_bytes: payload one client sends in one round; 0 where nothing is sent.
        scale: the factor of the lifted difference that a search on public text found; None where none was
            asked for, or nothing is lifted.

    Numbers of numpy become Python's, which records can hold. Raises `DataError` in one line for anything
    else than what is said above.
    """

    fused: Mapping[str, Accuracy]
    tuned: Mapping[str, Accuracy] | None = None
    upload_bytes: int = 0
    scale: float | None = None

    def __post_init__(self) -> None:
        for name, by_task in (("fused", self.fused), ("tuned", self.tuned or {})):
            if not (
                isinstance(by_task, Mapping) and all(isinstance(a, Accuracy) for a in by_task.values())
            ):
                raise DataError(f"result of a method: {name}={by_task!r:.80}: must be Accuracy by task")
        try:
            object.__setattr__(self, "upload_bytes", operator.index(self.upload_bytes))
            if self.scale is not None:
                object.__setattr__(self, "scale", float(self.scale))
                if not math.isfinite(self.scale):
                    raise ValueError("JSON has no such number")
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"result of a method: upload_bytes={self.upload_bytes!r:.80}, scale={self.scale!r:.80}: "
                "must be a whole number of bytes, and a finite number or None"
            ) from None


def to_texts(model: str, accuracies: Mapping[str, Accuracy]) -> dict[str, dict[str, str]]:
    """Return a model's part of a record: by task a string of 0 and 1, under `model` and `model_norm`."""
    return {
        model: {task: bits_to_text(a.correct) for task, a in accuracies.items()},
        model + NORM: {task: bits_to_text(a.correct_norm) for task, a in accuracies.items()},
    }


def from_texts(model: str, record: Mapping[str, Any]) -> dict[str, Accuracy]:
    """Read what `to_texts` wrote.

    Raises `ValueError` for other characters, `KeyError` for a record without the model or one of its tasks.
    """
    return {
        task: Accuracy(
            correct=bits_from_text(text), correct_norm=bits_from_text(record[model + NORM][task])
        )
        for task, text in record[model].items()
    }


def average(accuracies: Mapping[str, Accuracy]) -> float:
    """Return the mean of the tasks' accuracies by `acc`, each task counting the same."""
    return float(np.mean([a.value for a in accuracies.values()]))


def cut_notes(truncated: int, config: Config) -> tuple[str, ...]:
    """Return what a report says of prompts that were cut: nothing if none was, no number under privacy."""
    if config.privacy.unit != "none":
        return (f"Prompts above data.max_tokens={config.data.max_tokens} were cut; the count is private.",)
    if not truncated:
        return ()
    return (f"{truncated} prompts were cut to data.max_tokens={config.data.max_tokens}.",)


def judged_clients(config: Config) -> tuple[str, ...]:
    """Return the names of the clients whose tasks have wrong answers, too; all clients if none has such."""
    clients = config.data.clients
    return tuple(c.name for c in clients if c.task not in ONE_CHOICE) or tuple(c.name for c in clients)


def choice_notes(config: Config) -> tuple[str, ...]:
    """Return what a report says of tasks whose records have one choice; () where there are none."""
    open_ended = [c.name for c in config.data.clients if c.task in ONE_CHOICE]
    if not open_ended:
        return ()
    if len(open_ended) == len(config.data.clients):
        return (
            "The accuracies here are meaningless: every record has only one choice, so any model is right. "
            "Read the perplexities instead, or add a task with choices.",
        )
    names = ", ".join(open_ended)
    return (f"Trained on, but left out of all accuracies: {names} (only one choice, so never wrong).",)
