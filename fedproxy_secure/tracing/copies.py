"""The owner's side: choose the rows to mark, draw the code, and make each client's copy of the proxy.

One position of the code is one number of a marked row. A client's bit there moves it up or down by
`AMPLITUDE` times the row's root mean square; then the row is brought back to its norm. The key draws which
numbers are positions, each position's probability, and each client's bits.

Guarantees: a copy differs from the proxy in the rows that the marks name and nowhere else; the same key,
proxy and client give the same copy. Measured, not proved: that marks do no harm (docs/tracing.md).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.tracing.key import uniforms
from fedproxy_secure.tracing.marks import LEAST_ROWS, MOST_BYTES, MOST_ROWS, Marks
from fedproxy_secure.tracing.tardos import codeword, probabilities
from fedproxy_secure.tracing.tensor_file import (
    KINDS,
    Matrix,
    as_bytes,
    find_matrix,
    matrices,
    read_rows,
    with_rows,
)
from fedproxy_secure.tracing.unused import unused_rows

AMPLITUDE = 0.3  # of a row's root mean square
LEAST_POSITIONS, MOST_POSITIONS = 128, 2048
# how the names of input embeddings end in the files of transformers' models
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that a key draws for marks: `places`, int64 [m] into the rows' numbers; `p`, float64 [m]."""

    key: Secret
    places: np.ndarray
    p: np.ndarray

    def words(self, clients: Sequence[str]) -> np.ndarray:
        """Return the codewords of these clients, bool [n, m]."""
        drawn = [uniforms(self.key, f"client {name}", len(self.p)) for name in clients]
        return np.array([codeword(uniform, self.p) for uniform in drawn])


def make_marks(proxy: Path) -> Marks:
    """Return the marks for the proxy in a folder; the same ones for the same files.

    Raises `ConfigError` for a model with too few rows that no text reads, `DataError` for damaged files.
    """
    matrix = _embedding(proxy)
    rows = unused_rows(proxy, matrix.rows)
    count = min(MOST_ROWS, max(LEAST_ROWS, MOST_BYTES // matrix.row_bytes))
    chosen = tuple(sorted(rows[:count]))
    if len(chosen) < LEAST_ROWS or len(chosen) * matrix.width < LEAST_POSITIONS:
        raise ConfigError(
            f"compress.trace=true: the embedding has {len(chosen)} rows of unused tokens, {matrix.width} "
            f"numbers wide; must be >= {LEAST_ROWS} rows and {LEAST_POSITIONS} numbers in total; leave "
            "tracing off, or add unused tokens to the LLM"
        )
    agreed = base64.b64encode(read_rows(matrix, chosen)).decode()
    try:
        return Marks(
            tensor=matrix.name,
            rows=chosen,
            width=matrix.width,
            kind=matrix.kind,  # type: ignore[arg-type]  # `Matrix` has these alone
            agreed=agreed,
        )
    except ValueError:
        raise ConfigError(
            "compress.trace=true: this LLM's embeddings of unused tokens are zero or not finite, so they "
            "cannot carry marks; leave tracing off"
        ) from None


def code_of(key: Secret, marks: Marks) -> Code:
    """Return the code that a key draws for these marks."""
    numbers = len(marks.rows) * marks.width
    count = min(numbers, MOST_POSITIONS)
    places = np.argsort(uniforms(key, "places", numbers), kind="stable")[:count]
    return Code(key=key, places=places, p=probabilities(uniforms(key, "probabilities", count)))


def marked_numbers(marks: Marks, code: Code, word: np.ndarray) -> np.ndarray:
    """Return the marked rows that carry a codeword, bool [m]: float64 [rows, width], before rounding."""
    rows = marks.agreed_numbers
    signs = np.zeros(rows.size)
    signs[code.places] = np.where(word, 1.0, -1.0)
    changed = rows + amplitudes(marks) * signs.reshape(rows.shape)
    norms = [np.linalg.norm(r, axis=1, keepdims=True) for r in (rows, changed)]
    return np.asarray(changed * (norms[0] / norms[1]))


def amplitudes(marks: Marks) -> np.ndarray:
    """Return how far a bit moves a number of each row, float64 [rows, 1]."""
    rms = np.sqrt(np.mean(np.square(marks.agreed_numbers), axis=1, keepdims=True))
    return np.asarray(AMPLITUDE * rms)


def own_bytes(proxy: Path, marks: Marks, key: Secret, client: str) -> tuple[str, dict[int, bytes]]:
    """Return the bytes of a client's copy that differ from the proxy in a folder.

    They are in one file. Returns the file's name, and the bytes by the offset at which they begin.
    """
    matrix = find_matrix(proxy, marks.tensor)
    rows = _own_rows(marks, key, client)
    return matrix.file.name, {matrix.begin + row * matrix.row_bytes: raw for row, raw in rows.items()}


def copy_of(proxy: Path, marks: Marks, key: Secret, client: str) -> tuple[str, bytes]:
    """Return the one file in which a client's copy differs from the proxy in a folder: name and content."""
    matrix = find_matrix(proxy, marks.tensor)
    return matrix.file.name, b"".join(with_rows(matrix, _own_rows(marks, key, client)))


def _own_rows(marks: Marks, key: Secret, client: str) -> dict[int, bytes]:
    """Return the bytes of a client's marked rows, by row."""
    code = code_of(key, marks)
    (word,) = code.words([client])
    raw = as_bytes(marked_numbers(marks, code, word), marks.kind)
    size = marks.width * KINDS[marks.kind]
    return {row: raw[i * size : (i + 1) * size] for i, row in enumerate(marks.rows)}


def _embedding(proxy: Path) -> Matrix:
    embeddings = [matrix for matrix in matrices(proxy) if matrix.name.endswith(_EMBEDDINGS)]
    if len(embeddings) != 1:
        raise ConfigError(
            f"compress.trace=true: {len(embeddings)} matrices of this LLM are called "
            f"{', '.join(_EMBEDDINGS)}; must be one; leave tracing off"
        )
    return embeddings[0]
