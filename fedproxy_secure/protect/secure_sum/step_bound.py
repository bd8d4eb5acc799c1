"""The bound on a fused step: how far honest clients can move the adapter in one round.

    SGD       a client's update is at most `rates x max_grad_norm` long (`usual_reach`)
    AdamW     every coordinate of it is at most `2 x rates`
    elected   rules that elect signs average over one side of K clients: up to sqrt(K) times longer
    noise     client-level privacy adds noise of its accounted scale, with room for 8 standard deviations

Here `rates` is the sum of the learning rates of the round's steps. Weight decay adds `rates x weight_decay`
times the length of the adapter.

Guarantees: a step that `held` returns is at most as long as `longest_step` says, for any messages of some
clients. An honest round is cut only if AdamW's steps average above twice its learning rate, which is not
expected, or if noise is beyond 8 standard deviations. Not guaranteed: anything about the direction; a bound
for SGD with record-level noise, whose scale is the clients' own.
"""

from __future__ import annotations

import math

import numpy as np

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.protect.secure_sum import noise as client_privacy
from fedproxy_secure.protect.secure_sum.terms import usual_reach

DEVIATIONS = 8.0
ROOM = 1.01  # for rounding


def longest_step(
    job: FederationJob,
    adapter: np.ndarray,
    *,
    round: int,
    cohort: int,
    threshold: int,
    clients: int,
    weight: float,
) -> float:
    """Return the L2 length that a secure sum's step can have if all clients are honest; may be infinite.

    `adapter`, float32 [d], is where clients start in `round`. `cohort` clients were asked, with the given
    `threshold`. `clients` of them are in the sum, and their weights add up to `weight`.
    """
    d, local = len(adapter), job.local
    if job.privacy.unit == "client":
        return ROOM * (job.privacy.clip_norm + _noise(job, d, cohort, threshold, clients))
    if local.optimizer == "sgd":
        if job.privacy.unit == "record":
            return math.inf
        sides = 1 if job.granularity == "plain" else clients
        length = usual_reach(job, round) * math.sqrt(sides)
    else:
        length = usual_reach(job, round) * math.sqrt(d)
    length += job.total_rate(round) * local.weight_decay * float(np.linalg.norm(adapter.astype(np.float64)))
    return ROOM * length * clients / weight


def held(step: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    """Return `step`, float32 [d], shortened to the length `most` if it is longer, and the share cut off."""
    length = float(np.linalg.norm(step.astype(np.float64)))
    if length <= most:
        return step, 0.0
    return (step * (most / length)).astype(np.float32), 1 - most / length


def _noise(job: FederationJob, d: int, cohort: int, threshold: int, clients: int) -> float:
    """Return the length of the noise in a mean of `clients` under the accounted scale, with room."""
    noisy_sum = client_privacy.noise_of(job, d=d, clients=cohort, threshold=threshold)
    steps = math.sqrt(noisy_sum.variance * clients / noisy_sum.summands) / clients
    return job.privacy.clip_norm / client_privacy.RESOLUTION * steps * (math.sqrt(d) + DEVIATIONS)
