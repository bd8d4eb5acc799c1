"""A client's own copy of a traced proxy: the agreed rows are put back before it is used.

Guarantees: after `put_back` the rows that the marks name hold what all clients agreed on, so that the
digest, the checks and the training are those of the unmarked proxy; marks on rows that a text could read
are refused (reserved tokens, which a text must spell out, count as unread).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.errors import ModelError
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.unused import unused_rows


@torch.no_grad()
def put_back(model: nn.Module, folder: Path, marks: Marks) -> None:
    """Write the agreed rows into the input embedding of the model that was loaded from a folder.

    Files on the disk are not changed: the copy that lies there keeps its marks.

    Raises `ModelError` for marks that do not fit the model, or are on rows that texts read.
    """
    weight = cast(Any, model).get_input_embeddings().weight
    if weight.shape[1] != marks.width or weight.shape[0] <= max(marks.rows):
        raise ModelError(f"proxy: its embedding is {list(weight.shape)}; must have the marked rows")
    if read := sorted(set(marks.rows) - set(unused_rows(folder, weight.shape[0]))):
        raise ModelError(
            f"proxy: row {read[0]} is marked, which texts may read; must be one that none does"
        )
    for row, numbers in zip(marks.rows, torch.from_numpy(marks.agreed_numbers), strict=True):
        weight[row] = numbers.to(weight.dtype)
