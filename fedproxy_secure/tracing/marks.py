"""The marks: where clients' copies of a proxy may differ, and the numbers that all clients use there.

Guarantees: the marks name rows of the input embedding, and the numbers that all clients agree on for these
rows. A client puts the agreed numbers back before it hashes or loads its copy, so it trains the same model,
bit for bit, as every other client, whatever the owner put into the rows of its copy. Not guaranteed: that a
leaked copy can be traced after its rows were put back in the same way: every client knows the rows.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import model_validator

from fedproxy_secure.config import Section
from fedproxy_secure.errors import DataError
from fedproxy_secure.tracing.tensor_file import KINDS, Matrix, as_numbers, read_rows

LEAST_ROWS, MOST_ROWS = 4, 16
MOST_BYTES = 2**18  # of the agreed rows, which travel in the job
MOST_NORM_CHANGE = 0.01  # of a row's norm, by marking: rounding to 16 bits changes less


class Marks(Section):
    """The rows of the input embedding in which copies differ, and their numbers without a mark.

    `tensor`: the matrix's name in the safetensors files. `rows`: ascending. `kind`: the dtype in the files.
    `agreed`: the rows' bytes as they are in the files of the unmarked proxy, base64.
    """

    tensor: str
    rows: tuple[int, ...]
    width: int
    kind: Literal["F64", "F32", "F16", "BF16"]
    agreed: str

    @model_validator(mode="after")
    def _agreed_fit_rows(self) -> Marks:
        if not LEAST_ROWS <= len(self.rows) <= MOST_ROWS or not 0 < self.width <= MOST_BYTES:
            raise ValueError(f"rows: must be {LEAST_ROWS} to {MOST_ROWS}, some numbers wide")
        if list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 0:
            raise ValueError(f"rows={list(self.rows)}: must ascend from 0 on")
        try:
            raw = base64.b64decode(self.agreed, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("agreed: must be base64") from None
        if len(raw) != len(self.rows) * self.width * KINDS[self.kind]:
            raise ValueError(f"agreed: has {len(raw)} bytes; must be those of the rows")
        norms = np.linalg.norm(as_numbers(raw, self.kind, self.width), axis=1)
        if not np.all(np.isfinite(norms)) or not np.all(norms > 0):
            raise ValueError("agreed: rows must be finite and not zero")
        return self

    @property
    def agreed_rows(self) -> Mapping[int, bytes]:
        """The rows' bytes without a mark, by row."""
        raw = base64.b64decode(self.agreed)
        size = self.width * KINDS[self.kind]
        return {row: raw[i * size : (i + 1) * size] for i, row in enumerate(self.rows)}

    @property
    def agreed_numbers(self) -> np.ndarray:
        """The rows' numbers without a mark, float64 [rows, width]."""
        return as_numbers(base64.b64decode(self.agreed), self.kind, self.width)


def check_fits(marks: Marks, matrix: Matrix) -> None:
    """Raise `DataError` unless a copy's matrix has the marks' form, and marked rows of the agreed norm."""
    if (matrix.kind, matrix.width) != (marks.kind, marks.width):
        raise DataError(
            f"proxy: its marked rows are {matrix.width} {matrix.kind}; must be {marks.width} {marks.kind}"
        )
    numbers = as_numbers(read_rows(matrix, marks.rows), marks.kind, marks.width)
    with np.errstate(over="ignore", invalid="ignore"):
        norms, agreed = (np.linalg.norm(rows, axis=1) for rows in (numbers, marks.agreed_numbers))
        differs = np.abs(norms - agreed) > MOST_NORM_CHANGE * agreed
    if not np.all(np.isfinite(norms)) or np.any(differs):
        raise DataError("proxy: a marked row has another norm than agreed; must be within 1 % of it")
