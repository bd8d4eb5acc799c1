"""Compute each record's own gradient, in a pass of its own.

A pass over several records would be about three times faster on a CPU, but there the model could let one
record affect another: by positions that stretch with the longest, by experts that fill up, or only by sums
whose rounding differs with the number of rows, which crafted weights enlarge without limit. A pass over one
record sees no other.

Guarantees: a record's gradient is computed from the record and the parameters, and from no other record, if
the model keeps nothing of an earlier pass (`check_fits` looks). A record for which the model fails, or
whose gradient is not finite, has none and counts as zero. Not guaranteed: that the device computes the same
pass twice to the last bit; on an accelerator an error that ends the device's context, such as an index out
of range, ends every pass after it; callers keep such records away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

log = logging.getLogger(__name__)
Loss = Callable[[np.ndarray], torch.Tensor]  # index of one record, int64 [1] -> its loss, a scalar
OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError)  # caused by the machine, not by a record


def usable_gradient(
    loss: Loss, index: int, parameters: Sequence[nn.Parameter]
) -> tuple[float, list[torch.Tensor]] | None:
    """Return one record's loss and gradient, or None if it has no finite gradient and counts as zero.

    Raises nothing but `OF_THE_MACHINE`, and what interrupts a process.
    """
    try:
        value, gradients = record_gradient(loss, index, parameters)
    except OF_THE_MACHINE:
        raise
    except Exception:
        log.info("a record gave no gradient", exc_info=True)
        return None
    # no error: it would reveal, without noise, that a record with such a gradient was drawn
    return (value, gradients) if all(bool(g.isfinite().all()) for g in gradients) else None


def record_gradient(
    loss: Loss, index: int, parameters: Sequence[nn.Parameter]
) -> tuple[float, list[torch.Tensor]]:
    """Return one record's loss and gradient, with zeros for parameters that its pass does not use.

    Raises whatever the model raises.
    """
    value = loss(np.array([index]))
    raw = torch.autograd.grad(value, list(parameters), allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g.detach() for g, p in zip(raw, parameters, strict=True)
    ]
    return float(value.detach()), gradients
