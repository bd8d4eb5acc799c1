"""Fit a block's last linear map in closed form, so that the block outputs the wanted hidden states.

For a block's output y, the wanted hidden state t, and what the map reads, a, the map W gets the change D
that minimises

    sum over tokens of |t - y - D a|^2 / |t|^2  +  RIDGE * s * |D|^2,

where s is the sum over tokens of |a|^2 / |t|^2, divided by the number of the map's inputs.

A weight may be computed from others by a parametrisation. Of a product of two factors, the one next to the
outputs is changed, and a is what it reads; so the rank stays. Of a weight that is rounded, the numbers
behind the rounding are changed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from fedproxy_secure.models.block_walk import BlockWalk, States

RIDGE = 0.1  # the best of .001 to 1 on text that was not fitted, with SmolLM2-135M


def fit_last_map(
    walk: BlockWalk, index: int, found: nn.Linear | Conv1D, targets: States
) -> tuple[States, float, bool]:
    """Fit a block's last linear map; return the block's output, its error, and whether the map changed.

    Args:
        walk: stands before the block.
        index: the block.
        found: its last map (`last_map`).
        targets: what the block should pass on.

    The error is that of `relative_error`.

    Guarantees: the error is not larger than without the change; a change that would make it so is taken
    back.
    """
    free = _free_weight(found)
    assert free is not None
    weight, factor = free
    passed: States = []
    inputs, hidden = weight.shape if isinstance(found, Conv1D) else weight.T.shape
    gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(inputs, hidden, dtype=torch.float64, device=weight.device)
    for (read, out), target in zip(walk.reading(index, found), targets, strict=True):
        a, wanted = read.flatten(0, -2).float(), target.reshape(-1, hidden).float()
        if factor is not None:
            a = a @ factor.float()
        weighed = a / wanted.square().sum(-1, keepdim=True)
        gram += weighed.T @ a
        cross += weighed.T @ (wanted - out.reshape(-1, hidden).float())
        passed.append(out)
    error = relative_error(passed, targets)
    if error == 0 or not gram.diagonal().mean() > 0:  # nothing is missing, or the map reads zeros
        return passed, error, False
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, cross)  # [inputs, hidden]
    before = weight.data
    weight.data = (before.double() + (change if isinstance(found, Conv1D) else change.T)).to(before.dtype)
    fitted = walk.through(index)
    fitted_error = relative_error(fitted, targets)
    if not fitted_error < error:  # also where it is not a number
        weight.data = before
        return passed, error, False
    return fitted, fitted_error, True


def relative_error(states: States, targets: States) -> float:
    """Return |state - target|^2 / |target|^2, summed over tokens."""
    return sum(
        float(((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1)).sum())
        for s, t in zip(states, targets, strict=True)
    )


def last_map(walk: BlockWalk, index: int) -> nn.Linear | Conv1D | None:
    """Return a block's last linear map that reads every token once and has outputs of the hidden size.

    A block has none, for instance, if its MLP is made of experts that each read some of the tokens.
    """
    ran: list[nn.Linear | Conv1D] = []
    state = walk.states[0]

    def keep(module: nn.Module, _args: object, out: torch.Tensor) -> None:
        assert isinstance(module, nn.Linear | Conv1D)
        if out.shape[-1] == state.shape[-1] and out.numel() == state.numel():
            ran.append(module)

    with ExitStack() as stack:
        for module in walk.blocks[index].modules():
            if isinstance(module, nn.Linear | Conv1D) and _free_weight(module) is not None:
                stack.callback(module.register_forward_hook(keep).remove)
        walk.call(index, state)
    return ran[-1] if ran and ran.count(ran[-1]) == 1 else None


def _free_weight(found: nn.Linear | Conv1D) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return the parameter that a fit of the map changes, and the factor that stands before it.

    The factor is [inputs, rank], or None where the parameter reads the map's own inputs. Returns None in
    place of both for a weight that is computed in another way than the module's docstring says.
    """
    if not parametrize.is_parametrized(found, "weight"):
        return found.weight, None
    computed: Any = found
    behind = list(computed.parametrizations.weight.parameters(recurse=False))
    if len(behind) == 1 and behind[0].shape == found.weight.shape:
        return behind[0], None
    if len(behind) == 2 and behind[0].shape[1:] == behind[1].shape[:1]:
        left, right = behind
        if torch.allclose(left @ right, found.weight, rtol=1e-2, atol=1e-4):
            return (right, left.detach()) if isinstance(found, Conv1D) else (left, right.detach().T)
    return None
