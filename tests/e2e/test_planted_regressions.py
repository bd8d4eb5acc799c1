"""Real runs with one protection taken away: each turns the gate red, by the rule that should catch it."""

from pathlib import Path

import pytest

from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.config import parse_config
from fedproxy_secure.dp import record_noise
from fedproxy_secure.dp.accounting import noise_multiplier_for
from fedproxy_secure.errors import PrivacyError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.report.report import Report
from tests.support.tiny import tiny_settings

POLICY = """
schema_version: 1
name: planted
rules:
  - forbid_unsafe: true
  - min_cohort: 3
  - require_unit: record
  - max_epsilon: 8
  - max_verbatim_share: 0.9
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        fusion={"rule": "fedavg"},
        federate={"rounds": 1},
        local={"batch_size": 16},  # all records: without sampling, the accountant takes no seconds
        privacy={"unit": "record", "target_epsilon": 8, "target_delta": 1e-3},
        track=[],
    )


def broken_rules(settings, folder: Path, **changes) -> set[str]:
    """The rules that a run with these changes does not keep."""
    raw = {**settings}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    (folder / "policy.yaml").write_text(POLICY)
    report = run(parse_config(raw), folder / "run", in_cell=True)
    judgement = judge(report, load_policy(folder / "policy.yaml"))
    return {row.rule.split(":")[0] for row in judgement.rows if row.verdict == Verdict.FAILED}


def test_a_protected_run_keeps_every_rule(settings, tmp_path):
    assert broken_rules(settings, tmp_path) == set()


def test_masks_off_is_caught_by_the_stamp_and_the_cohort(settings, tmp_path):
    broken = broken_rules(settings, tmp_path, protect={"scheme": "unsafe_plaintext"})
    assert broken == {"forbid_unsafe", "min_cohort"}


def test_less_noise_is_caught_by_epsilon(settings, tmp_path):
    assert broken_rules(settings, tmp_path, privacy={"target_epsilon": 16}) == {"max_epsilon"}


def test_another_seed_on_the_same_records_is_caught_by_epsilon(settings, tmp_path):
    assert broken_rules({**settings, "seeds": [0, 1]}, tmp_path) == {"max_epsilon"}
    (private,) = Report.load(tmp_path / "run").configurations
    together, alone = (
        private.measure(k).estimate.value for k in ("epsilon_spent", "epsilon_spent_one_seed")
    )
    assert alone <= 8 < together < 16
    assert verify_run(tmp_path / "run").whole


def test_half_the_noise_behind_the_accountants_back_never_becomes_a_report(settings, tmp_path, monkeypatch):
    exact = noise_multiplier_for
    monkeypatch.setattr(record_noise, "noise_multiplier_for", lambda **asked: exact(**asked) / 2)
    with pytest.raises(PrivacyError, match="max_epsilon"):
        broken_rules(settings, tmp_path)
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_proxy_that_is_the_whole_llm_is_caught_by_its_weights_and_its_stamp(settings, tmp_path):
    broken = broken_rules(settings, tmp_path, compress={"remove_ratio": 0.0})
    assert broken == {"max_verbatim_share", "forbid_unsafe"}
