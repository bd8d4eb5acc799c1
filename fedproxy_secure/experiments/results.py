"""Scores of a model, results of a method, and how records store them.

Answers are stored as strings of 0 and 1, losses as nats and tokens of each test record.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedproxy_secure.config import Config
from fedproxy_secure.data.templates import ONE_CHOICE
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import answers_in, bits_to_text
from fedproxy_secure.evidence.losses import LOSS, TextLoss, losses_in

NORM = "_norm"  # suffix of the key of a model's answers by acc_norm
# templates of question-answering tasks, for which users of lm-eval read acc_norm
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


Score: TypeAlias = Accuracy | TextLoss  # of one task; a loss if records have one choice


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The result of one method with one seed.

    Args:
        fused: score per task of the owner's final model.
        tuned: score per task of the small model that clients hold; None if there is none.
        upload_bytes: payload that one client sends in one round; 0 if it sends nothing.
        scale: the factor of the lifted difference that a search on public text found; None if the settings
            ask for no search, or nothing is lifted.
        aligned_windows: how many windows of public text the fused LLM was aligned on.

    Numbers of numpy become Python's, which records can hold. Raises `DataError` in one line for values of
    other types.
    """

    fused: Mapping[str, Score]
    tuned: Mapping[str, Score] | None = None
    upload_bytes: int = 0
    scale: float | None = None
    aligned_windows: int = 0

    def __post_init__(self) -> None:
        for name, by_task in (("fused", self.fused), ("tuned", self.tuned or {})):
            if not (
                isinstance(by_task, Mapping)
                and all(isinstance(score, Accuracy | TextLoss) for score in by_task.values())
            ):
                raise DataError(
                    f"result of a method: {name}={by_task!r:.80}: must be Accuracy or TextLoss by task"
                )
        try:
            for name in ("upload_bytes", "aligned_windows"):
                object.__setattr__(self, name, operator.index(getattr(self, name)))
            if self.scale is not None:
                object.__setattr__(self, "scale", float(self.scale))
                if not math.isfinite(self.scale):
                    raise ValueError("JSON has no such number")
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"result of a method: upload_bytes={self.upload_bytes!r:.80}, scale={self.scale!r:.80}, "
                f"aligned_windows={self.aligned_windows!r:.80}: must be a whole number of bytes, a finite "
                "number or None, and a whole number of windows"
            ) from None


def accuracies_of(scores: Mapping[str, Score]) -> dict[str, Accuracy]:
    """Return the scores of the tasks whose records have several choices."""
    return {task: score for task, score in scores.items() if isinstance(score, Accuracy)}


def losses_of(scores: Mapping[str, Score]) -> dict[str, TextLoss]:
    """Return the scores of the tasks of free text."""
    return {task: score for task, score in scores.items() if isinstance(score, TextLoss)}


def to_texts(model: str, scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Return a model's part of a record.

    It has a string of 0 and 1 for each task, under `model` and `model_norm`; with free text also nats and
    tokens by task, under `model_loss`.
    """
    accuracies, losses = accuracies_of(scores), losses_of(scores)
    return {
        model: {task: bits_to_text(a.correct) for task, a in accuracies.items()},
        model + NORM: {task: bits_to_text(a.correct_norm) for task, a in accuracies.items()},
        **({model + LOSS: {task: loss.to_json() for task, loss in losses.items()}} if losses else {}),
    }


def from_texts(model: str, record: Mapping[str, Any]) -> dict[str, Score]:
    """Read what `to_texts` wrote.

    Raises `ValueError`, `TypeError` or `AttributeError` for anything else, `KeyError` for a record without
    the model or one of its tasks.
    """
    right, right_norm = answers_in(record, model), answers_in(record, model + NORM)
    accuracies = {
        task: Accuracy(correct=tuple(bits), correct_norm=tuple(right_norm[task]))
        for task, bits in right.items()
    }
    return {**accuracies, **losses_in(record, model)}


def average(scores: Mapping[str, Score]) -> float:
    """Return the mean of the tasks' accuracies by `acc`, with equal weights and without free text.

    Raises `DataError` if all tasks are free text.
    """
    shares = [a.value for a in accuracies_of(scores).values()]
    if not shares:
        raise DataError("average: all tasks are free text, which has no accuracy; read their losses")
    return float(np.mean(shares))


def cut_notes(truncated: int, config: Config) -> tuple[str, ...]:
    """Return a report's note on prompts that were cut; () if none was, without a number under privacy."""
    if config.privacy.unit != "none":
        return (f"Prompts above data.max_tokens={config.data.max_tokens} were cut; the count is private.",)
    if not truncated:
        return ()
    return (f"{truncated} prompts were cut to data.max_tokens={config.data.max_tokens}.",)


def healing_note(
    proxy: str, healed: Sequence[Mapping[str, Any]], *, before: float, after: float, windows: str = ""
) -> str:
    """Return a sentence on the cost of healing and the proxy's KL, means over seeds, without the full stop.

    Args:
        proxy: the subject of the sentence.
        healed: the record of healing, for each seed.
        before, after: the mean KL of the LLM and the proxy, nats per token.
        windows: on which windows that KL was measured, if not those of the report's other numbers.
    """
    tokens, seconds = (sum(h[key] for h in healed) / len(healed) for key in ("tokens", "seconds"))
    return (
        f"{proxy} was healed on {tokens:,.0f} tokens of public text, in {seconds:.0f} s: {windows}KL of "
        f"the LLM and the proxy {before:.2f} before, {after:.2f} nats per token after"
    )


def text_clients(config: Config) -> tuple[str, ...]:
    """Return the names of the clients whose records have one choice, so that their loss is measured."""
    return tuple(c.name for c in config.data.clients if c.task in ONE_CHOICE)


def choice_notes(config: Config) -> tuple[str, ...]:
    """Return a report's note on tasks whose records have one choice; () if there are none."""
    names = text_clients(config)
    if not names:
        return ()
    whose = "all clients" if len(names) == len(config.data.clients) else ", ".join(names)
    return (
        f"Left out of all accuracies: {whose} (only one choice, so never wrong). Read their loss on test "
        "records: nats per token of the response and its end token; exp of it is the perplexity.",
    )
