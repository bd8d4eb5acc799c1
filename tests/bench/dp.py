"""What differential privacy costs, and whether its claims hold: `make bench-dp`.

The curve over epsilon takes one run of `configs/demo_private.yaml` for every adapter, epsilon and seed (40,
up to ten minutes each on one core); each is kept in build/bench/dp_cells and not run again. So are audits.
`python -m tests.bench.dp audits` measures the audits alone (some ten minutes on one core) and writes
build/bench/dp_audits.json, `python -m tests.bench.dp core` the curve of `core` adapters with epsilon 8 and
without noise, over five seeds.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
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
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import Encoded, encode_records, training_batch
from fedproxy_secure.dp.accounting import noise_multiplier_for, spent, variance_for
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.profile import dp_sgd
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.evidence.estimate import mean_interval, proportion_interval
from fedproxy_secure.experiments.results import average
from fedproxy_secure.experiments.stages import evaluate, make_fused_llm, make_proxy, prepare, tune
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-dp"
CONFIG = "configs/demo_private.yaml"
SEEDS, MANY_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)  # many where a target is measured
EPSILONS = (math.inf, 8.0, 3.0, 1.0)
# with noise, and the better one without
LEARNING_RATES = {"core": (4e-2, 3e-2), "ffa": (5e-3, 5e-3), "lora": (3e-3, 3e-3)}
AIMED, GAP, HALF_WIDTH = 8.0, 0.85, 0.10  # epsilon, share of the gap, half of its interval
STEPS = 5  # of one timed call
CELLS = FOLDER / "dp_cells"
AUDITED, DELTA = (1.0, 4.0, 8.0), 1e-5  # claims
RUNS, NULL_RUNS, CHUNK = 20, 500, 100
NULL_CLAIM, NULL_CANARIES = 4.0, 1000


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["audits"]:
        publish("dp_audits", audit_rows())
        return
    if sys.argv[1:] == ["core"]:
        publish("dp_core", curve_rows({"core": (math.inf, AIMED)}))
        return
    publish("dp", [*accountant_rows(), *audit_rows(), *cost_rows(), *ghost_rows(), *curve_rows()])


def cell(adapter: str, epsilon: float, seed: int) -> dict[str, Any]:
    """One run: fused and tuned accuracy, epsilon spent; from its file if it was run before."""
    config = _config(adapter, epsilon)
    file = CELLS / f"{adapter}-eps{epsilon:g}-seed{seed}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["config_sha256"] == config.sha256():
            return found
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=seed, remove_ratio=config.compress.remove_ratio)
    with tempfile.TemporaryDirectory() as folder:
        save_model(proxy.model, materials.tokenizer, Path(folder) / "proxy")
        job = FederationJob.from_config(config, seed=seed)
        tuned = tune(job, proxy.model, Path(folder) / "proxy", run_folder=Path(folder))
        costs = read_all(Path(folder) / "privacy").values()
    fused = make_fused_llm(materials, proxy, tuned)
    made = {
        "config_sha256": config.sha256(),
        "fused": average(evaluate(fused, materials, config)),
        "tuned": average(evaluate(tuned, materials, config)),
        "zero_shot": average(evaluate(materials.llm, materials, config)),
        "spent": max((c.epsilon for c in costs), default=None),
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=2))
    print(f"{file.stem}: fused {made['fused']:.3f}, tuned {made['tuned']:.3f}", file=sys.stderr, flush=True)
    return made


def _config(adapter: str, epsilon: float) -> Config:
    private, free = LEARNING_RATES[adapter]
    rate = free if math.isinf(epsilon) else private
    changes = [f"adapter.kind={adapter}", f"local.learning_rate={rate}"]
    if math.isinf(epsilon):
        changes.append("privacy.unit=none")
    else:
        # seeded noise, so that the same command gives the same table
        changes += [f"privacy.target_epsilon={epsilon}", "privacy.randomness=unsafe_simulated"]
    return load_config(CONFIG, changes)


def curve_rows(curves: Mapping[str, Sequence[float]] | None = None) -> list[Row]:
    """Gap closed, as a share of what the same adapter closes without noise; by adapter its epsilons."""
    rows = []
    for adapter, epsilons in (curves or dict.fromkeys(LEARNING_RATES, EPSILONS)).items():
        for epsilon in epsilons:
            many = adapter == "core" and (math.isinf(epsilon) or epsilon == AIMED)
            cells = {s: cell(adapter, epsilon, s) for s in (MANY_SEEDS if many else SEEDS)}
            free = {s: cell(adapter, math.inf, s) for s in cells}
            accuracy = mean_interval({s: c["fused"] for s, c in cells.items()}, metric="", unit="share")
            rows.append(
                _row(f"{adapter}, epsilon {epsilon:g}: fused accuracy", accuracy, "share", "", None)
            )
            if math.isinf(epsilon):
                continue
            kept = mean_interval(
                {
                    s: (c["fused"] - c["zero_shot"]) / (free[s]["fused"] - free[s]["zero_shot"])
                    for s, c in cells.items()
                },
                metric="",
                unit="share",
            )
            half = math.inf if kept.high is None else kept.high - kept.value
            rows.append(
                _row(
                    f"{adapter}, epsilon {epsilon:g}: gap closed, over the non-private run's",
                    kept,
                    "share",
                    f">= {GAP}, half-width <= {HALF_WIDTH}" if many else "",
                    kept.value >= GAP and half <= HALF_WIDTH if many else None,
                )
            )
    return rows


def cost_rows() -> list[Row]:
    """Time and memory of a private step over a plain one, batch 16, interleaved."""
    rows = []
    for adapter in LEARNING_RATES:
        config = load_config("configs/demo_world.yaml", [f"adapter.kind={adapter}"])
        materials = prepare(config)
        proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
        tuned = attach(proxy.model, config.adapter, seed=0)
        items = encode_records(materials.tasks[0].train, materials.tokenizer, max_tokens=128).items
        pad = materials.tokenizer.pad_token_id

        def plain(
            tuned: Any = tuned, items: tuple[Encoded, ...] = items, config: Config = config, pad: Any = pad
        ) -> None:
            train(
                tuned,
                items,
                steps=STEPS,
                local=config.local,
                pad_id=pad,
                rng=stream(0, "bench"),
                who="bench",
            )

        def private(
            tuned: Any = tuned, items: tuple[Encoded, ...] = items, config: Config = config, pad: Any = pad
        ) -> None:
            rate = config.local.batch_size / len(items)
            train_privately(
                tuned,
                items,
                steps=STEPS,
                local=config.local,
                private=RecordNoise(noise_multiplier=1.0, clip_norm=1.0, sampling_rate=rate),
                noise=Noise(bytes(32)),
                pad_id=pad,
                who="bench",
            )

        plain(), private()
        ratios = [_seconds(private) / _seconds(plain) for _ in range(9)]
        low, value, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        rows.append(
            Row(
                metric=f"{adapter}: private step over plain step, CPU time, batch 16",
                value=float(value),
                low=float(low),
                high=float(high),
                n=len(ratios),
                unit="ratio",
                target="<= 1.6",
                ok=bool(value <= 1.6),
                command=COMMAND,
            )
        )
        memory = _peak_bytes(private) / _peak_bytes(plain)
        rows.append(
            Row(
                metric=f"{adapter}: private step over plain step, most memory at once, batch 16",
                value=memory,
                low=None,
                high=None,
                n=1,
                unit="ratio",
                target="<= 1.5",
                ok=memory <= 1.5,
                command=COMMAND,
            )
        )
    return rows


def ghost_rows() -> list[Row]:
    """Opacus's ghost clipping over per-record gradients: passes of one batch of 16, `lora`, interleaved."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    config = load_config("configs/demo_world.yaml")
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
    tuned = attach(proxy.model, config.adapter, seed=0)
    items = encode_records(materials.tasks[0].train, materials.tokenizer, max_tokens=128).items[:16]
    batch = training_batch(items, pad_id=materials.tokenizer.pad_token_id, device="cpu")
    tuned.train()

    def losses() -> torch.Tensor:
        logits = tuned(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none"
        )
        return (nll * batch.response).sum(dim=1) / batch.response.sum(dim=1)

    def per_record() -> None:
        hooked = GradSampleModule(tuned, loss_reduction="mean")
        for _ in range(STEPS):
            losses().mean().backward()  # type: ignore[no-untyped-call]
            hooked.set_grad_sample_to_none()
        hooked.to_standard_module()

    def ghost() -> None:
        hooked = GradSampleModuleFastGradientClipping(
            tuned, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
        )
        for _ in range(STEPS):
            own = losses()
            own.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            factor = hooked.get_clipping_coef()
            tuned.zero_grad(set_to_none=True)
            hooked.disable_hooks()
            (factor * own).sum().backward()
            hooked.enable_hooks()
            tuned.zero_grad(set_to_none=True)
        hooked.to_standard_module()

    per_record(), ghost()
    ratios = [_seconds(ghost) / _seconds(per_record) for _ in range(9)]
    low, value, high = (float(v) for v in np.quantile(ratios, [0.1, 0.5, 0.9]))
    rows = [("CPU time", value, low, high, len(ratios))]
    rows.append(("most memory at once", _peak_bytes(ghost) / _peak_bytes(per_record), None, None, 1))
    return [
        Row(
            metric=f"lora: ghost clipping over per-record gradients, {what}, batch 16",
            value=found,
            low=bottom,
            high=top,
            n=n,
            unit="ratio",
            target="",
            ok=None,
            command=COMMAND,
        )
        for what, found, bottom, top, n in rows
    ]


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _peak_bytes(work: Callable[[], None]) -> float:
    """The most memory that tensors of one call hold at once, by torch's own profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = top = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return float(top)


def audit_rows() -> list[Row]:
    """A8 and A9 at claims 1, 4 and 8: bound over claim, half the noise, and true claims refuted."""
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
        _row(
            f"{where}: lower bound over claim",
            bound,
            "ratio",
            ">= .5" if aimed else "",
            bound.value >= 0.5 if aimed else None,
        ),
        _row(f"{where}: lower bound over claim, by epsilon and delta alone", free, "ratio", "", None),
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
    guesses = planned_guesses(claim, NULL_CLAIM, DELTA, NULL_CANARIES, ALPHA)
    least = _least_refuting(claim, guesses, NULL_CANARIES)
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
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
        for seed in range(RUNS)
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
    guesses = planned_guesses(claim, claimed, DELTA, CANARIES, ALPHA)
    least = _least_refuting(claim, guesses, CANARIES)
    runs = (imitated_scores(claim, noise_share=1.0, canaries=CANARIES, rng=rng) for _ in range(NULL_RUNS))
    return sum(guesses.correct(*run) >= least for run in runs)


def _least_refuting(claim: SampledGaussian, guesses: Guesses, canaries: int) -> int:
    """Return the least number of right guesses that refutes the claim; one more than all if none does."""
    profile = dp_sgd(claim, both=guesses.both)
    asked = {"canaries": canaries, "guesses": guesses, "alpha": ALPHA}
    every = range(guesses.count + 1)
    return bisect_left(every, True, key=lambda v: refutes(profile, correct=v, **asked))


def _mean(values: list[float]) -> Any:
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


def accountant_rows() -> list[Row]:
    """Our epsilon against dp-accounting's, on a grid."""
    sys.path.append("build/peers")  # pip install --target build/peers dp-accounting
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        print("dp-accounting is missing: pip install --target build/peers dp-accounting", file=sys.stderr)
        return []
    over = []
    for noise in (0.6, 1.0, 2.0):
        for rate in (0.004, 0.04, 1.0):
            for steps in (80, 400):
                ours = spent(
                    [SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)], delta=1e-5
                ).epsilon
                peer = PLDAccountant()
                event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
                peer.compose(SelfComposedDpEvent(event, steps))
                over.append(ours / peer.get_epsilon(1e-5))
    rows = [
        ("lowest", min(over), min(over) >= 0.99, ">= .99"),
        ("highest", max(over), max(over) <= 1.01, "<= 1.01"),
    ]
    return [
        Row(
            metric=f"epsilon over dp-accounting's (PLD), {name} on the grid",
            value=float(value),
            low=None,
            high=None,
            n=len(over),
            unit="ratio",
            target=target,
            ok=ok,
            command=COMMAND,
        )
        for name, value, ok, target in rows
    ]


def _row(metric: str, made: Any, unit: str, target: str, ok: bool | None) -> Row:
    return Row(
        metric=metric,
        value=made.value,
        low=made.low,
        high=made.high,
        n=made.n,
        unit=unit,
        target=target,
        ok=ok,
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
