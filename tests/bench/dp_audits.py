"""Do claims of differential privacy hold? Audits of our own mechanisms: `make bench-dp-audits`.

A8 and A9 at claims 1, 4 and 8, with the claimed noise and with half of it, and how often true claims are
refuted. Some ten minutes on one core; each cell is kept in build/bench/dp_cells and not run again.
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from attacks.audit.canary_clients import audit_sums
from attacks.audit.curve_audit import CurveAudit
from attacks.audit.dp_audit import ALPHA
from attacks.audit.one_run import Guesses, refutes
from attacks.audit.training_audit import (
    CANARIES,
    audit_private_steps,
    imitated_scores,
    planned_guesses,
    trained_scores,
)
from fedproxy_secure.dp.accounting import noise_multiplier_for, variance_for
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian
from fedproxy_secure.dp.profile import dp_sgd
from fedproxy_secure.evidence.estimate import Estimate, mean_interval, proportion_interval
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-dp-audits"
CELLS = FOLDER / "dp_cells"
AUDITED, DELTA = (1.0, 4.0, 8.0), 1e-5  # claims
RUNS, NULL_RUNS, CHUNK = 20, 500, 100
FIRST_SEED = 1000  # an audit plans its guesses on runs with the seeds below
NULL_CLAIM, NULL_CANARIES = 4.0, 1000


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    publish("dp_audits", audit_rows())


def audit_rows() -> list[Row]:
    """Audit claims of epsilon 1, 4 and 8 by A8 and A9, with the claimed noise and with half of it."""
    return [
        *(row for claimed in AUDITED for row in _claim_rows("record", claimed)),
        *(row for claimed in AUDITED for row in _claim_rows("client", claimed)),
        *(_null_row(claimed, *steps) for claimed in AUDITED for steps in ((1.0, 1), (0.1, 8))),
        _trained_null_row(),
    ]


def _claim_rows(kind: str, claimed: float) -> list[Row]:
    aimed, where = {
        "record": (True, f"A8, claim epsilon {claimed:g}"),
        "client": (False, f"A9, claim epsilon {claimed:g}"),
    }[kind]
    whole, half = (audit_cell(kind, claimed, share) for share in (1.0, 0.5))
    bound, free = (_mean([v / claimed for v in whole[k]]) for k in ("bounds", "without_curve"))
    refuted, found = (sum(v > claimed for v in made["bounds"]) for made in (whole, half))
    target, reached = f">= {RUNS - 1}", found >= RUNS - 1
    return [
        Row.of(
            f"{where}: lower bound over claim",
            bound,
            command=COMMAND,
            target=">= .5" if aimed else "",
            ok=bound.value >= 0.5 if aimed else None,
        ),
        Row.of(f"{where}: lower bound over claim, by epsilon and delta alone", free, command=COMMAND),
        _count(f"{where}: runs with the claimed noise that FAIL", refuted, RUNS, "", None),
        _count(
            f"{where}: runs with half of the noise that FAIL",
            found,
            RUNS,
            target if aimed else "",
            reached if aimed else None,
        ),
    ]


def _null_row(claimed: float, rate: float, steps: int) -> Row:
    refuted = _true_claims_refuted(claimed, rate, steps)
    return _count(
        f"A8, claim epsilon {claimed:g}, rate {rate:g}, {steps} steps, its law: true claims refuted",
        refuted,
        NULL_RUNS,
        f"not above {ALPHA:g} of them",
        _is_rare(refuted),
    )


def _trained_null_row() -> Row:
    refuted = sum(null_cell(chunk)["refuted"] for chunk in range(NULL_RUNS // CHUNK))
    return _count(
        f"A8, claim epsilon {NULL_CLAIM:g}, trained, {NULL_CANARIES} canaries: true claims refuted",
        refuted,
        NULL_RUNS,
        f"not above {ALPHA:g} of them",
        _is_rare(refuted),
    )


def _is_rare(refuted: int) -> bool:
    """Whether so many refutations in `NULL_RUNS` runs are no evidence of a probability above alpha."""
    return bool(binomtest(refuted, NULL_RUNS, ALPHA, alternative="greater").pvalue > 0.05)


def null_cell(chunk: int) -> dict[str, Any]:
    """How many of `CHUNK` audits of trained canaries refute a true claim; kept in a file."""
    file = CELLS / f"audit-null-eps{NULL_CLAIM:g}-chunk{chunk}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    claim = _dp_sgd(NULL_CLAIM, 1.0, 1)
    guesses, _ = planned_guesses(claim, NULL_CLAIM, DELTA, NULL_CANARIES, ALPHA)
    least = _least_refuting(claim, guesses, NULL_CANARIES)
    seeds = range(FIRST_SEED + chunk * CHUNK, FIRST_SEED + (chunk + 1) * CHUNK)
    runs = (trained_scores(claim, seed=s, noise_share=1.0, canaries=NULL_CANARIES) for s in seeds)
    made = {"refuted": sum(guesses.correct(*run) >= least for run in runs), "least": least}
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=2))
    return made


def audit_cell(kind: str, claimed: float, share: float) -> dict[str, Any]:
    """Bounds of `RUNS` audits of our own mechanism with a share of the claimed noise; kept in a file."""
    file = CELLS / f"audit-{kind}-eps{claimed:g}-noise{share:g}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    audits = [
        _record_audit(claimed, share, seed) if kind == "record" else _client_audit(claimed, share, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + RUNS)
    ]
    made = {
        "bounds": [a.lower_bound for a in audits],
        "without_curve": [a.without_curve for a in audits],
        "ceiling": audits[0].ceiling,
        "guesses": asdict(audits[0].guesses),
        "canaries": audits[0].canaries,
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=2))
    print(f"{file.stem}: {audits[0].summary()}", file=sys.stderr, flush=True)
    return made


def _dp_sgd(claimed: float, rate: float, steps: int) -> SampledGaussian:
    noise = noise_multiplier_for(target_epsilon=claimed, delta=DELTA, sampling_rate=rate, steps=steps)
    return SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def _record_audit(claimed: float, share: float, seed: int) -> CurveAudit:
    return audit_private_steps(
        _dp_sgd(claimed, 1.0, 1), claimed_epsilon=claimed, delta=DELTA, seed=seed, noise_share=share
    )


def _client_audit(claimed: float, share: float, seed: int) -> CurveAudit:
    norm, d, rounds = 2**12, 8000, 2
    l2 = norm + math.sqrt(d) / 2
    l1, summands = l2 * math.sqrt(d), 3
    variance = variance_for(
        target_epsilon=claimed,
        delta=DELTA,
        mechanism="skellam",
        l2=l2,
        l1=l1,
        dimension=d,
        summands=summands,
        rounds=rounds,
    )
    claim = DiscreteSum(
        mechanism="skellam", variance=variance, l2=l2, l1=l1, dimension=d, summands=summands, rounds=rounds
    )
    return audit_sums(
        claim,
        norm=norm,
        claimed_epsilon=claimed,
        delta=DELTA,
        canaries=8000,
        rng=np.random.default_rng(seed),
        noise_share=share,
    )


def _true_claims_refuted(claimed: float, rate: float, steps: int) -> int:
    """Runs of `NULL_RUNS`, drawn from the claim's law, whose guesses refute the claim."""
    claim, rng = _dp_sgd(claimed, rate, steps), np.random.default_rng(0)
    guesses, _ = planned_guesses(claim, claimed, DELTA, CANARIES, ALPHA)
    least = _least_refuting(claim, guesses, CANARIES)
    runs = (imitated_scores(claim, noise_share=1.0, canaries=CANARIES, rng=rng) for _ in range(NULL_RUNS))
    return sum(guesses.correct(*run) >= least for run in runs)


def _least_refuting(claim: SampledGaussian, guesses: Guesses, canaries: int) -> int:
    """Return how many guesses must be right to refute the claim, or one more than all if none suffices."""
    profile = dp_sgd(claim, both=guesses.both)
    asked = {"canaries": canaries, "guesses": guesses, "alpha": ALPHA}
    every = range(guesses.count + 1)
    return bisect_left(every, True, key=lambda v: refutes(profile, correct=v, **asked))


def _mean(values: list[float]) -> Estimate:
    return mean_interval(dict(enumerate(values)), metric="", unit="ratio")


def _count(metric: str, count: int, of: int, target: str, ok: bool | None) -> Row:
    share = proportion_interval(count, of, metric=metric, seeds=(0,))
    return Row(
        metric=metric,
        value=count,
        low=share.low * of,
        high=share.high * of,
        n=of,
        unit="runs",
        target=target,
        ok=ok,
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
