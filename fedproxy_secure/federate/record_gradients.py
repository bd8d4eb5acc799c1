"""Each record's own gradient, by Opacus's hooks, whatever becomes of the others in its pass.

Guarantees: a record for which the model fails, or whose gradient is not finite, has a gradient of zeros;
the others of its pass have theirs, up to the rounding of a pass of one. What was left of a pass that failed
on its way does not reach the next. Not guaranteed: on an accelerator an error that ends the device's
context, such as an index out of range, ends every pass after it; callers keep such records away.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

log = logging.getLogger(__name__)
Loss = Callable[[np.ndarray], torch.Tensor]  # indices of records -> mean over them of each one's loss
OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError)  # no error of a record


@contextmanager
def hooked(module: nn.Module) -> Iterator[None]:
    """Meanwhile, a backward pass leaves each record's gradient at the parameters, as `grad_sample`."""
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(module, loss_reduction="mean", strict=True)
    try:
        yield
    finally:
        _forget(module)
        wrapped.to_standard_module()
        for p in module.parameters():
            p.grad = None


def record_gradients(
    module: nn.Module, loss: Loss, chosen: np.ndarray, parameters: Sequence[nn.Parameter]
) -> tuple[float, int]:
    """Leave each record's gradient at the parameters; the sum of the records' losses, and how many failed.

    Where the pass fails, each of its records is tried alone, so that those that can have theirs. Raises
    nothing but `OF_THE_MACHINE`, and what interrupts a process.
    """
    if len(chosen) == 0:  # a model cannot run on nothing, but the step counts
        _put(parameters, [torch.zeros((0, *p.shape), device=p.device, dtype=p.dtype) for p in parameters])
        return 0.0, 0
    try:
        return pass_gradients(loss, chosen, parameters), 0
    except OF_THE_MACHINE:
        raise
    except Exception:
        log.info("a pass over %d records failed; each is tried alone", len(chosen), exc_info=True)
    total, failed, rows = 0.0, 0, []
    for index in chosen:
        _forget(module)
        try:
            total += pass_gradients(loss, np.array([index]), parameters)
            rows.append([_samples(p) for p in parameters])
        except OF_THE_MACHINE:
            raise
        except Exception:
            failed += 1
            rows.append([torch.zeros((1, *p.shape), device=p.device, dtype=p.dtype) for p in parameters])
    _forget(module)
    _put(parameters, [torch.cat(of_one) for of_one in zip(*rows, strict=True)])
    return total, failed


def pass_gradients(loss: Loss, chosen: np.ndarray, parameters: Sequence[nn.Parameter]) -> float:
    """One pass inside `hooked`: leave each record's gradient, [records, *shape], at the parameters.

    Returns the sum of the records' losses. Raises whatever the model raises, and `ValueError` if it does
    not give one gradient a record.
    """
    value = loss(chosen)
    number = float(value.detach())
    with warnings.catch_warnings():  # of the first adapted layers: their inputs need no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        value.backward()
    if all(_samples(p) is None for p in parameters):
        raise ValueError("no gradient of a single record was taken")
    found = []
    for p in parameters:
        sample = _samples(p)
        if sample is None:  # this pass did not come by
            sample = torch.zeros((len(chosen), *p.shape), device=p.device, dtype=p.dtype)
        elif not isinstance(sample, torch.Tensor) or sample.shape != (len(chosen), *p.shape):
            raise ValueError("gradients are not one a record")
        found.append(sample)
    # an error would tell, without noise, that a record was drawn whose gradient is not finite
    good = torch.stack([g.flatten(1).isfinite().all(dim=1) for g in found]).all(dim=0)
    if not good.all():
        for sample in found:
            sample[~good] = 0
    _put(parameters, found)
    return number * len(chosen)


def _samples(parameter: nn.Parameter) -> Any:
    return parameter.grad_sample  # type: ignore[attr-defined]


def _put(parameters: Sequence[nn.Parameter], samples: Sequence[torch.Tensor]) -> None:
    for p, sample in zip(parameters, samples, strict=True):
        p.grad_sample = sample  # type: ignore[attr-defined]


def _forget(module: nn.Module) -> None:
    """Remove what the hooks keep of a pass that failed on its way: the next would be taken for its rest."""
    for layer in module.modules():
        for name in ("activations", "max_batch_len"):
            layer.__dict__.pop(name, None)
    for p in module.parameters():
        p.__dict__.pop("_current_grad_sample", None)
        if p.requires_grad:
            p.grad = None
            p.grad_sample = None  # type: ignore[attr-defined]
            p._forward_counter = 0  # type: ignore[attr-defined]
