"""The closed-form half of healing: the last map of each block is fitted to the LLM's hidden states.

The block before a gap should pass on what the missing blocks would have made of its output. Ridge
regression finds the part of this that is linear in what the block's last map reads (in an MLP, the down
projection). It needs no gradient; the text is read once by the LLM and twice by the proxy. ReplaceMe
(Shopkhoev et al. 2025, arXiv 2505.02819) fits one linear map for each gap in this way. Here blocks are
fitted in their order, each on what the fitted ones before it pass on, so that blocks behind a gap make good
what is still missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.passes import windows_a_pass

RIDGE = (
    0.1  # relative to the mean squared input of the map; the best of .001 to 1 on text that was not fitted
)

OnBlock = Callable[[int, float], None]  # proxy block that is done, relative error of what it passes on
States = list[torch.Tensor]  # hidden states of each batch, [n, tokens, hidden]


@torch.no_grad()
def fit_blocks(
    proxy: nn.Module,
    llm: nn.Module,
    plan: BlockPlan,
    windows: torch.Tensor,
    *,
    blocks: Collection[int],
    on_block: OnBlock | None = None,
) -> int:
    """Change the last linear map of proxy blocks so that they pass on what the LLM has at their place.

    For a block's output y, the LLM's hidden state t where the next proxy block's original reads (for the
    last block: the LLM's end), and what the map reads, a, the map W gets the change D that minimises

        sum over tokens of |t - y - D a|^2 / |t|^2  +  RIDGE * s * |D|^2,

    where s is the sum over tokens of |a|^2 / |t|^2, divided by the number of the map's inputs.

    Args:
        proxy: causal LM whose blocks have the LLM's hidden size; changed in place.
        llm: the server's LLM; unchanged.
        plan: which LLM block each proxy block stands for.
        windows: token ids of public text, int64 [n, tokens], without padding.
        blocks: indices of the proxy blocks that may be changed.
        on_block: called after each block with its relative error, as `distance` defines that.

    Returns how many blocks were changed.

    Guarantees: the error of no block is larger on these windows than it would be without its own change. A
    block that already passes on exactly what the LLM has, or has no linear map of its own weights whose
    output has the hidden size, is not touched. Weights that are computed while a proxy is healed, as those
    of `low_rank` and `quantised`, are no map's own.
    """
    windows = windows.to(next(llm.parameters()).device)
    batches = windows.split(windows_a_pass(proxy, windows))
    ours, theirs = _Walk.begin(proxy, batches), _Walk.begin(llm, batches)
    if ours.states[0].shape != theirs.states[0].shape:
        return 0
    done = changed = 0
    for index, (_, after) in enumerate(pairwise((*plan.kept, plan.llm_blocks))):
        for block in range(done, after):
            theirs.states = theirs.through(block)
        done = after
        found = _last_map(ours, index) if index in blocks else None
        if found is not None:
            ours.states, error, better = _fit(ours, index, found, theirs.states)
            changed += better
        else:
            ours.states = ours.through(index)
            error = _error(ours.states, theirs.states)
        if on_block is not None:
            on_block(index, error / windows.numel())
    return changed


def _fit(walk: _Walk, index: int, found: nn.Linear | Conv1D, targets: States) -> tuple[States, float, bool]:
    """Fit a block's last map; return what the block passes on then, its error, and whether it changed."""
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
    error = _error(passed, targets)
    if error == 0 or not gram.diagonal().mean() > 0:  # nothing is missing, or the map reads zeros
        return passed, error, False
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, cross)  # [inputs, hidden]
    before = weight.data
    weight.data = (before.double() + (change if isinstance(found, Conv1D) else change.T)).to(before.dtype)
    fitted = walk.through(index)
    fitted_error = _error(fitted, targets)
    if not fitted_error < error:  # also where it is not a number
        weight.data = before
        return passed, error, False
    return fitted, fitted_error, True


def _error(states: States, targets: States) -> float:
    """Return |state - target|^2 / |target|^2, summed over tokens."""
    return sum(
        float(((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1)).sum())
        for s, t in zip(states, targets, strict=True)
    )


@dataclass(kw_only=True)
class _Walk:
    """A model's hidden states on their way through its blocks, batch by batch.

    `calls`: for each batch size, how the model calls each of its blocks: further arguments, which say
    positions and masks. Without padding they are the same for all texts of one length.
    """

    blocks: Sequence[nn.Module]
    calls: Mapping[int, Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]]
    states: States

    @classmethod
    def begin(cls, model: nn.Module, batches: Sequence[torch.Tensor]) -> _Walk:
        """Stand before the first block of `model`, with the states that it reads."""
        blocks = list(blocks_of(model))
        calls = {
            len(batch): [(args[1:], named) for args, named in _called(model, blocks, batch)]
            for batch in {len(batch): batch for batch in batches}.values()
        }
        states = [_called(model, blocks[:1], batch)[0][0][0] for batch in batches]
        return cls(blocks=blocks, calls=calls, states=states)

    def through(self, index: int) -> States:
        """Return what block `index` makes of the states."""
        return [self._call(index, state) for state in self.states]

    def reading(self, index: int, module: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, by batch, what a module of block `index` reads and what the block makes of the states."""
        read: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        try:
            for state in self.states:
                out = self._call(index, state)
                yield read.pop(), out
        finally:
            handle.remove()

    def _call(self, index: int, state: torch.Tensor) -> torch.Tensor:
        args, named = self.calls[len(state)][index]
        out = self.blocks[index](state, *args, **named)
        made = out[0] if isinstance(out, tuple) else out
        assert isinstance(made, torch.Tensor)
        return made


def _called(
    model: nn.Module, blocks: Sequence[nn.Module], ids: torch.Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments with which a pass of `ids` calls blocks; it ends at the last of them.

    The first positional argument of each is the hidden states.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        own = dict(named)
        calls.append((args if args else (own.pop("hidden_states"),), own))
        if len(calls) == len(blocks):
            raise _Enough

    with ExitStack() as stack:
        for block in blocks:
            handle = block.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(suppress(_Enough))
        model(input_ids=ids, use_cache=False)
    return calls


class _Enough(Exception):
    """Ends a pass whose rest nobody needs."""


def _last_map(walk: _Walk, index: int) -> nn.Linear | Conv1D | None:
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
        walk._call(index, state)
    return ran[-1] if ran and ran.count(ran[-1]) == 1 else None
