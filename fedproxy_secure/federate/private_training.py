"""DP-SGD on a client's adapter (Abadi et al. 2016), with gradients of single records and Opacus's clipping.

Each step takes a Poisson sample of the records, clips every record's gradient to `clip_norm`, adds Gaussian
noise of `noise_multiplier x clip_norm` to their sum and divides by the *expected* number of records. What
follows (AdamW, the pull towards the broadcast adapter, H-TIES, PCR, the plug-back) sees noisy sums only.

A record whose gradient cannot be taken, for whatever reason, counts as one whose gradient is zero, and
nobody is told: whoever made the model could make it fail for records with a token of their choice. Faults
of a model that concern all records are found before round 0 by `check_private` and `check_fits`, on made-up
records.

A record's gradient comes from a pass of its own (`record_gradient`): what one record says, or how long it
is, cannot change another's. So one record more or less moves the sum of the clipped gradients by at most
one clip, whatever the model was made for. Each is clipped and added before the next is computed, so that
memory does not grow with the records of a step.

Guarantees: one call is `SampledGaussian(noise_multiplier, sampling_rate, steps)` in the encoded records,
for neighbours in which one record is replaced by one whose gradient is zero: the number of records is
public. An empty sample is a step like any other. It holds for real numbers: in floating point the sum of
the clipped gradients rounds. It rests on two things beside: the model keeps nothing of a pass for the
next, which `check_model` and `check_fits` look for but do not prove, and the tokenizer encodes each
record by itself. No exception of a record's pass is passed on: whether a call ends in an error, and its
text, follow from settings, from noisy sums or from the machine.

Not covered: the returned loss, which is for the client's own eyes; how long a step takes; a machine whose
memory is too small for some samples; native code that ends the process on a pass of some record, which no
proof excludes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import FedProxyError, TrainingError
from fedproxy_secure.federate.model_checks import known_tokens, longest_record
from fedproxy_secure.federate.record_gradients import Loss, usable_gradient
from fedproxy_secure.models.adapters import trained_parameters

log = logging.getLogger(__name__)


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
    """Take `steps` private steps on the trained parameters; return the mean loss, nats, not private.

    Args:
        pull: gradients of the penalties (PCR, FedProx), one per trained parameter; they depend on what was
            broadcast and on the parameters, not on records, and are added after the noise.

    Raises `TrainingError`, naming `who`: with the step, as soon as the adapter is not finite; or in one
    constant line if the machine has too little memory, or for anything that nobody thought of.
    """
    device = trained_parameters(tuned)[0].device
    rows, positions = known_tokens(tuned), longest_record(tuned)
    taken: dict[int, Encoded] = {}

    def usable(index: int) -> bool:
        item = taken[index] = items[index]
        longest = len(item.ids) if positions is None else positions
        fits = 0 < item.response_start < len(item.ids) <= longest
        return fits and min(item.ids) >= 0 and max(item.ids) < rows

    def loss(chosen: np.ndarray) -> torch.Tensor:
        batch = training_batch([taken[i] for i in chosen], pad_id=pad_id, device=device)
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
            usable=usable,
        )
    except FedProxyError:
        raise
    except Exception:  # its text may be about a record
        log.info("%s: training failed", who, exc_info=True)
        raise TrainingError(f"{who}: training failed; the client's own log says why") from None
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
    usable: Callable[[int], bool] | None = None,
) -> float:
    """Run DP-SGD on any module; see `train_privately`.

    `loss` is asked for one record at a time. A record that is not `usable` never reaches it, and counts
    like one for which it fails.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    expected = private.sampling_rate * records
    guard = _noisy_optimizer(optimizer, private, noise, expected)
    total, seen, failed = 0.0, 0, 0
    try:
        for step in range(steps):
            guard.zero_grad(set_to_none=True)
            for index in noise.poisson_sample(records, private.sampling_rate).tolist():
                takes_it = usable is None or usable(index)
                found = usable_gradient(loss, index, parameters) if takes_it else None
                if found is None:
                    failed += 1
                    continue
                value, gradients = found
                total, seen = total + value, seen + 1
                _hand_over(parameters, [g[None] for g in gradients])
                guard.signal_skip_step(True)
                guard.step()  # clips and adds up, no more
                guard.zero_grad(set_to_none=True)
            # an empty sample is a step like any other, and every other step ends like one
            _hand_over(parameters, [p.new_zeros((0, *p.shape)) for p in parameters])
            guard.signal_skip_step(False)
            if guard.pre_step():
                _add(parameters, pull)
                optimizer.step()
                _check_finite(parameters, who, step)
    finally:
        for p in parameters:
            p.grad = None
            for name in ("grad_sample", "summed_grad"):
                p.__dict__.pop(name, None)
    if failed:
        log.info("%s: %d times a drawn record gave no gradient and counted as zero", who, failed)
    return total / max(seen, 1)


def _hand_over(parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Give Opacus the gradients of some records, [records, *shape] per parameter."""
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad_sample = gradient  # type: ignore[attr-defined]


def _check_finite(parameters: Sequence[nn.Parameter], who: str, step: int) -> None:
    """Raise `TrainingError` if the adapter, which is noisy and so may be told, is not finite."""
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
    optimizer: torch.optim.Optimizer = kind(
        trained_parameters(tuned), lr=local.learning_rate, weight_decay=local.weight_decay, foreach=True
    )
    return optimizer


def _noisy_optimizer(
    optimizer: torch.optim.Optimizer, private: RecordNoise, noise: Noise, expected: float
) -> Any:
    """Return Opacus's optimiser with the noise taken from `noise`."""
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
