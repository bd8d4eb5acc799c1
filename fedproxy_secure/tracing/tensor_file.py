"""Rows of matrices in safetensors files: find them, read them, and replace them.

The form is that of safetensors: eight bytes with the length of the header, a JSON header with dtype, shape
and place of each tensor, then the tensors' bytes, little-endian, row after row.

Guarantees: only bytes of the named rows differ between a file and what `with_rows` yields of it; every
malformed header raises `DataError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.runtime.untrusted import parse_json

KINDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
MOST_HEADER = 2**26
_PIECE = 2**22
_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix in a file: its name, dtype and shape, and the byte at which row 0 begins."""

    file: Path
    name: str
    kind: str
    rows: int
    width: int
    begin: int

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return self.width * KINDS[self.kind]


def matrices(folder: Path) -> Iterator[Matrix]:
    """Yield the floating-point matrices of the safetensors files in a folder.

    Raises `DataError` for a file that is not in that form.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            size = file.stat().st_size
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(_LENGTH), "little")
                if length > min(MOST_HEADER, size):
                    raise ValueError("its header is too long")
                header = parse_json(opened.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
        except (OSError, ValueError) as error:
            raise DataError(f"{quoted(file.name)}: is no safetensors file: {error}") from error
        for name, entry in header.items():
            if (matrix := _matrix(file, name, entry, data=_LENGTH + length, size=size)) is not None:
                yield matrix


def find_matrix(folder: Path, name: str) -> Matrix:
    """Return the matrix of that name. Raises `DataError` unless exactly one file of the folder has it."""
    matching = [matrix for matrix in matrices(folder) if matrix.name == name]
    if len(matching) != 1:
        raise DataError(f"weights: {len(matching)} files have the matrix {quoted(name)}; must be one")
    return matching[0]


def read_rows(matrix: Matrix, rows: tuple[int, ...]) -> bytes:
    """Return the bytes of these rows, one after the other. Raises `DataError` if one is missing."""
    if rows and not 0 <= min(rows) <= max(rows) < matrix.rows:
        raise DataError(f"{quoted(matrix.name)}: has {matrix.rows} rows; must have the row {max(rows)}")
    parts = []
    with matrix.file.open("rb") as opened:
        for row in rows:
            opened.seek(matrix.begin + row * matrix.row_bytes)
            parts.append(opened.read(matrix.row_bytes))
    return b"".join(parts)


def with_rows(matrix: Matrix, rows: Mapping[int, bytes]) -> Iterator[bytes]:
    """Yield the file of a matrix, piece by piece, with these rows replaced.

    Raises `DataError` for rows that do not exist or have another length.
    """
    for row, data in rows.items():
        if not 0 <= row < matrix.rows or len(data) != matrix.row_bytes:
            raise DataError(f"{quoted(matrix.name)}: has no row {row} of {len(data)} bytes")
    with matrix.file.open("rb") as opened:
        for row in sorted(rows):
            yield from _until(opened, matrix.begin + row * matrix.row_bytes)
            yield rows[row]
            opened.seek(len(rows[row]), 1)
        while piece := opened.read(_PIECE):
            yield piece


def as_numbers(raw: bytes, kind: str, width: int) -> np.ndarray:
    """Return rows as float64 [n, width], exactly."""
    if kind == "BF16":
        words = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        numbers = words.view(np.float32).astype(np.float64)
    else:
        numbers = np.frombuffer(raw, dtype=f"<f{KINDS[kind]}").astype(np.float64)
    return numbers.reshape(-1, width)


def as_bytes(numbers: np.ndarray, kind: str) -> bytes:
    """Return numbers in that dtype, rounded to the nearest; ties to even."""
    if kind != "BF16":
        return numbers.astype(f"<f{KINDS[kind]}").tobytes()
    words = np.ascontiguousarray(numbers, dtype="<f4").view("<u4").astype(np.uint64)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _until(opened: Any, end: int) -> Iterator[bytes]:
    while (remaining := end - opened.tell()) > 0:
        piece = opened.read(min(remaining, _PIECE))
        if not piece:
            raise DataError("weights: end before their last row")
        yield piece


def _matrix(file: Path, name: str, entry: object, *, data: int, size: int) -> Matrix | None:
    """Return a header's tensor if it is a floating-point matrix. Raises `DataError` if it is malformed."""
    if not isinstance(entry, dict) or entry.get("dtype") not in KINDS:
        return None  # metadata, or numbers that are no weights
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise DataError(f"{quoted(file.name)}: {quoted(name)} has no shape")
    if len(shape) != 2:
        return None
    rows, width = shape
    count = rows * width * KINDS[entry["dtype"]]
    if not (isinstance(place, list) and len(place) == 2 and all(type(n) is int for n in place)):
        raise DataError(f"{quoted(file.name)}: {quoted(name)} has no place")
    begin, end = place
    if not (begin >= 0 and end - begin == count and data + end <= size):
        raise DataError(f"{quoted(file.name)}: {quoted(name)} lies outside of the file, or is cut")
    return Matrix(file=file, name=name, kind=entry["dtype"], rows=rows, width=width, begin=data + begin)
