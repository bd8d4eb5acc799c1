"""Run the blocks of a causal LM one at a time on the hidden states of several batches.

Changing each block according to its outputs then takes no pass of the whole model for each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedproxy_secure.models.llm import blocks_of

States = list[torch.Tensor]  # hidden states of each batch, [n, tokens, hidden]


@dataclass(kw_only=True)
class BlockWalk:
    """A model's hidden states on their way through its blocks, batch by batch.

    `calls`: for each batch size, the further arguments with which the model calls each of its blocks, such
    as positions and masks. Without padding they are the same for all texts of one length.
    """

    blocks: Sequence[nn.Module]
    calls: Mapping[int, Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]]
    states: States

    @classmethod
    def begin(cls, model: nn.Module, batches: Sequence[torch.Tensor]) -> BlockWalk:
        """Return a walk before the first block of `model`, with the states that this block reads."""
        blocks = list(blocks_of(model))
        calls = {
            len(batch): [(args[1:], kwargs) for args, kwargs in _called(model, blocks, batch)]
            for batch in {len(batch): batch for batch in batches}.values()
        }
        states = [_called(model, blocks[:1], batch)[0][0][0] for batch in batches]
        return cls(blocks=blocks, calls=calls, states=states)

    def through(self, index: int) -> States:
        """Return the outputs of block `index` for the states."""
        return [self.call(index, state) for state in self.states]

    def reading(self, index: int, module: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, by batch, the input of a module of block `index` and the block's output."""
        inputs: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        try:
            for state in self.states:
                out = self.call(index, state)
                yield inputs.pop(), out
        finally:
            handle.remove()

    def call(self, index: int, state: torch.Tensor) -> torch.Tensor:
        """Return the output of block `index` for one batch's states."""
        args, kwargs = self.calls[len(state)][index]
        out = self.blocks[index](state, *args, **kwargs)
        states = out[0] if isinstance(out, tuple) else out
        assert isinstance(states, torch.Tensor)
        return states


def _called(
    model: nn.Module, blocks: Sequence[nn.Module], ids: torch.Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments with which a pass of `ids` calls blocks; the pass ends at the last block.

    The first positional argument of each call is the hidden states.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        further = dict(kwargs)
        calls.append((args if args else (further.pop("hidden_states"),), further))
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
    """Ends a pass after the needed blocks."""
