"""What a model answered right and what a method reached; answers as the strings of 0 and 1 in records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Which of one task's test records a model answered right, in the records' order."""

    correct: tuple[bool, ...]

    @property
    def value(self) -> float:
        """Share of right answers, [0, 1]."""
        return sum(self.correct) / len(self.correct)

    def to_text(self) -> str:
        """Return one character for each record, `1` if it was right.

        >>> Accuracy(correct=(True, False)).to_text()
        '10'
        """
        return "".join("01"[int(bit)] for bit in self.correct)

    @classmethod
    def from_text(cls, text: str) -> Accuracy:
        """Read what `to_text` wrote. Raises `ValueError` for other characters."""
        if set(text) - {"0", "1"}:
            raise ValueError(f"answers {text[:20]!r}: must be of 0 and 1")
        return cls(correct=tuple(character == "1" for character in text))


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method reached with one seed.

    Args:
        fused: accuracy per task of the model the owner ends with.
        tuned: of the small model the clients hold; None where there is none.
        upload_bytes: payload one client sends in one round; 0 where nothing is sent.
    """

    fused: Mapping[str, Accuracy]
    tuned: Mapping[str, Accuracy] | None = None
    upload_bytes: int = 0


def average(accuracies: Mapping[str, Accuracy]) -> float:
    """Return the mean of the tasks' accuracies, each task counting the same."""
    return float(np.mean([a.value for a in accuracies.values()]))


def to_texts(accuracies: Mapping[str, Accuracy]) -> dict[str, str]:
    """Return, by task, a string of 0 and 1."""
    return {task: a.to_text() for task, a in accuracies.items()}


def from_texts(texts: Mapping[str, str]) -> dict[str, Accuracy]:
    """Read what `to_texts` wrote. Raises `ValueError` for other characters."""
    return {task: Accuracy.from_text(text) for task, text in texts.items()}
