"""Checks that a model can be trained privately: on made-up records, before any real record is read.

A model that fails for some records only, or that remembers a record, would reveal their content to whoever
made the model.

Guarantees: a model that passes gives a gradient for records of the shortest and the longest length that the
settings allow, with the last token that it knows. Not guaranteed: that it keeps nothing of a pass; only its
buffers and the gradients of the made-up records are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.errors import ConfigError, ModelError
from fedproxy_secure.federate.record_gradients import OF_THE_MACHINE, record_gradient
from fedproxy_secure.models.adapters import trained_parameters

SAME_GRADIENT = 0.01  # relative L2 difference; accelerators do not repeat sums exactly


def check_private(tuned: nn.Module) -> None:
    """Raise `ConfigError` for layers that Opacus refuses; some of them keep records in buffers."""
    from opacus.grad_sample import GradSampleModule

    if refused := GradSampleModule.validate(tuned):
        raise ConfigError(f"privacy.unit=record: {str(refused[0]).splitlines()[0]}")


def check_fits(tuned: nn.Module, *, tokens: int, longest: int, pad_id: int) -> None:
    """Raise `ModelError` if the model cannot compute the gradient of every record that the settings allow.

    No real record is read. Two made-up records are tried, of 3 and of `longest` tokens. The short one must
    have the same gradient before and after the long one (up to `SAME_GRADIENT`), and neither may change a
    buffer of the model: in a model that remembers records, one record affects the next.

    Args:
        tokens: one more than the largest token that the tokenizer can give.
        longest: tokens in the longest record that the settings allow, >= 8.
        pad_id: the token that pads shorter records.
    """
    rows, positions = known_tokens(tuned), longest_record(tuned)
    if rows < tokens:
        raise ModelError(f"proxy: has embeddings of {rows} tokens; must have {tokens}, its tokenizer's")
    if not 0 <= pad_id < rows:
        raise ModelError(f"proxy: pads with token {pad_id}; must be in [0, {rows})")
    if positions is not None and positions < longest:
        raise ModelError(f"proxy: has {positions} positions; must have {longest} (data.max_tokens)")
    short = Encoded(ids=(0, rows - 1, 0), response_start=1)
    long = Encoded(ids=(rows - 1,) * longest, response_start=2)
    first, before = _rehearsed(tuned, short, pad_id)
    _, after = _rehearsed(tuned, long, pad_id)
    repeated, _ = _rehearsed(tuned, short, pad_id)
    same_buffers = before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    difference, length = float((repeated - first).norm()), float(first.norm())
    if not same_buffers or not difference <= SAME_GRADIENT * length:  # also if it is NaN
        raise ModelError(
            "proxy: one record changes the outputs for the next; must keep no state between passes"
        )


def _rehearsed(
    tuned: nn.Module, item: Encoded, pad_id: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the flat gradient of one made-up record, and the model's buffers after its pass."""
    parameters = trained_parameters(tuned)
    device = parameters[0].device

    def loss(_: np.ndarray) -> torch.Tensor:
        return batch_loss(tuned, training_batch([item], pad_id=pad_id, device=device))

    tuned.eval()
    try:
        _, gradients = record_gradient(loss, 0, parameters)
        buffers = {name: buffer.detach().clone() for name, buffer in tuned.named_buffers()}
        flat = torch.cat([g.reshape(-1).float() for g in gradients])
    except OF_THE_MACHINE:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"proxy: gives no gradients of made-up records: {reason}") from error
    if not bool(torch.isfinite(flat).all()):
        raise ModelError("proxy: gives gradients of made-up records that are not finite; must be finite")
    return flat, buffers


def known_tokens(tuned: Any) -> int:
    """Return how many tokens the model knows, as input and as output."""
    embeddings = (tuned.get_input_embeddings(), tuned.get_output_embeddings())
    return min(int(embedding.weight.shape[0]) for embedding in embeddings if embedding is not None)


def longest_record(tuned: Any) -> int | None:
    """Return how many tokens a record may have, or None if the model's settings do not say."""
    positions = getattr(tuned.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
