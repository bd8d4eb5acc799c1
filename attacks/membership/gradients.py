"""Gradients of single records: how each of them alone would have moved the adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.base import Budget
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded, training_batch

RECORDS_A_PASS = 16  # the most records whose gradients are computed together
NUMBERS_A_PASS = 5_000_000  # of their gradients: the memory of a pass grows with these
COLUMNS = 2**16  # numbers of every gradient that are processed at once


@dataclass(frozen=True, kw_only=True)
class Products:
    """The products of n gradients g and a movement u that scores need; over several tensors they add up.

    `squares`, `along`: |g|^2 and g . u, float64 [n]. `gram`, `against`: the products of the regression's
    rows with each other and with u, [n, n] and [n]. `moved`: |u|^2.
    """

    squares: np.ndarray
    along: np.ndarray
    gram: np.ndarray
    against: np.ndarray
    moved: float


def products(gradients: np.ndarray, update: np.ndarray, optimizer: str) -> Products:
    """Return the products of gradients, float [n, d], and the round's movement, [d]."""
    n, moved = len(gradients), 0.0
    squares, along = np.zeros(n), np.zeros(n)
    gram, against = np.zeros((n, n)), np.zeros(n)
    for at in range(0, gradients.shape[1], COLUMNS):  # in float64, but never all numbers at once
        g = gradients[:, at : at + COLUMNS].astype(np.float64)
        u = update[at : at + COLUMNS].astype(np.float64)
        squares += np.square(g).sum(axis=1)
        along += g @ u
        moved += float(u @ u)
        scaled = g if optimizer == "sgd" else g / (np.sqrt(np.square(g).mean(axis=0)) + 1e-12)
        gram += scaled @ scaled.T
        against += scaled @ u
    return Products(squares=squares, along=along, gram=gram, against=against, moved=moved)


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
