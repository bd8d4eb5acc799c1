"""Client-level differential privacy inside masking: integer noise in every client's words.

A client clips its update to `clip_norm`, rounds it to `RESOLUTION` steps of that norm, and adds its share
of the noise before it masks. The target is met by the noise of t - c clients alone (threshold minus
colluders). So it is still met if only t clients survive and c of them tell the server their noise.

Guarantees: for neighbouring inputs, in which one client's vector is replaced by zero, the sums of all
rounds together are (epsilon, delta)-DP as the client's ledger says, whatever the server does. A client
computes the ring and the noise from its own settings. A round has one cohort and one threshold, so that no
client's noise is drawn anew while another repeats its own. Training that fails, for whatever reason, sends
zeros with noise and is paid for like any other (`trained_or_zero`). Not covered: the fact that a client
takes part (a client whose records cannot be read at set-up does not); how long training takes; native code
that ends the process; the number of clients. With few clients the noise drowns the sum: see
`signal_to_noise`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedproxy_secure.config import PrivacyConfig
from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.accounting import variance_for
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.dp.ledger import PrivacyLedger
from fedproxy_secure.dp.noise import Noise, simulated_key
from fedproxy_secure.errors import ConfigError, DataError, FedProxyError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.protect.broadcast import train_from
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.terms import Terms, least_threshold
from fedproxy_secure.wire import Broadcast

if TYPE_CHECKING:  # it imports torch
    from fedproxy_secure.federate.client import LocalClient

log = logging.getLogger(__name__)
RESOLUTION = 2**12  # steps in a clip norm


def ring_clip(privacy: PrivacyConfig, *, bits: int, clients: int) -> float:
    """Return the clip for which a ring's step is `clip_norm / RESOLUTION`, with room above for noise."""
    levels = int((2 ** (bits - 1) - 1) // clients)
    return privacy.clip_norm * levels / RESOLUTION


def noise_of(job: FederationJob, *, d: int, clients: int, threshold: int) -> DiscreteSum:
    """Return one round's noisy sum, whose noise reaches the target over all rounds.

    The fewest honest clients that a sum can have add that noise. One at least is not counted: every client
    receives the sum, and may subtract the noise that it added itself.

    Raises `ConfigError` if the target cannot be reached, delta is not below one client's share of them all,
    or the ring has no room for the noise.
    """
    honest = threshold - max(1, job.protect.colluders)
    if job.privacy.target_delta * clients >= 1:
        raise ConfigError(
            f"privacy.target_delta={job.privacy.target_delta:g}: must be below 1 / {clients} clients; "
            "otherwise publishing one client at random would satisfy it"
        )
    l2 = RESOLUTION + math.sqrt(d) / 2  # rounding to the nearest step moves a coordinate by half at most
    l1 = min(math.sqrt(d) * l2, l2**2)
    privacy = job.privacy
    variance = _variance(
        privacy.target_epsilon,
        privacy.target_delta,
        privacy.mechanism,
        l2,
        l1,
        d,
        honest,
        job.federate.rounds,
    )
    most = RESOLUTION + discrete.support(variance / honest)
    if variance / honest > discrete.MOST_VARIANCE or clients * most >= 2 ** (job.protect.bits - 1):
        raise ConfigError(
            f"protect.bits={job.protect.bits}: has no room for the noise of {clients} clients at "
            f"privacy.target_epsilon={privacy.target_epsilon}"
        )
    return DiscreteSum(
        mechanism=privacy.mechanism, variance=variance, l2=l2, l1=l1, dimension=d, summands=honest, rounds=1
    )


@lru_cache(maxsize=64)
def _variance(
    epsilon: float, delta: float, mechanism: str, l2: float, l1: float, d: int, honest: int, rounds: int
) -> float:
    return variance_for(
        target_epsilon=epsilon,
        delta=delta,
        mechanism="skellam" if mechanism == "skellam" else "discrete_gaussian",
        l2=l2,
        l1=l1,
        dimension=d,
        summands=honest,
        rounds=rounds,
    )


def signal_to_noise(job: FederationJob, sizes: Sequence[int]) -> float:
    """Return a sum's length over its noise's length, if all clients agree and use their whole norm."""
    clients, d = job.clients_a_round, sum(sizes)
    noisy_sum = noise_of(job, d=d, clients=clients, threshold=planned_threshold(job))
    total = noisy_sum.variance * clients / noisy_sum.summands
    return clients * RESOLUTION / math.sqrt(d * total)


def planned_threshold(job: FederationJob, clients: int | None = None) -> int:
    """Return the threshold t of a round of `clients` (None: a whole cohort): the least that is allowed."""
    least = least_threshold(clients or job.clients_a_round, job.protect.colluders)
    return max(least, job.protect.threshold or 0, job.protect.min_cohort or 0, job.federate.min_clients)


def check_threshold(job: FederationJob, terms: Terms) -> None:
    """Raise `ProtocolAborted` if an attempt's threshold is not the one that the settings imply.

    A client's noise follows from the threshold, and a client is hidden by the noise of all clients. A
    server that may choose the threshold would ask all clients but one with another threshold, so that those
    draw new noise, and then ask all with the first threshold again. The one client repeats its words and
    noise, for which its ledger charges nothing, and the mean of many such sums has almost none of the
    others' noise.
    """
    planned = planned_threshold(job, len(terms.cohort))
    if terms.threshold != planned:
        raise ProtocolAborted(f"threshold={terms.threshold}: must be {planned} with privacy.unit=client")


def trained_or_zero(client: LocalClient, broadcast: Broadcast) -> ClientUpdate:
    """Train; return zeros if that fails or the update is not finite, and report it to the client only.

    Whoever makes the proxy or the broadcast could make training fail on records of their choice. A failure
    that anybody else learns of would then be a bit about this client without noise. The client's own log
    has it at level ERROR, and `client.on_failed` is called.
    """
    who = f"{client.name}, round {broadcast.round}"
    try:
        update = train_from(client, broadcast)
        if np.isfinite(update.update).all():
            return update
        why = "the update is not finite; lower local.learning_rate or check the records"
        log.error("%s: %s; zeros count", who, why)
    except Exception as error:  # any error may depend on a record
        why = str(error) if isinstance(error, FedProxyError) else type(error).__name__
        log.exception("%s: training failed; zeros count", who)
    if client.on_failed is not None:
        try:
            client.on_failed(broadcast.round, why)
        except Exception:  # passed on, it would tell the server what the zeros hide
            log.exception("%s: that training failed could not be written down", who)
    zeros = ClientUpdate(
        client=client.name,
        update=np.zeros(sum(client.sizes), dtype=np.float32),
        loss=0.0,
        steps=client.local.steps,
        seconds=0.0,
        truncated=0,
    )
    if client.on_trained is not None:
        client.on_trained(broadcast.round, zeros, [])
    return zeros


def add_noise(
    words: np.ndarray,
    plan: RingPlan,
    job: FederationJob,
    *,
    client: str,
    terms: Terms,
) -> None:
    """Add this client's share of the noise to the segment `update` of its words, in place.

    The client's ledger has the round before the noise is drawn, and the noisy words afterwards: a client
    that is asked again with the same words gives the very same noisy words. Raises `PrivacyError` if the
    round would spend more than allowed.
    """
    segment = plan.segment("update")
    noisy = noise_of(job, d=segment.length, clients=len(terms.cohort), threshold=terms.threshold)
    update_words = words[plan.place_of("update")]
    _check_sensitivity(update_words, plan, noisy.l2)
    privacy = job.privacy
    if privacy.ledger is None:
        raise ConfigError("privacy.ledger: must name the folder in which to write what was spent")
    ledger = PrivacyLedger(
        folder=Path(privacy.ledger),
        client=client,
        run=job.agreed_sha256().hex(),
        unit="client",
        delta=privacy.target_delta,
        max_epsilon=privacy.limit,
    )
    ledger.open()
    names = "|".join([str(terms.threshold), *terms.cohort]).encode()
    # with the words: if training does not repeat to the bit, another attempt needs its own noise
    inputs = digest(terms.broadcast_sha256, names, update_words.tobytes())

    def computed(key: bytes) -> bytes:
        if privacy.randomness == "unsafe_simulated":
            key = simulated_key(job.seed, client, terms.round)
        share = noisy.variance / noisy.summands
        drawn = discrete.draw(noisy.mechanism, share, Noise(key), segment.length)
        return bytes((update_words + drawn.astype(words.dtype)).tobytes())

    result = ledger.once(round=terms.round, inputs_sha256=inputs, event=noisy, compute=computed)
    update_words[:] = np.frombuffer(result, dtype=words.dtype)


def _check_sensitivity(words: np.ndarray, plan: RingPlan, l2: float) -> None:
    signed = words.astype(np.int64)
    signed[signed >= 2 ** (plan.bits - 1)] -= 2 ** (8 * words.itemsize)
    if float(np.linalg.norm(signed.astype(np.float64))) > l2:  # the error does not tell how long
        raise DataError(f"clipped update: is longer than the {l2:.1f} steps that the noise covers")
