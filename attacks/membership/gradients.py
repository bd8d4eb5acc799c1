"""Gradients of single records: how each record alone would have moved the adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.base import Budget
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded, training_batch

RECORDS_A_PASS = 16  # the most records whose gradients are computed together
NUMBERS_A_PASS = 5_000_000  # of their gradients: what a pass keeps of a large model grows with these


def record_gradients(box: WhiteBox, items: Sequence[Encoded], *, budget: Budget) -> np.ndarray:
    """Return `WhiteBox.gradient` of each record alone, float32 [n, d], in the records' order.

    Records of similar length are computed together. Raises `OutOfTime` between two passes once the budget
    is used up.
    """
    order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
    size = sum(math.prod(shape) for shape in box.shapes)
    rows = np.empty((len(items), size), np.float32)
    together = max(1, min(RECORDS_A_PASS, NUMBERS_A_PASS // size))
    for at in range(0, len(order), together):
        budget.check()
        chosen = order[at : at + together]
        rows[chosen] = _gradients(box, [items[i] for i in chosen])
    return rows


def _gradients(box: WhiteBox, items: Sequence[Encoded]) -> np.ndarray:
    """Return the gradients of records in one pass.

    Padding is on the right, where a causal model does not look, so no mask is needed.
    """
    batch = training_batch(items, pad_id=box.tokenizer.pad_token_id, device="cpu")
    positions = batch.response.any(dim=0).nonzero().flatten()
    frozen, trained = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, p in box.tuned.named_parameters():
        (trained if p.requires_grad else frozen)[name] = p.detach()

    def loss(adapter: dict[str, torch.Tensor], ids: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids[None], "use_cache": False, "logits_to_keep": positions}
        logits = functional_call(box.tuned, {**frozen, **adapter}, (), inputs).logits[0]
        nll = nn.functional.cross_entropy(logits.float(), ids[positions + 1], reduction="none")
        return (nll * response[positions]).sum() / response.sum()

    with sdpa_kernel(SDPBackend.MATH):  # the faster kernels cannot work record by record
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(trained, batch.ids, batch.response)
    return torch.cat([gradients[name].flatten(1).float() for name in trained], dim=1).numpy()
