"""The training loop that clients and the centralised baselines share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded, records_loss
from fedproxy_secure.errors import TrainingError
from fedproxy_secure.models.adapters import trained_parameters

Penalty = Callable[[], torch.Tensor]


def batches(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield endless index batches, int64 [batch_size]: shuffled passes over `count` records, end to end."""
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:batch_size]
        order = order[batch_size:]


def optimizer_of(
    parameters: Sequence[nn.Parameter], local: LocalConfig, *, shares: Sequence[float]
) -> torch.optim.Optimizer:
    """Return the optimizer that a client's settings name.

    Its steps take the shares of the learning rate in order, so it can take as many steps as there are.
    """
    kind: Any = torch.optim.AdamW if local.optimizer == "adamw" else torch.optim.SGD
    optimizer: torch.optim.Optimizer = kind(
        parameters, lr=local.learning_rate, weight_decay=local.weight_decay, foreach=True
    )
    rates = iter([local.learning_rate * share for share in shares])

    def next_rate(*_: Any) -> None:
        rate = next(rates)
        for group in optimizer.param_groups:
            group["lr"] = rate

    optimizer.register_step_pre_hook(next_rate)
    return optimizer


def train(
    tuned: nn.Module,
    items: Sequence[Encoded],
    *,
    steps: int,
    local: LocalConfig,
    pad_id: int,
    rng: np.random.Generator,
    subject: str,
    penalty: Penalty | None = None,
    on_step: Callable[[int], None] | None = None,
    round: int = 0,
    rounds: int = 1,
) -> float:
    """Run `steps` optimiser steps on the trained parameters; return the mean loss in nats.

    The learning rate is that of round `round` of `rounds` (`LocalConfig.shares`); by default the call is
    the whole training.

    Raises `TrainingError`, naming `subject` and the step, as soon as the loss is not a finite number.
    """
    parameters = trained_parameters(tuned)
    device = parameters[0].device
    shares = local.shares(steps=steps, round=round, rounds=rounds)
    optimizer = optimizer_of(parameters, local, shares=shares)
    stream = batches(len(items), local.batch_size, rng)
    total = 0.0
    tuned.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**62)))  # dropout
            for step in range(steps):
                loss = records_loss(tuned, [items[i] for i in next(stream)], pad_id=pad_id)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{subject}: loss={value} at local step {step}: must be finite; "
                        "lower local.learning_rate or check the records"
                    )
                total += value
                if penalty is not None:
                    loss = loss + penalty()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, local.max_grad_norm)
                optimizer.step()
                if on_step is not None:
                    on_step(step)
    finally:
        tuned.eval()  # also if training is interrupted: the model may be shared
    return total / steps
