"""Fit a block's last linear map in closed form, so that the block outputs the target hidden states.

For a block's output y, the target hidden state t, and the map's input a, the map W gets the change D that
minimises

    sum over tokens of |t - y - D a|^2 / |t|^2  +  RIDGE * s * |D|^2,

where s is the sum over tokens of |a|^2 / |t|^2, divided by the number of the map's inputs.

A parametrisation may compute the weight. For a product of two factors, the factor next to the outputs is
changed, and a is its input, so that the rank stays. For a rounded weight, the numbers before rounding are
changed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from fedproxy_secure.models.block_walk import BlockWalk, States

RIDGE = 0.1  # the best of 0.001 to 1 on text that was not fitted, with SmolLM2-135M


def fit_last_map(
    walk: BlockWalk, index: int, found: nn.Linear | Conv1D, targets: States
) -> tuple[States, float, bool]:
    """Fit a block's last linear map; return the block's output, its error, and whether the map changed.

    Args:
        walk: a walk before the block.
        index: the block.
        found: its last map (`last_map`).
        targets: the states that the block should pass on.

    The error is that of `relative_error`.

    Guarantees: the error is not larger than without the change; a change that increases it is reverted.
    """
    free = _free_weight(found)
    assert free is not None
    weight, factor = free
    passed: States = []
    inputs, hidden = weight.shape if isinstance(found, Conv1D) else weight.T.shape
    gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(inputs, hidden, dtype=torch.float64, device=weight.device)
    for (read_states, out), target in zip(walk.reading(index, found), targets, strict=True):
        a, target_rows = read_states.flatten(0, -2).float(), target.reshape(-1, hidden).float()
        if factor is not None:
            a = a @ factor.float()
        weighed = a / target_rows.square().sum(-1, keepdim=True)
        gram += weighed.T @ a
        cross += weighed.T @ (target_rows - out.reshape(-1, hidden).float())
        passed.append(out)
    error = relative_error(passed, targets)
    if error == 0 or not gram.diagonal().mean() > 0:  # there is no error, or the map reads zeros
        return passed, error, False
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, cross)  # [inputs, hidden]
    before = weight.data
    weight.data = (before.double() + (change if isinstance(found, Conv1D) else change.T)).to(before.dtype)
    fitted = walk.through(index)
    fitted_error = relative_error(fitted, targets)
    if not fitted_error < error:  # also if it is not a number
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

    A block has no such map, for instance, if its MLP has experts that each read some of the tokens.
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


def _free_weight(linear: nn.Linear | Conv1D) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return the parameter that a fit of the map changes, and the factor before it.

    The factor is [inputs, rank], or None if the parameter reads the map's own inputs. The result is None
    for a weight that is computed in another way than the module's docstring describes.
    """
    if not parametrize.is_parametrized(linear, "weight"):
        return linear.weight, None
    computed: Any = linear
    behind = list(computed.parametrizations.weight.parameters(recurse=False))
    if len(behind) == 1 and behind[0].shape == linear.weight.shape:
        return behind[0], None
    if len(behind) == 2 and behind[0].shape[1:] == behind[1].shape[:1]:
        left, right = behind
        if torch.allclose(left @ right, linear.weight, rtol=1e-2, atol=1e-4):
            return (right, left.detach()) if isinstance(linear, Conv1D) else (left, right.detach().T)
    return None
