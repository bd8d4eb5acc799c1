"""How far honest clients can move the adapter in one round, and a fused step held to it.

    SGD       a client's update is at most `steps x learning_rate x max_grad_norm` long
    AdamW     at most that without the norm at every coordinate, twice for longer steps (`first_clip`)
    elected   a rule that takes one side's mean at each coordinate may be longer, by sqrt(K) at most
    noise     of client-level privacy: what its accounted scale makes, and 8 standard deviations more

Weight decay adds what it takes off the adapter itself.

Guarantees: a step held by `held` is at most as long as `longest_step` says, whatever some clients sent. An
honest round is cut only where AdamW's steps average above twice its learning rate, which they do not, or
noise is beyond 8 standard deviations. Not guaranteed: anything about the direction; nor a bound for SGD
with record-level noise, whose scale is the clients' own.
"""

from __future__ import annotations

import math

import numpy as np

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import client_privacy
from fedproxy_secure.flower.masked_terms import first_clip

DEVIATIONS = 8.0
ROOM = 1.01  # for rounding


def longest_step(
    job: FederationJob, adapter: np.ndarray, *, cohort: int, threshold: int, clients: int, weight: float
) -> float:
    """Length (L2) that the fused step of a secure sum can have if all clients are honest; may be infinite.

    `adapter` float32 [d]: where clients start. `cohort` were asked, with that `threshold`; `clients` are in
    the sum, and their weights add up to `weight`.
    """
    d, local = len(adapter), job.local
    if job.privacy.unit == "client":
        return ROOM * (job.privacy.clip_norm + _noise(job, d, cohort, threshold, clients))
    if local.optimizer == "sgd":
        if job.privacy.unit == "record":
            return math.inf
        sides = 1 if job.granularity == "plain" else clients
        length = first_clip(local) * math.sqrt(sides)
    else:
        length = first_clip(local) * math.sqrt(d)
    reach = local.learning_rate * local.steps
    length += reach * local.weight_decay * float(np.linalg.norm(adapter.astype(np.float64)))
    return ROOM * length * clients / weight


def held(step: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    """`step` float32 [d], shortened to length `most` if it is longer, and the share that was taken off."""
    length = float(np.linalg.norm(step.astype(np.float64)))
    if length <= most:
        return step, 0.0
    return (step * (most / length)).astype(np.float32), 1 - most / length


def _noise(job: FederationJob, d: int, cohort: int, threshold: int, clients: int) -> float:
    """Length of the noise in the mean of `clients` that the accounted scale makes, with room."""
    made = client_privacy.noise_of(job, d=d, clients=cohort, threshold=threshold)
    steps = math.sqrt(made.variance * clients / made.summands) / clients
    return job.privacy.clip_norm / client_privacy.RESOLUTION * steps * (math.sqrt(d) + DEVIATIONS)
