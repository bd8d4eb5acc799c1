"""Computations that server and clients of a masked round share: the ring, the clip, a client's values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedproxy_secure.config import cohort_size
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.fusion.elections import weighs_clients
from fedproxy_secure.federate.job import AgreedSettings, FederationJob
from fedproxy_secure.federate.sent import trimmed
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.secagg.control import MOST_OVER_CLIP, SEGMENTS, Control, Expected
from fedproxy_secure.secagg.granularity import Layout, contribution, segments_of
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.sketch import LEAST_WEIGHT, Standing
from fedproxy_secure.secagg.terms import least_threshold

CLIP_MARGIN = 1.5  # the next clip over the mean of the clients' largest values, if nothing was clipped
ADAM_LONGEST_STEP = 3.2  # in learning rates, per step
SAME_CLIP = 1e-9  # relative; parties' machines may compute a round's learning rates with other last digits
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
    """Return how far a coordinate can move in a round: exactly for SGD, for AdamW twice its usual step.

    Weight decay moves it farther than that: by `learning_rate x weight_decay` times its own value per step.
    Values beyond a clip are cut and counted.

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


def chosen_clip(job: AgreedSettings, round: int) -> float | None:
    """Return the clip that `protect.clip` gives a round; None if the settings name none.

    Where a schedule lowers the rates, it is `largest_clip` if that is smaller: a clip that suits the first
    round would make the ring too coarse for the updates of the last one.
    """
    clip = job.protect.clip
    if clip is None or job.local.schedule == "constant":
        return clip
    return min(clip, largest_clip(job, round))


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

    `previous` and `standing` are what weights other than `uniform` follow from (`federate.sent.trimmed`).

    Raises `ProtocolAborted` if a clip that the server proposed cuts more than `MOST_CUT` of the values. A
    value that is cut becomes the clip or minus the clip, so the sum of many such values tells how many
    clients were above zero, which only `granularity: coordinate` may reveal.
    """
    tau, weight = trimmed(update.update, job, previous=previous, standing=standing)
    if job.privacy.unit == "client":
        # nothing but the noisy sum may depend on the update, so the control numbers are constant
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


def expected_numbers(job: FederationJob, *, d: int) -> Expected:
    """Return the control numbers that a client's settings require, for an adapter of `d` numbers."""
    weighted = weighs_clients(job.fusion) and job.protect.weights != "uniform"
    return Expected(
        least_weight=LEAST_WEIGHT if weighted else 1.0,
        steps=job.local.steps,
        coordinates=d,
        silent=job.privacy.unit == "client",
    )
