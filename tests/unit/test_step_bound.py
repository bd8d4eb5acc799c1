"""How long a fused step may be: what honest clients can reach, and no more, whatever one of them sends."""

import json
import math

import numpy as np
import pytest

from fedproxy_secure.config import ProtectConfig, parse_config
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.protect.secure_sum.noise import noise_of
from fedproxy_secure.protect.secure_sum.step_bound import ROOM, held, longest_step
from fedproxy_secure.protect.secure_sum.terms import expected_numbers, first_clip, largest_clip
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.masked_rounds import serve_with
from tests.support.tiny import tiny_settings

D = 100


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bound")
    raw = tiny_settings(folder, clients=4, federate={"rounds": 1}, fusion={"rule": "fedavg"})
    job = FederationJob.from_config(parse_config(raw), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


def changed(job, rule="fedavg", privacy=None, **local):
    return job.changed(
        fusion=job.fusion.model_copy(update={"rule": rule}),
        local=job.local.model_copy(update=local),
        privacy=job.privacy.model_copy(update=privacy or {}),
    )


def bound(job, adapter=None, weight=4.0, round=0):
    start = np.zeros(D, np.float32) if adapter is None else adapter
    return longest_step(job, start, round=round, cohort=4, threshold=3, clients=4, weight=weight)


def test_sgd_reaches_its_steps_times_rate_times_norm_and_elections_sqrt_k_of_that(world):
    sgd = {"optimizer": "sgd", "learning_rate": 0.5, "steps": 4, "max_grad_norm": 0.25}
    assert bound(changed(world[0], **sgd)) == pytest.approx(ROOM * 0.5)
    assert bound(changed(world[0], "h_ties", **sgd)) == pytest.approx(ROOM * 0.5 * 2)


def test_adamw_reaches_twice_its_rate_a_step_at_every_coordinate(world):
    adam = {"optimizer": "adamw", "learning_rate": 0.5, "steps": 4}
    for rule in ("fedavg", "h_ties"):
        assert bound(changed(world[0], rule, **adam)) == pytest.approx(ROOM * 4 * math.sqrt(D))


def test_where_rates_fall_a_step_may_be_shorter_in_later_rounds(world):
    job = world[0].changed(federate=world[0].federate.model_copy(update={"rounds": 2}))
    adapter = np.full(D, 3.0, np.float32)
    sgd = {"optimizer": "sgd", "learning_rate": 0.5, "steps": 2, "schedule": "linear", "weight_decay": 0.1}
    rates = [0.5 * (1 + 3 / 4), 0.5 * (1 / 2 + 1 / 4)]
    for round, rate in enumerate(rates):
        job_of_sgd = changed(job, max_grad_norm=0.25, **sgd)
        assert bound(job_of_sgd, adapter, round=round) == pytest.approx(ROOM * rate * (0.25 + 0.1 * 30))


def test_weight_decay_and_unequal_weights_leave_their_room(world):
    adapter = np.full(D, 3.0, np.float32)
    sgd = changed(
        world[0], optimizer="sgd", learning_rate=0.5, steps=4, max_grad_norm=0.25, weight_decay=0.1
    )
    assert bound(sgd, adapter) == pytest.approx(ROOM * (0.5 + 0.2 * 30))
    assert bound(sgd, adapter, weight=2.0) == pytest.approx(2 * bound(sgd, adapter))


def test_noise_of_a_client_is_within_the_bound_and_record_noise_has_none_under_sgd(world):
    private = {"unit": "client", "clip_norm": 0.05, "target_delta": 1e-3}
    job = changed(world[0], privacy=private)
    made = noise_of(job, d=D, clients=4, threshold=3)
    scale = math.sqrt(made.variance * 4 / made.summands) / 4 * 0.05 / 2**12
    rng = np.random.default_rng(0)
    lengths = [np.linalg.norm(rng.normal(0, scale, D)) + 0.05 for _ in range(1000)]
    assert max(lengths) < bound(job) < 3 * max(lengths)
    record = {"unit": "record"}
    assert bound(changed(world[0], privacy=record, optimizer="sgd")) == math.inf
    assert bound(changed(world[0], privacy=record, optimizer="adamw")) < math.inf


def test_a_longer_step_keeps_its_direction():
    step = np.array([3.0, -4.0], np.float32)
    kept, cut = held(step, 5.0)
    assert kept is step
    assert cut == 0
    shorter, cut = held(step, 1.0)
    np.testing.assert_allclose(shorter, step / 5, rtol=1e-6)
    assert cut == pytest.approx(0.8)
    assert shorter.dtype == np.float32


@pytest.mark.parametrize(
    ("rule", "weights", "unit", "least", "silent"),
    [
        ("fedavg", "uniform", "none", 1.0, False),
        ("fedavg", "self", "none", 1.0, False),  # no weights where nothing is weighed
        ("h_ties", "uniform", "none", 1.0, False),
        ("h_ties", "self", "none", math.exp(-1), False),
        ("h_ties", "encrypted_gram", "none", math.exp(-1), False),
        ("fedavg", "uniform", "client", 1.0, True),
    ],
)
def test_what_the_server_expects_of_a_client_follows_from_the_settings(
    world, rule, weights, unit, least, silent
):
    job = changed(world[0], rule, privacy={"unit": unit})
    job = job.changed(protect=ProtectConfig(weights=weights))
    expected = expected_numbers(job, d=D)
    assert expected.least_weight == pytest.approx(least)
    assert (expected.steps, expected.coordinates, expected.silent) == (job.local.steps, D, silent)


def all_at_the_clip(job):
    """Client c1 is malicious: its update has every coordinate as far as a word within the clip can say."""
    clip = first_clip(job)

    class Liar:
        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            return getattr(self._client, name)

        def train(self, **how):
            made = self._client.train(**how)
            far = np.full_like(made.update, clip)
            return ClientUpdate(**{**vars(made), "update": far})

    return lambda client: Liar(client) if client.name == "c1" else client


def test_a_client_that_sends_far_more_than_training_can_reach_is_cut_and_the_run_says_so(
    world, tmp_path, caplog
):
    """Under SGD every coordinate at its clip is sqrt(d) times longer than any training."""
    job, _, initial = world
    job = changed(job, optimizer="sgd", learning_rate=0.1, steps=2)
    reach = first_clip(job)
    app = client_app.client_app(play=all_at_the_clip(job))
    state = serve_with(world, job, app, run_folder=tmp_path)
    moved = float(np.linalg.norm(state.adapter - initial.adapter))
    assert moved <= ROOM * reach * (1 + 1e-5)
    (line,) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    uncut = reach * math.sqrt(len(initial.adapter)) / 4
    assert json.loads(line)["step_cut"] == pytest.approx(1 - ROOM * reach / uncut, abs=0.1)
    assert "the fused step is longer than honest clients can make it" in caplog.text


def test_the_next_rounds_clip_stays_within_what_clients_accept(world, monkeypatch):
    job, folder, initial = world
    monkeypatch.setattr("fedproxy_secure.protect.secure_sum.server.next_clip", lambda clip, control: 1e6)
    with proxy_store.offered_on_this_host(folder):
        state = federate(job, folder, initial)
    assert state.clip.tolist() == [largest_clip(job, 0)]
