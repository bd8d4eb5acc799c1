"""Computations that server and clients of a masked round share: the ring, the clip, a client's values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedproxy_secure.config import cohort_size
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.federate.fusion.elections import election_of, weighs_clients
from fedproxy_secure.federate.job import AgreedSettings, FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.protect.secure_sum.noise import clip_to_norm
from fedproxy_secure.secagg.control import MOST_OVER_CLIP, SEGMENTS, Control, Expected
from fedproxy_secure.secagg.granularity import Layout, contribution, segments_of
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.sketch import LEAST_WEIGHT, Standing
from fedproxy_secure.secagg.terms import least_threshold

CLIP_MARGIN = 1.5  # the next clip over the mean of the clients' largest values, if nothing was clipped
ADAM_LONGEST_STEP = 3.2  # in learning rates, per step
MOST_CUT = 0.05  # share of a client's nonzero coordinates that a clip proposed by the server may cut


def ring_plan(job: FederationJob, sizes: Sequence[int], *, clip: float, clients: int) -> RingPlan:
    """Return the ring of a round of `clients` clients.

    It is the same on both sides, because it depends only on the job, the clip and the number of clients.

    Raises `ConfigError` for a ring in which the sum could wrap.
    """
    bits, layout = job.protect.bits, Layout(sizes=tuple(sizes))
    value_segments = segments_of(job.granularity, layout, clip=clip, clients=clients, bits=bits)
    return RingPlan(bits=bits, clients=clients, segments=(*value_segments, *SEGMENTS))


def run_name(job: FederationJob) -> str:
    """Return the run's name, which follows from what all parties agreed on: no side can choose it."""
    return job.agreed_sha256().hex()[:16]


def usual_reach(job: AgreedSettings, round: int) -> float:
    """Return how far a coordinate can move in a round without weight decay, with room for most steps.

    Weight decay moves it farther: by `learning_rate x weight_decay` times its own value per step. Values
    beyond a clip are cut and counted.

    SGD: at most the sum of the steps' learning rates times `max_grad_norm`. AdamW moves a coordinate by
    about its learning rate per step at most; twice that leaves room for rare longer steps (up to 3.2 x,
    Kingma & Ba 2015).
    """
    reach, local = job.total_rate(round), job.local
    return reach * local.max_grad_norm if local.optimizer == "sgd" else 2 * reach


def first_clip(job: AgreedSettings) -> float:
    """Return the clip of the first round, `usual_reach`."""
    return usual_reach(job, 0)


def largest_clip(job: AgreedSettings, round: int) -> float:
    """Return the largest clip that a client accepts in a round: how far a coordinate can move in it.

    SGD: `usual_reach`. AdamW: .1 / sqrt(.001) = 3.2 times the learning rate per step, the longest step of
    its default betas (Kingma & Ba 2015, section 2.1). Where a schedule lowers the rates, later rounds have
    smaller clips, so that no server can make the ring coarse for the smaller updates.
    """
    return usual_reach(job, round) * (1.0 if job.local.optimizer == "sgd" else ADAM_LONGEST_STEP / 2)


def least_sum(job: FederationJob, *, clients: int) -> int:
    """Return the least number of clients in a sum, for a client whose roster has `clients` clients.

    It is the threshold of the cohort that `federate.participation` takes from the whole roster, so that a
    server cannot choose a smaller cohort, or `protect.min_cohort` if that is more.
    """
    planned = cohort_size(clients, job.federate.participation)
    return max(job.protect.min_cohort or 0, least_threshold(planned, job.protect.colluders))


def next_clip(clip: float, control: Control) -> float:
    """Return the next round's clip: near what clients needed, or double if it was too small for some.

    A client refuses a round whose clip would cut more than `MOST_CUT` of its coordinates, and a round's
    clip is fixed once it was asked for. So the client with the largest updates may be shut out of round
    after round, because the clip that it would need never enters the sum from which the next clip follows.
    This costs availability, but reveals nothing.
    """
    if control.clipped:
        return 2 * clip
    needed = clip * control.largest / control.clients
    return max(CLIP_MARGIN * needed, clip / 16) if needed > 0 else clip


def parts_of(
    update: ClientUpdate,
    job: FederationJob,
    sizes: Sequence[int],
    plan: RingPlan,
    *,
    previous: np.ndarray | None,
    standing: Standing | None = None,
) -> tuple[dict[str, np.ndarray], Control]:
    """Return a client's values for the ring, and its control numbers.

    `previous` is for weights `self`: it is the last round's fused step as this client saw it, and H-TIES'
    weight and retention (Eq. 5, 6, 10) are computed with it in place of the other clients. `standing` is
    for weights `encrypted_gram`: weight and retention that follow from the clients' cosines.

    Raises `ProtocolAborted` if a clip that the server proposed cuts more than `MOST_CUT` of the values. A
    value that is cut becomes the clip or minus the clip, so the sum of many such values tells how many
    clients were above zero, which only `granularity: coordinate` may reveal.
    """
    tau, weight = update.update, 1.0
    fusion, election = job.fusion, election_of(job.fusion)
    if election is not None:
        retention = election.kept_share(fusion)
        if election.weighs_clients and standing is not None:
            weight, retention = standing.weight, standing.retention
        elif election.weighs_clients and job.protect.weights == "self" and previous is not None:
            cosine = _cosine(tau, previous)
            weight = float(np.exp(abs(cosine) - 1))
            retention = fusion.r0 - fusion.delta * (1 - max(cosine, 0.0))
        tau = keep_largest(tau, retention)
    if job.privacy.unit == "client":
        # nothing but the noisy sum may depend on the update, so the control numbers are constant
        tau = clip_to_norm(tau, job.privacy.clip_norm)
        numbers = Control(weight=1.0, loss=0.0, steps=update.steps, clipped=0, largest=0.0)
        layout = Layout(sizes=tuple(sizes))
        return contribution(tau, job.granularity, layout, plan), numbers
    clip = plan.segment("update").clip or 0.0
    top = float(np.abs(tau).max(initial=0.0))
    cut = int(np.count_nonzero(np.abs(tau) > clip)) if top > clip else 0
    if job.protect.clip is None and cut > MOST_CUT * np.count_nonzero(tau):
        raise ProtocolAborted(f"clip {clip:g}: cuts more than {MOST_CUT:.0%} of this client's coordinates")
    numbers = Control(
        weight=weight,
        loss=update.loss,
        steps=update.steps,
        clipped=cut,
        largest=min(top / clip, MOST_OVER_CLIP),
    )
    layout = Layout(sizes=tuple(sizes))
    return contribution(tau, job.granularity, layout, plan, weight=weight), numbers


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine in [-1, 1], even for vectors as small or as large as float32 allows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    return float(np.clip(np.dot(x, y) / scale, -1.0, 1.0)) if scale else 0.0


def expected_numbers(job: FederationJob, *, d: int) -> Expected:
    """Return the control numbers that a client's settings require, for an adapter of `d` numbers."""
    weighted = weighs_clients(job.fusion) and job.protect.weights != "uniform"
    return Expected(
        least_weight=LEAST_WEIGHT if weighted else 1.0,
        steps=job.local.steps,
        coordinates=d,
        silent=job.privacy.unit == "client",
    )
