"""Several sequences in one row of tokens, so that a model reads no padding.

A batch that is padded to its longest sequence spends a third of its time on padding. Here the tokens of all
sequences follow each other, [1, tokens]. Positions start again with each sequence. Attention, the only part
of a transformer that mixes tokens, separates sequences: only for attention are queries, keys and values
arranged in padded rows.

A row may end in several branches: continuations of one trunk that do not see each other. The answers to a
question are branches, so that the question is read once.

    pack = pack_rows([Row(trunk=prompt, branches=(first, second))])
    logits = packed_logits(model, pack, keep)   # [len(keep), V]

Guarantees: `packed_logits` equals the model's logits for each sequence alone, up to rounding, for a model
with `can_pack`, which was tried on made-up tokens. Not guaranteed for a model that was built to recognise
the trial, so no defence against such a model may depend on this: differentially private training runs each
record alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fedproxy_secure.models.mixed import is_mixed
from fedproxy_secure.models.packing.attention import packed_attention
from fedproxy_secure.models.packing.fast_blocks import fast_blocks
from fedproxy_secure.models.packing.packs import Pack, Row, pack_rows
from fedproxy_secure.models.passes import checkpointed_blocks

log = logging.getLogger(__name__)
ATTENTION = "fedproxy_packed"  # our name among transformers' implementations of attention
_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def packed_logits(
    model: nn.Module, pack: Pack, keep: torch.Tensor, *, checkpointing: bool = False
) -> torch.Tensor:
    """Return the logits, [len(keep), V], after the tokens at `keep`, int64, of the packed sequence.

    With `checkpointing` a backward pass runs the blocks once more (`checkpointed_blocks`).
    """
    with _attending_packed(model), fast_blocks(model, keep), checkpointed_blocks(model, checkpointing):
        output = model(
            input_ids=pack.ids,
            position_ids=pack.positions,
            use_cache=False,
            logits_to_keep=keep,
            packing=pack,
        )
    return cast(torch.Tensor, output.logits[0])


def can_pack(model: nn.Module) -> bool:
    """Return whether the model gives the same logits for packed sequences as for each alone.

    Each model is tried once, on made-up tokens.
    """
    result = _TRIED.get(model)
    if result is None:
        result = _TRIED[model] = _config(model).__dict__.get("sliding_window") is None and _agrees(model)
    return result


@torch.no_grad()
def _agrees(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    tokens = torch.arange(5, 36) * 7 % min(200, _config(model).vocab_size)
    first, second, trunk, branch_a, branch_b = (part.tolist() for part in tokens.split([9, 5, 8, 6, 3]))
    training = model.training
    model.eval()
    try:
        rows = [Row(trunk=first), Row(trunk=second), Row(trunk=trunk, branches=(branch_a, branch_b))]
        pack = pack_rows(rows, device)
        together = packed_logits(model, pack, torch.arange(len(tokens), device=device)).float()
        alone = [
            model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float()
            for ids in (first, second, [*trunk, *branch_a], [*trunk, *branch_b])
        ]
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except Exception:  # a model may raise anything for unknown arguments
        log.info("this model cannot be packed: its rows are padded", exc_info=True)
        return False
    finally:
        model.train(training)
    alone[3] = alone[3][len(trunk) :]
    expected = torch.cat(alone)
    exact = next(model.parameters()).dtype == torch.float32 and not is_mixed(model)
    allowed = 1e-4 if exact else 0.05
    return float((together - expected).abs().max()) <= allowed * max(1.0, float(expected.abs().max()))


def _config(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).config


@contextmanager
def _attending_packed(model: nn.Module) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    config = _config(model)
    before = config._attn_implementation
    config._attn_implementation = ATTENTION  # a name without a mask of its own: transformers makes none
    try:
        yield
    finally:
        config._attn_implementation = before
