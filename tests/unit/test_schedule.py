"""The schedule of clients' learning rates: its shapes, who follows it, and what it does not change."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedproxy_secure.config import Config, LocalConfig, parse_config
from fedproxy_secure.data.encode import records_loss
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.federate.training import batches, train
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach, get_vector, trained_parameters
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.protect.secure_sum.terms import chosen_clip, first_clip, largest_clip
from tests.support.private_training import ITEMS, KEY, adapted
from tests.support.tiny import tiny_settings

FALLING = ("linear", "cosine")
# all steps of two rounds of two steps
KNOWN = {"linear": [1, 3 / 4, 1 / 2, 1 / 4], "cosine": [1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4]}


# The shapes


@pytest.mark.parametrize("schedule", FALLING)
def test_rates_fall_over_all_rounds_together_and_a_pooled_training_has_the_same_shape(schedule):
    local = LocalConfig(schedule=schedule)
    rounds = [share for r in range(2) for share in local.shares(steps=2, round=r, rounds=2)]
    assert rounds == pytest.approx(KNOWN[schedule])
    assert local.shares(steps=4) == pytest.approx(rounds)


@pytest.mark.parametrize(("rounds", "steps"), [(1, 1), (1, 40), (7, 3), (1000, 1000)])
def test_the_first_step_has_the_full_rate_and_the_last_one_a_small_rate_above_zero(rounds, steps):
    total = rounds * steps
    for schedule, last in (("linear", 1 / total), ("cosine", math.sin(math.pi / 2 / total) ** 2)):
        local = LocalConfig(schedule=schedule)
        assert local.shares(steps=steps, rounds=rounds)[0] == 1.0
        ends = local.shares(steps=steps, round=rounds - 1, rounds=rounds)[-1]
        assert ends > 0
        assert ends == pytest.approx(last)
    assert LocalConfig().shares(steps=steps, round=rounds - 1, rounds=rounds) == [1.0] * steps


def test_a_jobs_rates_are_those_of_its_round():
    raw = {"local": {"steps": 2, "learning_rate": 0.1, "schedule": "linear"}, "federate": {"rounds": 2}}
    job = FederationJob.from_config(parse_config(raw), seed=0)
    assert [job.first_rate(r) for r in range(2)] == pytest.approx([0.1, 0.05])
    assert [job.total_rate(r) for r in range(2)] == pytest.approx([0.175, 0.075])
    assert first_clip(job) == pytest.approx(0.35)
    assert [largest_clip(job, r) for r in range(2)] == pytest.approx([3.2 * 0.175, 3.2 * 0.075])


def test_a_constant_rate_times_the_steps_is_the_total_bit_for_bit():
    for steps in (1, 7, 40, 1000):
        job = FederationJob.from_config(parse_config({"local": {"steps": steps}}), seed=0)
        assert job.total_rate(0) == job.local.learning_rate * float(steps)


def test_a_total_rate_is_rounded_once_and_so_is_the_same_under_every_python():
    job = FederationJob.from_config(parse_config({"local": {"schedule": "cosine"}}), seed=0)
    for round in range(job.federate.rounds):
        shares = job.local.shares(steps=job.local.steps, round=round, rounds=job.federate.rounds)
        exact = float(sum(map(Fraction, shares)))
        assert job.total_rate(round) == job.local.learning_rate * exact


@pytest.mark.parametrize("schedule", ["constant", *FALLING])
def test_a_clip_of_the_settings_leaves_every_round_a_ring_that_is_fine_enough_for_its_updates(schedule):
    raw = {
        "local": {"schedule": schedule},
        "protect": {"clip": 0.1, "bits": 16},
        "federate": {"rounds": 10},
    }
    job = FederationJob.from_config(parse_config(raw), seed=0)
    last = chosen_clip(job, 9)
    if schedule == "constant":
        assert last == 0.1
    else:
        assert chosen_clip(job, 0) == 0.1
        assert last == largest_clip(job, 9) < 0.1


# Who agrees to it


def test_settings_that_do_not_name_it_keep_their_digests_and_another_schedule_is_another_run():
    spelled_out, other = (parse_config({"local": {"schedule": s}}) for s in ("constant", "linear"))
    assert spelled_out.sha256() == Config().sha256()
    assert spelled_out.cell_sha256() == Config().cell_sha256()
    assert other.sha256() != Config().sha256()
    assert other.cell_sha256() != Config().cell_sha256()


def test_clients_sign_the_schedule_and_refuse_another_one():
    agreed, other = (
        FederationJob.from_config(parse_config({"local": {"schedule": s}}), seed=0) for s in FALLING
    )
    assert agreed.agreed_sha256() != other.agreed_sha256()
    line = r"local\.schedule='cosine' asked by the server: must be 'linear'"
    with pytest.raises(ConfigError, match=line):
        policy_for(agreed, 0, seeds=(0,)).own_job(other)


# The training


def plainly(local, shares):
    """The adapter after training by torch's optimizer, with its rate set by hand, or left if no shares."""
    tuned, rng = adapted(), np.random.default_rng(0)
    rng.integers(2**62)  # dropout, which this adapter does not have
    parameters, stream = trained_parameters(tuned), batches(len(ITEMS), local.batch_size, rng)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[local.optimizer]
    optimizer = kind(parameters, lr=local.learning_rate, weight_decay=local.weight_decay, foreach=True)
    tuned.train()
    for share in shares or [None] * local.steps:
        if share is not None:
            optimizer.param_groups[0]["lr"] = local.learning_rate * share
        optimizer.zero_grad()
        records_loss(tuned, [ITEMS[i] for i in next(stream)], pad_id=0).backward()
        torch.nn.utils.clip_grad_norm_(parameters, local.max_grad_norm)
        optimizer.step()
    return get_vector(tuned)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", *FALLING])
def test_every_step_takes_its_rate_and_constant_is_the_optimizers_own_bit_for_bit(schedule, optimizer):
    local = LocalConfig(
        steps=2, batch_size=4, learning_rate=0.05, optimizer=optimizer, weight_decay=0.1, schedule=schedule
    )
    tuned, rng = adapted(), np.random.default_rng(0)
    train(tuned, ITEMS, steps=2, local=local, pad_id=0, rng=rng, subject="c", round=1, rounds=2)
    shares = None if schedule == "constant" else KNOWN[schedule][2:]
    np.testing.assert_allclose(get_vector(tuned), plainly(local, shares), rtol=0, atol=1e-7)
    if schedule == "constant":
        assert get_vector(tuned).tobytes() == plainly(local, None).tobytes()


@pytest.mark.parametrize("schedule", FALLING)
def test_a_private_step_releases_the_same_under_every_schedule_and_moves_by_its_rate(schedule):
    """One step from one adapter: noise and gradient are the same, so the moves are as the rates."""

    def move(schedule):
        tuned = adapted()
        train_privately(
            tuned,
            ITEMS,
            steps=1,
            local=LocalConfig(optimizer="sgd", learning_rate=0.5, batch_size=4, schedule=schedule),
            private=RecordNoise(noise_multiplier=1.0, clip_norm=0.1, sampling_rate=0.5),
            noise=Noise(KEY),
            pad_id=0,
            subject="c",
            round=3,
            rounds=4,
        )
        return get_vector(tuned) - get_vector(adapted())

    assert np.abs(move("constant")).max() > 1e-3
    np.testing.assert_allclose(move(schedule), KNOWN[schedule][3] * move("constant"), atol=1e-7)


# The federation


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    raw = tiny_settings(folder, federate={"rounds": 2}, fusion={"rule": "fedavg"})
    job = FederationJob.from_config(parse_config(raw), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


def changed(job, local=None, **sections):
    """The job with other local settings and with some fields of sections replaced."""
    sections = {"local": local or {}, "protect": {"scheme": "unsafe_plaintext"}, **sections}
    return job.changed(
        **{name: getattr(job, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def test_a_client_takes_the_rate_of_the_round_that_it_is_asked_for(world):
    job, folder, initial = world
    sgd = {"optimizer": "sgd", "learning_rate": 0.5, "steps": 1}

    def move(schedule, round):
        told = with_proxy(changed(job, {**sgd, "schedule": schedule}), folder)
        return build_client(told, 0, folder).train(round=round, start=initial.adapter).update

    assert np.abs(move("constant", 1)).max() > 1e-3
    for round, share in enumerate((1, 1 / 2)):
        np.testing.assert_allclose(move("linear", round), share * move("constant", round), atol=1e-7)


@pytest.mark.parametrize("schedule", FALLING)
def test_a_run_killed_within_a_round_ends_as_an_unbroken_one(world, tmp_path, schedule):
    class Killed(Exception):
        pass

    def kill(client):
        seen.append(client)
        if len(seen) == 5:  # in the second round
            raise Killed

    seen: list[str] = []
    agreed, folder, initial = world
    constant, job = changed(agreed), changed(agreed, {"schedule": schedule})
    whole = federate(job, folder, initial)
    with pytest.raises(Killed):
        federate(job, folder, initial, run_folder=tmp_path, on_client=kill)
    resumed = federate(job, folder, initial, run_folder=tmp_path)
    assert resumed.adapter.tobytes() == whole.adapter.tobytes()
    assert not np.array_equal(whole.adapter, federate(constant, folder, initial).adapter)


def test_a_masked_run_keeps_to_the_smaller_clips_of_later_rounds(world):
    job, folder, initial = world
    falling = {"schedule": "cosine", "steps": 3}
    clear = federate(changed(job, falling), folder, initial)
    masked = federate(changed(job, falling, protect={}), folder, initial)
    np.testing.assert_allclose(masked.adapter, clear.adapter, rtol=0, atol=1e-6)
    assert masked.clip[0] <= largest_clip(changed(job, falling), 1) < first_clip(changed(job, falling))


@pytest.mark.slow
def test_a_private_run_spends_the_same_epsilon_under_every_schedule(world, tmp_path):
    private = {"unit": "record", "target_epsilon": 8.0, "target_delta": 1e-3}

    def spent(schedule):
        folder = tmp_path / schedule
        local = {"schedule": schedule, "batch_size": 16}  # all records: to find the noise takes no time
        job = changed(world[0], local, privacy=private)
        federate(job, *world[1:], run_folder=folder)
        return {name: cost.epsilon for name, cost in read_all(folder / "privacy").items()}

    constant = spent("constant")
    assert all(7.5 < epsilon <= 8 for epsilon in constant.values())
    assert spent("cosine") == constant
