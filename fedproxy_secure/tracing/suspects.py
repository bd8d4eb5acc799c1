"""From a model that was found to the clients whose copy it was made from.

What is read: the marked rows of its input embedding, minus what all clients agreed on. Training that moves
rows which no text reads moves all of them alike (a tied output head pushes them in one direction), so the
mean over rows is taken off. What is left, over the amplitude of a bit and cut off at 1, is the answer at a
position. Numbers that neither a bit nor training explains, as when somebody has put zeros there, say
nothing: their answer is 0, and they do not count in the mean.

Guarantees: those of `tardos.Innocence`, whatever model is given: with probability 1 - `error` no client is
accused who had no part in it, if the code was drawn independently of the model. Not guaranteed: that
anybody is accused. Who takes the marked rows out, or puts the agreed numbers back, is not traced.
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

ERROR = 1e-6  # of accusing any innocent client, by default
LEAST_KEPT = 1 / 3  # of a column's numbers, are where a bit and a hundred steps of training can put them
_FAR = 3.0  # amplitudes: further from the other rows' numbers are neither a bit nor how training moves


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

    `strength`: the mean size of the answers, from 0 (nothing of any mark is left) to about 1.
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
    """Judge every client by the marked rows of a model that was found, float64 [rows, width]."""
    code = code_of(key, marks)
    answers = answers_in(found, marks, code)
    return judge(answers, code, code.words(clients), clients, error=error)


def judge(
    answers: np.ndarray, code: Code, words: np.ndarray, clients: Sequence[str], *, error: float
) -> Trace:
    """Judge clients with these codewords, bool [n, m], by answers, float64 [m] from -1 to 1."""
    innocence = Innocence.of(answers, code.p)
    found = scores(words, answers, code.p)
    suspects = [
        Suspect(client=client, score=float(score), chance=innocence.chance(float(score)))
        for client, score in zip(clients, found, strict=True)
    ]
    return Trace(
        suspects=tuple(sorted(suspects, key=lambda s: -s.score)),
        threshold=innocence.threshold(clients=len(clients), error=error),
        error=error,
        positions=len(code.p),
        strength=float(np.mean(np.abs(answers))),
    )


def answers_in(found: np.ndarray, marks: Marks, code: Code) -> np.ndarray:
    """Return what marked rows, float64 [rows, width], say at each position: [m], from -1 to 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (found - marks.agreed_numbers) / amplitudes(marks)
        kept = np.isfinite(moved) & (np.abs(moved) <= _FAR)
        moved = np.where(np.isfinite(moved), moved, 0.0)
        # long training may move a whole column further than that: there, its other numbers are the measure
        kept |= (kept.mean(axis=0) < LEAST_KEPT) & (np.abs(moved - np.median(moved, axis=0)) <= _FAR)
        common = np.sum(moved, axis=0, where=kept) / np.maximum(kept.sum(axis=0), 1)
        answers = np.where(kept, np.clip(moved - common, -1.0, 1.0), 0.0)
    return np.asarray(answers.ravel()[code.places])


def rows_of(model: Path, marks: Marks) -> np.ndarray:
    """Return the rows that marks name from the model in a folder, float64 [rows, width].

    The matrix may have another dtype, more rows, and a longer name that ends like the marks' own.

    Raises `DataError` for a folder without one such matrix.
    """
    if not model.is_dir():
        raise DataError(f"{model}: must be the folder of a model saved as safetensors")
    found = [m for m in matrices(model) if _alike(m, marks)]
    if len(found) != 1:
        raise DataError(
            f"{model}: has {len(found)} matrices like {marks.tensor}, {marks.width} wide, with the marked "
            "rows; must have one; a model with other embeddings cannot be traced"
        )
    return as_numbers(read_rows(found[0], marks.rows), found[0].kind, found[0].width)


def _alike(matrix: Matrix, marks: Marks) -> bool:
    named = matrix.name == marks.tensor or matrix.name.endswith(f".{marks.tensor}")
    return named and matrix.width == marks.width and matrix.rows > max(marks.rows)
