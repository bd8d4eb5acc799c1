"""Three seeds at epsilon 8 are not epsilon 8: the same records were trained on three times. No gate opens.

Where only the highest seed counts, every test here fails: the gate passes, and the report says 8.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.dp.accounting import Spent, noise_multiplier_for, spent
from fedproxy_secure.dp.events import SampledGaussian, to_fields
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.policy import find_policy, load_policy
from fedproxy_secure.report.measured import configuration_of, read_seed
from fedproxy_secure.report.report import Report
from tests.support.finished_run import write_run

TARGET, DELTA, ROUNDS, STEPS, SEEDS = 8.0, 1e-5, 8, 10, (0, 1, 2)
# what `noise_multiplier_for` returns for (target, rate), rounded up: with sampling, that takes it seconds
SAMPLED = {(8.0, 0.008): 0.4388}


def rounds_at(target: float, *, rate: float) -> list[SampledGaussian]:
    """What a client's ledger holds after a run of one seed that aims at `target`."""
    noise = SAMPLED.get((target, rate)) or noise_multiplier_for(
        target_epsilon=target, delta=DELTA, sampling_rate=rate, steps=ROUNDS * STEPS
    )
    return [SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=STEPS)] * ROUNDS


def run_of(folder: Path, target: float, *, rate: float = 1.0) -> Path:
    """Three finished seeds at `target` each."""
    events = rounds_at(target, rate=rate)
    cost: Spent = spent(events, delta=DELTA)
    assert 0.99 * target < cost.epsilon <= target
    write_run(folder, seeds=SEEDS)
    for seed in SEEDS:
        file = folder / f"seed-{seed}" / "result.json"
        result = json.loads(file.read_text())
        result["spent"] = {name: asdict(cost) for name in ("clinic", "bank")}
        result["events"] = {name: [to_fields(e) for e in events] for name in ("clinic", "bank")}
        file.write_text(json.dumps(result))
    return folder


def report_of(folder: Path, target: float, *, randomness: str = "os") -> Report:
    config = parse_config(
        {
            "seeds": list(SEEDS),
            "privacy": {
                "unit": "record",
                "target_epsilon": target,
                "target_delta": DELTA,
                "randomness": randomness,
            },
        }
    )
    read = [read_seed(folder, seed, root=folder) for seed in SEEDS]
    configuration = configuration_of(read, config, name="private", settings={})
    return Report(
        name="private",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=SEEDS,
        configurations=(configuration,),
    )


def verdict(report: Report, place: Path, rule: str = "max_epsilon: 8") -> Verdict:
    (place / "policy.yaml").write_text(f"schema_version: 1\nrules:\n- {rule}\n")
    return judge(report, load_policy(place / "policy.yaml")).verdict


@pytest.mark.torch
def test_three_seeds_at_8_do_not_pass_a_gate_at_8(tmp_path):
    report = report_of(run_of(tmp_path / "run", TARGET), TARGET)
    assert verdict(report, tmp_path) == Verdict.FAILED
    together = report.configurations[0].measure("epsilon_spent").estimate.value
    assert together == pytest.approx(15.83, abs=0.05)  # the exact epsilon of the Gaussian mechanism
    assert verdict(report, tmp_path, "max_epsilon: 16") == Verdict.PASSED


@pytest.mark.torch
def test_three_seeds_at_8_with_sampling_do_not_pass_a_gate_at_8(tmp_path):
    report = report_of(run_of(tmp_path / "run", TARGET, rate=0.008), TARGET)
    assert verdict(report, tmp_path) == Verdict.FAILED
    assert report.configurations[0].measure("epsilon_spent").estimate.value > 10


@pytest.mark.torch
def test_results_that_do_not_hold_the_events_are_refused(tmp_path):
    run = run_of(tmp_path / "run", TARGET)
    for seed in SEEDS:
        file = run / f"seed-{seed}" / "result.json"
        result = json.loads(file.read_text())
        del result["events"]
        file.write_text(json.dumps(result))
    with pytest.raises(RunFolderError, match="what was spent"):
        report_of(run, TARGET)


@pytest.mark.torch
@pytest.mark.parametrize(
    "rule", ["max_epsilon: 1000", "max_epsilon_spent: 1000", "max_delta: 0.9", "max_total_epsilon: 1000"]
)
def test_noise_that_follows_from_the_seed_passes_no_gate_however_wide(tmp_path, rule):
    run = run_of(tmp_path / "run", TARGET)
    report_of(run, TARGET, randomness="unsafe_simulated").write(tmp_path)
    report = Report.load(tmp_path)
    stamps_reworded = replace(report.configurations[0], unsafe=("in other words",))
    assert verdict(report, tmp_path, rule) == Verdict.FAILED
    assert verdict(replace(report, configurations=(stamps_reworded,)), tmp_path, rule) == Verdict.FAILED


@pytest.mark.torch
def test_the_release_policy_gets_three_seeds_within_epsilon_8_from_lower_seeds_alone(tmp_path):
    release = load_policy(find_policy("release"))
    rows = judge(report_of(run_of(tmp_path / "eight", TARGET), TARGET), release).rows
    failed = {row.rule.split(":")[0] for row in rows if row.verdict == Verdict.FAILED}
    assert "max_epsilon" in failed
    rows = judge(report_of(run_of(tmp_path / "less", 4.0), 4.0), release).rows
    kept = {row.rule.split(":")[0] for row in rows if row.verdict == Verdict.PASSED}
    assert {"max_epsilon", "min_seeds"} <= kept
