"""Numbers that training steps on, in float32 whatever the dtype of the model.

A bfloat16 number has eight significant bits: a step of less than 1/512 of a weight is rounded away. A step
of healing is about the learning rate, 1e-4 by default, so that it would not move weights above .05.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class PreciseNumbers:
    """Parameters of a model, held in float32 while an optimiser steps on them.

    A parameter of 32 bits or more is held by itself. Of one with fewer, `held` has a float32 copy:
    gradients add up there, in float32, as soon as they are complete, and `show` writes it back to the
    model, rounded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.held = [p if p.element_size() >= 4 else nn.Parameter(p.detach().float()) for p in parameters]
        self._pairs = [(p, q) for p, q in zip(parameters, self.held, strict=True) if p is not q]
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p, q=q: _hand_over(p, q)) for p, q in self._pairs
        ]

    @torch.no_grad()
    def show(self) -> None:
        """Give the model the numbers that are held."""
        for p, q in self._pairs:
            p.copy_(q)

    @torch.no_grad()
    def read(self) -> None:
        """Hold the model's numbers, which something else has changed."""
        for p, q in self._pairs:
            q.copy_(p)

    def close(self) -> None:
        """Leave the model as it is; gradients stay with it from now on."""
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def _hand_over(p: torch.Tensor, q: torch.Tensor) -> None:
    """Add the gradient of `p` to that of `q`, and free the former."""
    assert p.grad is not None  # called where it has just been made
    found = p.grad.float()
    q.grad = found if q.grad is None else q.grad + found
    p.grad = None
