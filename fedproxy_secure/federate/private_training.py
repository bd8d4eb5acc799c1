"""DP-SGD on a client's adapter (Abadi et al. 2016), with Opacus's per-record gradients and clipping.

Each step takes a Poisson sample of the records, clips every record's gradient to `clip_norm`, adds Gaussian
noise of `noise_multiplier x clip_norm` to their sum and divides by the *expected* number of records. What
follows (AdamW, the pull towards the broadcast adapter, H-TIES, PCR, the plug-in) sees the noisy sums only.

Guarantees: one call is `SampledGaussian(noise_multiplier, sampling_rate, steps)` in the records, for
neighbours that differ by one record being there or not; an empty sample is a step like any other. Not
covered: the returned loss, which is for the client's own eyes; how long a step takes.

Opacus's ghost clipping gives the same gradients without holding them per record; for adapters, whose
gradients are small beside the activations, it is slower and saves nothing (`make bench-dp`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import ConfigError, TrainingError
from fedproxy_secure.federate.adapters import trained_parameters

Loss = Callable[[np.ndarray], torch.Tensor]  # indices of records -> mean over them of each one's loss
LARGEST_PASS = 1.25  # records in one forward pass, over the expected batch; larger samples are split


@dataclass(frozen=True, kw_only=True)
class RecordNoise:
    """How a client's steps are made private. `sampling_rate` in (0, 1], the others >= 0."""

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float


def check_private(tuned: nn.Module) -> None:
    """Raise `ConfigError` for a model in which Opacus cannot take a record's gradient."""
    from opacus.grad_sample import GradSampleModule

    if wrong := GradSampleModule.validate(tuned):
        raise ConfigError(f"privacy.unit=record: {str(wrong[0]).splitlines()[0]}")


def train_privately(
    tuned: nn.Module,
    items: Sequence[Encoded],
    *,
    steps: int,
    local: LocalConfig,
    private: RecordNoise,
    noise: Noise,
    pad_id: int,
    who: str,
    pull: Callable[[], Sequence[torch.Tensor]] | None = None,
) -> float:
    """Take `steps` private steps on the trained parameters; the mean loss in nats, not private.

    Args:
        pull: gradients of the penalties (PCR, FedProx), one a trained parameter; they depend on what was
            broadcast and on the parameters, not on records, and are added after the noise.

    Raises `TrainingError`, naming `who` and the step, as soon as the loss is not a finite number.
    """
    device = trained_parameters(tuned)[0].device

    def loss(chosen: np.ndarray) -> torch.Tensor:
        batch = training_batch([items[i] for i in chosen], pad_id=pad_id, device=device)
        return batch_loss(tuned, batch)

    tuned.train()
    try:
        return private_steps(
            tuned,
            loss,
            records=len(items),
            steps=steps,
            optimizer=_optimizer(tuned, local),
            private=private,
            noise=noise,
            who=who,
            pull=pull,
        )
    finally:
        tuned.eval()


def private_steps(
    module: nn.Module,
    loss: Loss,
    *,
    records: int,
    steps: int,
    optimizer: torch.optim.Optimizer,
    private: RecordNoise,
    noise: Noise,
    who: str,
    pull: Callable[[], Sequence[torch.Tensor]] | None = None,
) -> float:
    """DP-SGD on any module whose layers Opacus knows; see `train_privately`.

    `loss` runs `module` itself on the chosen records and must not couple them.
    """
    from opacus.grad_sample import GradSampleModule

    parameters = [p for p in module.parameters() if p.requires_grad]
    expected = private.sampling_rate * records
    hooked = GradSampleModule(module, loss_reduction="mean", strict=True)
    guard = _noisy_optimizer(optimizer, private, noise, expected)
    total, seen = 0.0, 0
    try:
        for step in range(steps):
            guard.zero_grad(set_to_none=True)
            chosen = noise.poisson_sample(records, private.sampling_rate)
            passes = np.array_split(chosen, math.ceil(len(chosen) / max(1.0, LARGEST_PASS * expected)) or 1)
            for number, part in enumerate(passes):
                total, seen = total + _backward(loss, part, parameters), seen + len(part)
                last = number == len(passes) - 1
                guard.signal_skip_step(not last)
                if last and guard.pre_step():
                    _add(parameters, pull)
                    optimizer.step()
                    _check_finite(parameters, who, step)
                elif not last:
                    guard.step()  # clips and adds up, no more
                    guard.zero_grad(set_to_none=True)
    finally:
        hooked.to_standard_module()
        for p in parameters:
            p.grad = None
    return total / max(seen, 1)


def _backward(loss: Loss, chosen: np.ndarray, parameters: Sequence[nn.Parameter]) -> float:
    """Leave each record's gradient at the parameters; the sum of the records' losses."""
    if len(chosen) == 0:  # a model cannot run on nothing, but the step counts
        for p in parameters:
            p.grad_sample = torch.zeros((0, *p.shape), device=p.device, dtype=p.dtype)  # type: ignore[attr-defined]
        return 0.0
    value = loss(chosen)
    number = float(value.detach())
    with warnings.catch_warnings():  # of the first adapted layers: their inputs need no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        value.backward()
    _drop_what_is_not_finite(parameters)
    return number * len(chosen)


def _drop_what_is_not_finite(parameters: Sequence[nn.Parameter]) -> None:
    """Such a record's gradient counts as zero: an error would tell, without noise, that it was drawn."""
    samples: list[torch.Tensor] = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
    good = torch.stack([g.flatten(1).isfinite().all(dim=1) for g in samples]).all(dim=0)
    if not good.all():
        for sample in samples:
            sample[~good] = 0


def _check_finite(parameters: Sequence[nn.Parameter], who: str, step: int) -> None:
    """Of the adapter after noise, which may be told."""
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise TrainingError(
            f"{who}: the adapter is not finite after local step {step}; lower local.learning_rate"
        )


def _add(parameters: Sequence[nn.Parameter], pull: Callable[[], Sequence[torch.Tensor]] | None) -> None:
    if pull is not None:
        for p, more in zip(parameters, pull(), strict=True):
            assert p.grad is not None  # pre_step made it
            p.grad += more


def _optimizer(tuned: nn.Module, local: LocalConfig) -> torch.optim.Optimizer:
    kind: Any = torch.optim.AdamW if local.optimizer == "adamw" else torch.optim.SGD
    made: torch.optim.Optimizer = kind(
        trained_parameters(tuned), lr=local.learning_rate, weight_decay=local.weight_decay, foreach=True
    )
    return made


def _noisy_optimizer(
    optimizer: torch.optim.Optimizer, private: RecordNoise, noise: Noise, expected: float
) -> Any:
    """Opacus's optimiser with the noise taken from `noise`."""
    from opacus.optimizers import DPOptimizer

    class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
        def add_noise(self) -> None:
            scale = self.noise_multiplier * self.max_grad_norm if self.noise_multiplier else 0.0
            numbers = noise.gaussian(sum(p.numel() for p in self.params)) if scale else None
            at = 0
            for p in self.params:
                summed = p.summed_grad
                if numbers is not None:
                    part = torch.from_numpy(numbers[at : at + p.numel()]).view(p.shape).to(p.device)
                    summed = (summed.double() + scale * part).to(p.dtype)
                p.grad = summed.view_as(p)
                at += p.numel()

    return NoisyOptimizer(
        optimizer,
        noise_multiplier=private.noise_multiplier,
        max_grad_norm=private.clip_norm,
        expected_batch_size=expected,
        loss_reduction="mean",
    )
