"""DP-SGD on a client's adapter (Abadi et al. 2016), with gradients of single records and exact noise.

Each step takes a Poisson sample of the records, clips every record's gradient to `clip_norm`, adds Gaussian
noise of `noise_multiplier x clip_norm` to their sum and divides by a public number, the batch size of the
settings. What follows (AdamW, the pull towards the broadcast adapter, H-TIES, PCR, the plug-back) sees
noisy sums only. Among it is the learning rate, which follows a public schedule: it multiplies what a step
has already released, so a schedule changes neither the noise nor epsilon.

A record whose gradient cannot be computed, for any reason, counts as one whose gradient is zero, without an
error: whoever made the model could make it fail for records with a token of their choice. Faults of a model
that concern all records are found before round 0 by `check_private` and `check_fits`, on made-up records. A
record's gradient comes from a pass of its own (`record_gradient`), so neither the content nor the length of
one record can change another's gradient.

Guarantees: one call is `SampledGaussian(noise_multiplier, sampling_rate, steps)` in the encoded records.
Neighbours are two sets of records, one of which has one record more. Equivalently, one record is replaced
by one without gradient (zero-out): such a record adds nothing to any sum, is sampled by a coin of its own,
and so can be left out without changing the law of anything that is released.

Proof. `s` is `NOISE_STEPS`, and one step of the grid is `noise_multiplier x clip_norm / s`.

1. *Nothing depends on how many records there are.* Rate, noise, number of steps and divisor come from the
   caller, which takes them from public numbers (`record_noise`). The number of sampled records is not used,
   and an empty sample is a step like any other.
2. *A record moves the sum by at most one clip.* Its gradient, scaled to at most `clip_norm`, is rounded
   towards zero to whole steps of the grid, which makes no number larger, and so not the length. The sum of
   squares of these integers is computed exactly and compared with `(s / noise_multiplier)^2`; a record
   above it would count as zero. So no earlier rounding matters. Integers add up exactly: they are far below
   2^53.
3. *The noise is Gaussian.* What is released is `S + round(Z)`, with S the integer sum and Z normal of
   deviation s. As S is an integer, that is `round(S + Z)`: post-processing of the Gaussian mechanism on
   real numbers, whose deviation is `noise_multiplier` times the most that a record moves S. `round(Z)` is
   drawn from a table (`discrete`). What happens after that, in floating point, is post-processing.
4. *Steps compose.* The sums are computed at parameters that follow from what earlier steps released, and
   samples and noise of all steps are independent. There is no dropout: its masks come from a generator of
   32 bits, and one record more would change those of all records after it.

The noise's law is within `discrete.DISTANCE` = 2^-100 a number of the named one (statistical distance). For
D numbers in all that adds (1 + e^epsilon) D 2^-100 to delta, for which `accounting` leaves room.

The proof also assumes that AES-256 is a pseudo-random function; that the model keeps nothing of a pass for
the next, which `check_private` and `check_fits` look for but do not prove; and that the tokenizer encodes
each record by itself. No exception of a record's pass is passed on: whether a call ends in an error, and
its text, follow from settings, from noisy sums or from the machine.

Not covered: the returned loss, which only the client may see; how long a step takes; a machine whose memory
is too small for some samples; native code that ends the process on a pass of some record, which no proof
excludes. With `noise_multiplier` 0 nothing is rounded and nothing is private.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import LEAST_NOISE, RecordNoise
from fedproxy_secure.errors import DataError, FedProxyError, TrainingError
from fedproxy_secure.federate.model_checks import known_tokens, longest_record
from fedproxy_secure.federate.record_gradients import Loss, usable_gradient
from fedproxy_secure.federate.training import optimizer_of
from fedproxy_secure.models.adapters import trained_parameters

log = logging.getLogger(__name__)
NOISE_STEPS = 2**13  # the noise's deviation in steps of the grid that gradients are rounded to


def train_privately(
    tuned: nn.Module,
    items: Sequence[Encoded],
    *,
    steps: int,
    local: LocalConfig,
    private: RecordNoise,
    noise: Noise,
    pad_id: int,
    subject: str,
    pull: Callable[[], Sequence[torch.Tensor]] | None = None,
    round: int = 0,
    rounds: int = 1,
) -> None:
    """Take `steps` private steps on the trained parameters.

    Args:
        pull: gradients of the penalties (PCR, FedProx), one per trained parameter; they depend on what was
            broadcast and on the parameters, not on records, and are added after the noise.
        round: which of the `rounds` of the whole training this is; they decide the learning rate
            (`LocalConfig.shares`). By default the call is the whole training.

    Raises `TrainingError`, naming `subject`: with the step, as soon as the adapter is not finite; or in one
    constant line if the machine has too little memory, or for any unexpected error.
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

    shares = local.shares(steps=steps, round=round, rounds=rounds)
    tuned.eval()  # no dropout: its masks have a 32-bit seed, and one record more would change all others'
    try:
        private_steps(
            tuned,
            loss,
            records=len(items),
            steps=steps,
            optimizer=optimizer_of(trained_parameters(tuned), local, shares=shares),
            private=private,
            noise=noise,
            divisor=local.batch_size,
            subject=subject,
            pull=pull,
            usable=usable,
        )
    except FedProxyError:
        raise
    except Exception:  # its text may describe a record, so only the client's own log has it
        log.exception("%s: training failed", subject)
        raise TrainingError(f"{subject}: training failed; the client's own log says why") from None


def private_steps(
    module: nn.Module,
    loss: Loss,
    *,
    records: int,
    steps: int,
    optimizer: torch.optim.Optimizer,
    private: RecordNoise,
    noise: Noise,
    divisor: float,
    subject: str,
    pull: Callable[[], Sequence[torch.Tensor]] | None = None,
    usable: Callable[[int], bool] | None = None,
) -> None:
    """Run DP-SGD on any module; see `train_privately`.

    Args:
        loss: called with one record at a time.
        divisor: divides each noisy sum, > 0; must not depend on the records.
        usable: whether a record may be passed to `loss`; one that may not counts as if `loss` had failed.

    Raises `DataError` for a noise multiplier in (0, LEAST_NOISE), `TrainingError` if a parameter is not
    finite after a step.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    failed = 0
    try:
        for step in range(steps):
            noisy = _NoisySum(parameters, private)
            for index in noise.poisson_sample(records, private.sampling_rate).tolist():
                is_usable = usable is None or usable(index)
                result = usable_gradient(loss, index, parameters) if is_usable else None
                if result is None or not noisy.add(result[1]):
                    failed += 1
            for p, gradient in zip(parameters, noisy.released(noise, divisor), strict=True):
                p.grad = gradient
            _add(parameters, pull)
            optimizer.step()
            _check_finite(parameters, subject, step)
    finally:
        for p in parameters:
            p.grad = None
    if failed:
        log.info("%s: %d times a drawn record gave no gradient and counted as zero", subject, failed)


class _NoisySum:
    """The sum of one step: clipped gradients in whole steps of a grid, then noise; see the module's proof.

    Integers are held as float64, in which sums and products of integers are exact below 2^53.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], private: RecordNoise) -> None:
        scale = private.noise_multiplier
        if 0 < scale < LEAST_NOISE:
            raise DataError(f"noise_multiplier={scale:g}: must be 0 or >= {LEAST_NOISE:g}")
        self._parameters, self._clip, self._noisy = parameters, private.clip_norm, scale > 0
        # a clip in steps of the grid, and the largest sum of squares that a record may have
        self._length = NOISE_STEPS / scale if self._noisy else private.clip_norm
        self._most = math.floor((NOISE_STEPS / Fraction(scale)) ** 2) if self._noisy else math.inf
        count = sum(p.numel() for p in parameters)
        self._sum = torch.zeros(count, dtype=torch.float64, device=parameters[0].device)

    def add(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Add a record's gradient, clipped; return whether it counts. Its numbers must be finite."""
        flat = torch.cat([g.reshape(-1) for g in gradients]).double()
        # a little less than the clip, so that no rounding of this product exceeds it
        flat *= self._length * (1 - 2.0**-30) / max(float(torch.linalg.vector_norm(flat)), self._clip)
        if self._noisy:
            flat.trunc_()
        if not float(flat.dot(flat)) <= self._most:
            return False
        self._sum += flat
        return True

    def released(self, noise: Noise, divisor: float) -> list[torch.Tensor]:
        """Return the noisy sum divided by `divisor`, shaped like the parameters. Call it once."""
        if self._noisy:
            drawn = discrete.draw("rounded_gaussian", float(NOISE_STEPS**2), noise, len(self._sum))
            self._sum += torch.from_numpy(drawn).to(self._sum.device)
        scaled = self._sum * (self._clip / self._length / divisor)
        parts = scaled.split([p.numel() for p in self._parameters])
        return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, self._parameters, strict=True)]


def _check_finite(parameters: Sequence[nn.Parameter], subject: str, step: int) -> None:
    """Raise `TrainingError` if the adapter is not finite; it is noisy, so the error reveals no record."""
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise TrainingError(
            f"{subject}: the adapter is not finite after local step {step}; lower local.learning_rate"
        )


def _add(parameters: Sequence[nn.Parameter], pull: Callable[[], Sequence[torch.Tensor]] | None) -> None:
    if pull is not None:
        for p, gradient in zip(parameters, pull(), strict=True):
            assert p.grad is not None
            p.grad += gradient
