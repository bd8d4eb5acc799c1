"""One pass of a causal LM that also gives every block's output."""

from __future__ import annotations

import torch
from torch import nn

from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.passes import checkpointed_blocks


def predictions_and_states(
    model: nn.Module, ids: torch.Tensor, *, checkpointing: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return next-token log-probabilities, [n, tokens, vocabulary], and each block's output.

    Args:
        model: causal LM.
        ids: token ids, int64 [n, tokens], without padding.
        checkpointing: whether a backward pass runs the blocks once more (`checkpointed_blocks`).

    Both are float32. An output is [n, tokens, hidden], before the model's final norm.
    """
    states: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: object, out: object) -> None:
        state = out[0] if isinstance(out, tuple) else out
        assert isinstance(state, torch.Tensor)
        states.append(state.float())

    handles = [block.register_forward_hook(keep) for block in blocks_of(model)]
    try:
        with checkpointed_blocks(model, checkpointing):
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits.float().log_softmax(-1), states
