"""Fit a block's last linear map in closed form, so that the block outputs the wanted hidden states.

For a block's output y, the wanted hidden state t, and what the map reads, a, the map W gets the change D
that minimises

    sum over tokens of |t - y - D a|^2 / |t|^2  +  RIDGE * s * |D|^2,

where s is the sum over tokens of |a|^2 / |t|^2, divided by the number of the map's inputs.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
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
    weight, passed = found.weight, []
    inputs, hidden = weight.shape if isinstance(found, Conv1D) else weight.T.shape
    gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(inputs, hidden, dtype=torch.float64, device=weight.device)
    for (read, out), target in zip(walk.reading(index, found), targets, strict=True):
        a, wanted = read.reshape(-1, inputs).float(), target.reshape(-1, hidden).float()
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
            if isinstance(module, nn.Linear | Conv1D) and not is_parametrized(module, "weight"):
                stack.callback(module.register_forward_hook(keep).remove)
        walk.call(index, state)
    return ran[-1] if ran and ran.count(ran[-1]) == 1 else None
