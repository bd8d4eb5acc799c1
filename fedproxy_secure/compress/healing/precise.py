"""Parameters for an optimiser to step on: float32 for a model of any dtype.

A bfloat16 number has eight significant bits: a step of less than 1/512 of a weight is rounded away. A step
of healing is about the learning rate, 1e-4 by default, so that it would not move weights above 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class PreciseNumbers:
    """Parameters of a model, held in float32 while an optimiser steps on them.

    `held` has a parameter of 32 bits or more itself, and a float32 copy of one with fewer bits. A copy
    collects its parameter's gradients, in float32, as soon as they are complete, and `show` writes it back
    to the model, rounded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.held = [p if p.element_size() >= 4 else nn.Parameter(p.detach().float()) for p in parameters]
        self._pairs = [(p, q) for p, q in zip(parameters, self.held, strict=True) if p is not q]
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p, q=q: _hand_over(p, q)) for p, q in self._pairs
        ]

    @torch.no_grad()
    def show(self) -> None:
        """Write the held numbers to the model."""
        for p, q in self._pairs:
            p.copy_(q)

    @torch.no_grad()
    def read(self) -> None:
        """Take over the model's numbers, after something else has changed them."""
        for p, q in self._pairs:
            q.copy_(p)

    def close(self) -> None:
        """Stop collecting gradients; they stay with the model from now on."""
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def _hand_over(p: torch.Tensor, q: torch.Tensor) -> None:
    """Add the gradient of `p` to that of `q`, and free the former."""
    assert p.grad is not None  # the hook runs just after the gradient was computed
    gradient = p.grad.float()
    q.grad = gradient if q.grad is None else q.grad + gradient
    p.grad = None
