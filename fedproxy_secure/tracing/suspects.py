"""Trace a leaked model to the clients whose copies it was made from.

The input is the marked rows of the model's input embedding, minus the numbers that all clients agreed on.
Training that moves rows which no text reads moves all of them alike (a tied output head pushes them in one
direction), so the mean over rows is subtracted. The remainder, divided by the amplitude of a bit and
clipped at 1, is the answer at a position. Numbers that neither a bit nor training explains, such as zeros
that somebody put there, are ignored: their answer is 0, and they do not count in the mean.

Guarantees: those of `tardos.Innocence`, for every model: with probability 1 - `error` no innocent client is
accused, if the code was drawn independently of the model. Not guaranteed: that anybody is accused. A client
that removes the marked rows, or puts the agreed numbers back, is not traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError
from fedproxy_secure.tracing.copies import Code, amplitudes, code_of
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.tardos import Innocence, scores
from fedproxy_secure.tracing.tensor_file import Matrix, as_numbers, matrices, read_rows

ERROR = 1e-6  # default probability of accusing any innocent client
LEAST_KEPT = 1 / 3  # share of a column's numbers that a bit and a hundred steps of training can explain
_FAR = 3.0  # amplitudes: neither a bit nor training moves a number further from those of the other rows


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A client's score; `chance` bounds the probability that an innocent client scores as high."""

    client: str
    score: float
    chance: float

    def accused(self, threshold: float) -> bool:
        """Whether the score reaches the threshold."""
        return self.score >= threshold


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The tracing result for one model: all clients by score, and the threshold for accusing at `error`.

    `strength`: the mean size of the answers, from 0 (no mark remains) to about 1.
    """

    suspects: tuple[Suspect, ...]
    threshold: float
    error: float
    positions: int
    strength: float

    @property
    def accused(self) -> tuple[str, ...]:
        """The clients whose score reaches the threshold; none: the model cannot be traced."""
        return tuple(s.client for s in self.suspects if s.accused(self.threshold))


def trace_rows(
    found: np.ndarray, marks: Marks, key: Secret, clients: Sequence[str], *, error: float = ERROR
) -> Trace:
    """Judge every client by the marked rows of a leaked model, float64 [rows, width]."""
    code = code_of(key, marks)
    answers = answers_in(found, marks, code)
    return judge(answers, code, code.words(clients), clients, error=error)


def judge(
    answers: np.ndarray, code: Code, words: np.ndarray, clients: Sequence[str], *, error: float
) -> Trace:
    """Judge clients with these codewords, bool [n, m], by answers, float64 [m] from -1 to 1."""
    innocence = Innocence.of(answers, code.p)
    by_client = scores(words, answers, code.p)
    suspects = [
        Suspect(client=client, score=float(score), chance=innocence.chance(float(score)))
        for client, score in zip(clients, by_client, strict=True)
    ]
    return Trace(
        suspects=tuple(sorted(suspects, key=lambda s: -s.score)),
        threshold=innocence.threshold(clients=len(clients), error=error),
        error=error,
        positions=len(code.p),
        strength=float(np.mean(np.abs(answers))),
    )


def answers_in(found: np.ndarray, marks: Marks, code: Code) -> np.ndarray:
    """Return the answer of marked rows, float64 [rows, width], at each position: [m], from -1 to 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (found - marks.agreed_numbers) / amplitudes(marks)
        kept = np.isfinite(moved) & (np.abs(moved) <= _FAR)
        moved = np.where(np.isfinite(moved), moved, 0.0)
        # long training may move a whole column further: such a column is compared with its own median
        kept |= (kept.mean(axis=0) < LEAST_KEPT) & (np.abs(moved - np.median(moved, axis=0)) <= _FAR)
        common = np.sum(moved, axis=0, where=kept) / np.maximum(kept.sum(axis=0), 1)
        answers = np.where(kept, np.clip(moved - common, -1.0, 1.0), 0.0)
    return np.asarray(answers.ravel()[code.places])


def rows_of(model: Path, marks: Marks) -> np.ndarray:
    """Return the marked rows of the model in a folder, float64 [rows, width].

    The matrix may have another dtype, more rows, and a longer name that ends like the marks' own.

    Raises `DataError` for a folder without one such matrix.
    """
    if not model.is_dir():
        raise DataError(f"{model}: must be the folder of a model saved as safetensors")
    matching = [m for m in matrices(model) if _matches(m, marks)]
    if len(matching) != 1:
        raise DataError(
            f"{model}: has {len(matching)} matrices like {marks.tensor}, {marks.width} wide, with the "
            "marked rows; must have one; a model with other embeddings cannot be traced"
        )
    return as_numbers(read_rows(matching[0], marks.rows), matching[0].kind, matching[0].width)


def _matches(matrix: Matrix, marks: Marks) -> bool:
    named = matrix.name == marks.tensor or matrix.name.endswith(f".{marks.tensor}")
    return named and matrix.width == marks.width and matrix.rows > max(marks.rows)
