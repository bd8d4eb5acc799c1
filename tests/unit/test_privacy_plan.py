"""The command `privacy`: what it says is what training would do, and no attack exceeds its bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.federation import privacy_rows
from fedproxy_secure.config import LocalConfig, PrivacyConfig
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.planning import plan_privacy
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.errors import ConfigError

PRIVACY = PrivacyConfig(unit="record", target_epsilon=8, target_delta=1e-5, clip_norm=0.5)


def plan(records, *, steps=10, batch_size=64, rounds=8, **more):
    local = LocalConfig(steps=steps, batch_size=batch_size)
    return plan_privacy(PRIVACY, local, rounds=rounds, records=records, **more)


def test_noise_and_epsilon_are_those_of_training():
    found = plan(8000)
    assert found.noise == record_noise(
        PRIVACY, LocalConfig(steps=10, batch_size=64), rounds=8, records=8000
    )
    assert (found.public_size, found.steps, found.noise.sampling_rate) == (8192, 80, 64 / 8192)
    assert 7.9 < found.epsilon <= 8


def test_trainings_on_the_same_records_are_composed():
    found = plan(8000, trainings=3)
    event = SampledGaussian(
        noise_multiplier=found.noise.noise_multiplier, sampling_rate=64 / 8192, steps=240
    )
    assert found.all_epsilon == pytest.approx(spent([event], delta=1e-5).epsilon, rel=1e-6)
    assert found.epsilon < found.all_epsilon < 3 * found.epsilon


def test_without_sampling_the_best_attack_is_that_on_a_gaussian():
    """Every record in every step: the sum of all steps is one Gaussian, whose best attack is known."""
    found = plan(64)
    mu = math.sqrt(80) / found.noise.noise_multiplier
    assert found.auc == pytest.approx(norm.cdf(mu / math.sqrt(2)), abs=2e-3)
    assert found.auc >= norm.cdf(mu / math.sqrt(2)) - 1e-4
    assert found.rate == pytest.approx(norm.cdf(mu + norm.ppf(0.01)), abs=2e-3)


@pytest.mark.slow
def test_no_attack_on_one_step_of_sampling_exceeds_the_bound():
    """The likelihood ratio is the best attack; its AUC is that of x, which the record shifts if drawn."""
    found = plan(128, steps=1, rounds=1)
    rng, size, noise = np.random.default_rng(0), 400_000, found.noise.noise_multiplier
    drawn = rng.random(size) < found.noise.sampling_rate
    there = rng.normal(0, noise, size) + drawn
    absent = np.sort(rng.normal(0, noise, size))
    auc = np.searchsorted(absent, there).mean() / size
    assert auc - 0.003 < found.auc < auc + 0.02
    rate = (there > np.quantile(absent, 0.99)).mean()
    assert rate - 0.003 < found.rate < rate + 0.02


@pytest.mark.parametrize(("records", "about"), [(1, 8.0), (2, 19.0), (5, 69.0)])
def test_a_persons_records_cost_what_the_page_on_differential_privacy_says(records, about):
    assert plan(8000, person_records=records).person_epsilon == pytest.approx(about, rel=0.02)


def test_a_batch_that_the_records_cannot_fill_is_refused():
    with pytest.raises(ConfigError, match=r"local\.batch_size=64: must be <= "):
        plan(20)


def test_the_command_prints_what_the_plan_says():
    arguments = ["privacy", "demo_private", "--records", "8000", "--trainings", "3", "--of-one-person", "2"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    lines = dict(line.split("  ", 1) for line in shown.stdout.splitlines())
    assert lines["disclosed"].strip() == "that there are 4,097 to 8,192 records"
    assert lines["all trainings"].strip().endswith("for 3 of them")
    assert lines["one person"].strip().startswith("epsilon about 19")
    assert "AUC at most 0." in lines["best attack"]


def test_client_level_privacy_is_sent_to_the_dry_run():
    asked = ["--set", "privacy.unit=client", "--set", "fusion.rule=fedavg"]
    shown = CliRunner().invoke(app, ["privacy", "quickstart", "--records", "100", *asked])
    assert shown.exit_code == 2
    assert "see `run --dry-run`" in shown.stderr


def test_the_command_rounds_what_privacy_costs_at_most_up():
    made = replace(plan(8000), epsilon=8.00049, auc=0.60801, rate=0.065001)
    lines = dict(privacy_rows(made, 10_000))
    assert lines["epsilon"].startswith("8.001 at delta")
    assert "AUC at most 0.609; at most 6.51 % of members" in lines["best attack"]
