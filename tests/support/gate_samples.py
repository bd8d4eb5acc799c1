"""A safe configuration, its findings and its report, and policies to judge them by."""

from dataclasses import replace
from pathlib import Path

from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.gate.judge import Signed, Verdict, judge
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.trilemma import Configuration, Measure

SEEDS = (0, 1, 2)
SIGNER = "ab" * 32
SIGNED = Signed(problems=(), unsettled=(), signer=SIGNER)
SHIPPED = Path(__file__).parents[2] / "configs" / "policies"


def estimate(value, low=None, high=None, unit="share"):
    return Estimate(
        metric="m",
        value=value,
        low=low,
        high=high,
        n=3,
        unit=unit,
        seeds=SEEDS,
        how="Student t 95 %",
        nature="sampled",
    )


def measure(key, value, low=None, high=None, *, exact=False):
    made = counted(value, metric=key, unit="count", seeds=SEEDS) if exact else estimate(value, low, high)
    return Measure(axis="privacy", key=key, better="lower", estimate=made, source="result.json#x")


# id -> the measures that the attack is for
MEASURED = {
    "A2": ("token_auc",),
    "A3": ("exact_sequence_recall",),
    "A5": ("tpr_at_1pct_fpr", "membership_auc"),
    "A6": ("tpr_at_1pct_fpr", "membership_auc"),
    "A7": ("canary_exposure_bits",),
    "A8": ("epsilon_audited", "audited_over_claimed"),
    "A9": ("audited_over_claimed",),
    "A12": ("extraction_R", "kl_left_nats"),
}


def finding(id, outcome=Outcome.RESISTED, *, seed=0, view="server"):
    return Finding(
        attack=f"attack_{id}",
        id=id,
        title="t",
        view=view,
        surfaces=("AGG",),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=(),
        measures={key: () for key in MEASURED.get(id, ())},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=0,
        mapping=(),
        read=("AGG",),
        chance=0.5,
        margin=0.05,
    )


def findings(*ids, outcome=Outcome.RESISTED):
    return tuple(finding(id, outcome, seed=s) for s in SEEDS for id in ids)


SAFE = Configuration(
    name="masking + DP 8",
    scheme="masking",
    settings={"protection": "masking_dp8", "remove_ratio": "0.5"},
    seeds=SEEDS,
    privacy_unit="record",
    measures=(
        measure("gap_closed", 0.7, 0.65, 0.75),
        measure("epsilon_claimed", 8.0, exact=True),
        measure("epsilon_spent", 7.9, exact=True),
        measure("delta", 1e-5, exact=True),
        measure("epsilon_audited", 1.2, exact=True),
        measure("effective_cohort", 4, exact=True),
        measure("token_auc", 0.52, 0.5, 0.54),
        measure("exact_sequence_recall", 0.0, 0.0, 0.01),
        measure("tpr_at_1pct_fpr", 0.01, 0.0, 0.03),
        measure("canary_exposure_bits", 1.3, 0.9, 1.8),
        measure("verbatim_share", 0.72, exact=True),
        measure("owners_edge", 0.2, 0.15, 0.25),
        measure("extraction_R", 0.3, 0.25, 0.35),
        measure("kl_left_nats", 0.09, 0.07, 0.11),
    ),
    findings=findings("A2", "A3", "A5", "A7", "A8", "A12"),
)


def report(*configurations, **changes):
    made = Report(
        name="r",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=SEEDS,
        configurations=configurations,
        audit_head="c3" * 32,
        total_epsilon=counted(7.9, metric="epsilon", unit="epsilon", seeds=SEEDS),
    )
    return replace(made, **changes)


def with_measure(configuration, *changed):
    keys = {m.key for m in changed}
    kept = tuple(m for m in configuration.measures if m.key not in keys)
    return replace(configuration, measures=(*kept, *changed))


def without(configuration, key):
    return replace(configuration, measures=tuple(m for m in configuration.measures if m.key != key))


def policy(tmp_path, rules, top=""):
    file = tmp_path / "policy.yaml"
    file.write_text(f"schema_version: 1\n{top}\nrules:\n{rules}\n")
    return load_policy(file)


def verdicts(tmp_path, rules, *configurations, top=""):
    return [r.verdict for r in judge(report(*configurations), policy(tmp_path, rules, top)).rows]


def release_policy():
    """As shipped, with the signer's key put in as its first lines ask for."""
    return replace(load_policy(SHIPPED / "release.yaml"), signer=SIGNER)


def red_rules(judgement):
    return {row.rule.split(":")[0] for row in judgement.rows if row.verdict == Verdict.FAILED}
