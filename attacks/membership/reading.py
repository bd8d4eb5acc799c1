"""Logits after chosen tokens of texts, without padding where the model allows, never more than fit.

With a large vocabulary the logits of all positions outweigh a model, and most attacks read a few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from attacks.base import Budget
from fedproxy_secure.models.packing.packed import can_pack, packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows
from fedproxy_secure.models.passes import LOGITS, PASS_TOKENS, vocabulary_size

Text = Sequence[int]


@torch.inference_mode()
def logits_after(
    model: nn.Module,
    texts: Sequence[Text],
    places: Sequence[Sequence[int]],
    *,
    budget: Budget | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the logits after the tokens at some places of each text, float32 [places, V], in order.

    Args:
        model: a causal LM.
        texts: token ids of each text.
        places: indices into each text.
        budget: checked between two passes.
    """
    packs, longest = can_pack(model), LOGITS // vocabulary_size(model)
    at = 0
    while at < len(texts):
        if budget is not None:
            budget.check()
        end, tokens, kept = at, 0, 0
        while end < len(texts) and (
            end == at or (tokens + len(texts[end]) <= PASS_TOKENS and kept + len(places[end]) <= longest)
        ):
            tokens, kept = tokens + len(texts[end]), kept + len(places[end])
            end += 1
        yield from (_packed if packs else _padded)(model, texts[at:end], places[at:end])
        at = end


def _packed(
    model: nn.Module, texts: Sequence[Text], places: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, ...]:
    device = next(model.parameters()).device
    pack = pack_rows([Row(trunk=text) for text in texts], device)
    keep = [start + p for start, own in zip(pack.starts, places, strict=True) for p in own]
    logits = packed_logits(model, pack, torch.tensor(keep, dtype=torch.int64, device=device))
    return tuple(logits.float().split([len(own) for own in places]))


def _padded(model: Any, texts: Sequence[Text], places: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """Read texts in one batch, padded on the right, where a causal model does not look."""
    device = next(model.parameters()).device
    ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        attention[row, : len(text)] = 1
    keep = sorted({p for own in places for p in own})
    column_of = {p: i for i, p in enumerate(keep)}
    logits = cast(
        torch.Tensor,
        model(
            input_ids=ids.to(device),
            attention_mask=attention.to(device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=device),
        ).logits,
    )
    return tuple(
        row[torch.tensor([column_of[p] for p in own], dtype=torch.int64)].float()
        for row, own in zip(logits, places, strict=True)
    )
