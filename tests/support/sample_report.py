"""A made-up report with everything a report can hold. Its numbers are invented: never quote them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate, counted, mean_interval, proportion_interval
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measure import Axis, Better
from fedproxy_secure.evidence.roc import Roc
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.report import (
    Fidelity,
    MethodDifference,
    MethodRow,
    ProxyRow,
    Report,
    TaskScale,
)
from fedproxy_secure.report.spending import total
from fedproxy_secure.report.trilemma import Configuration, Curve, LedgerRow, Measure

SEEDS = (0, 1, 2)
WORDS = {
    "unsafe_plaintext": "no protection",
    "masking": "masking",
    "masking_dp8": "masking + DP 8",
}
ATLAS = ("MITRE ATLAS", "5", "AML.T0024.001")
OWASP = ("OWASP LLM", "2025", "LLM02")
MEASURE = ("NIST AI RMF", "1.0", "MEASURE 2.10")
ATTACKS = (
    ("A2", "lora_span_tokens", "words that clients use, from the span of an update or a sum"),
    ("A3", "lora_span_sequences", "whole records of the round, from the spans of two blocks"),
    ("A5", "update_membership", "drawn records told from ones never trained on, by an update or a sum"),
    ("A7", "canary_exposure", "planted secrets, from the tuned proxy and from the fused LLM"),
    ("A10", "secagg_active", "a client's vector from a masking protocol whose server cheats"),
    ("A12", "proxy_extraction", "the fused LLM, from the proxy and queries"),
)
# attack -> the measure that its first number is of
MEASURED = {
    "A2": "token_auc",
    "A3": "exact_sequence_recall",
    "A5": "tpr_at_1pct_fpr",
    "A7": "canary_exposure_bits",
    "A12": "extraction_R",
}
# attack -> what it used of its view, without protection and with it
READ = {
    "A2": (("IND", "MOD"), ("AGG", "MOD")),
    "A3": (("IND", "MOD"), ("AGG", "MOD")),
    "A5": (("IND", "MOD"), ("AGG", "MOD")),
    "A7": (("MOD",), ("MOD",)),
    "A10": (("ACT", "MOD"), ("ACT", "MOD")),
    "A12": (("API", "MOD"), ("API", "MOD")),
}
# protection -> the outcome of each attack above
OUTCOMES = {
    "unsafe_plaintext": "SUCCEEDED SUCCEEDED SUCCEEDED SUCCEEDED NOT_APPLICABLE SUCCEEDED",
    "masking": "SUCCEEDED INCONCLUSIVE SUCCEEDED SUCCEEDED RESISTED SUCCEEDED",
    "masking_dp8": "RESISTED RESISTED INCONCLUSIVE RESISTED RESISTED ERROR",
}


def sample_report(
    *,
    protections: tuple[str, ...] = tuple(WORDS),
    ratios: tuple[float, ...] = (0.25, 0.5),
    adapters: tuple[str, ...] = ("lora",),
    seeds: tuple[int, ...] = SEEDS,
    rounds: int = 6,
    copies: int = 1,
) -> Report:
    """`copies`: how often each attack is repeated under another name, to make the report longer."""
    configurations, differences = side_by_side(
        _configuration(protection, ratio, adapter, seeds, rounds, copies)
        for adapter in adapters
        for ratio in ratios
        for protection in protections
    )
    return Report(
        name="sample",
        command="fedproxy-secure matrix sample --out runs/sample",
        config_sha256="5a" * 32,
        environment={
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "flwr": "1.41.0"},
            "system": "Linux",
            "machine": "x86_64",
            "cpu_count": 2,
            "device": "cpu",
        },
        seeds=seeds,
        estimates=(mean_interval(dict.fromkeys(seeds, 12.5), metric="compression", unit="s"),),
        configurations=configurations,
        attack_differences=differences,
        notes=("This report is made up, to test its page.", "3 prompts were cut to data.max_tokens=64."),
        guarantees=("The masking protocol gives the exact sum of the survivors or a clean abort.",),
        not_measured=(
            "A4 gradient_matching from server: INCONCLUSIVE: ran out of its 120 s (2 of 18 cells)",
            "The suite `smoke` leaves out the slower attacks; `fedproxy-secure attack list` names them.",
        ),
        audit_head="c3" * 32,
        composition=total(configurations, same_records=True).says,
    )


def sample_comparison() -> Report:
    """What `compare` writes: rows alone."""
    rng = np.random.default_rng(4)

    def over(mean: float, metric: str) -> Estimate:
        values = {s: mean + 0.02 * float(rng.standard_normal()) for s in SEEDS}
        return mean_interval(values, metric=metric, unit="share")

    def row(method: str, mean: float, ratio: float | None, gap: bool = True) -> MethodRow:
        return MethodRow(
            method=method,
            remove_ratio=ratio,
            tasks={t: over(mean, f"accuracy on {t}, {method}") for t in ("clinic", "bank")},
            average=over(mean, f"accuracy, {method}"),
            tasks_norm={t: over(mean + 0.01, f"acc_norm on {t}, {method}") for t in ("clinic", "bank")},
            average_norm=over(mean + 0.01, f"acc_norm, {method}"),
            gap_closed=over((mean - 0.22) / 0.78, f"gap closed, {method}") if gap else None,
            tuned_proxy=over(mean - 0.2, f"tuned proxy accuracy, {method}") if ratio else None,
            owners_edge=over(0.2, f"owner's edge, {method}") if ratio else None,
            size_effect=over(-0.05, f"size, {method}") if ratio else None,
            federation_effect=over(mean - 1.13, f"federation, {method}") if ratio else None,
            owners_edge_effect=over(0.2, f"owner's edge, {method}") if ratio else None,
            gap_closed_norm=over((mean - 0.22) / 0.8, f"gap closed by acc_norm, {method}") if gap else None,
            tuned_proxy_norm=over(mean - 0.19, f"tuned proxy acc_norm, {method}") if ratio else None,
            owners_edge_norm=over(0.21, f"owner's edge by acc_norm, {method}") if ratio else None,
            gap_closed_counting=over(mean - 0.1, f"gap closed on tasks that count, {method}")
            if gap
            else None,
        )

    def scale(task: str, constant: float) -> TaskScale:
        ends = {"constant": constant, "zero_shot": 0.22, "ceiling": 0.98}
        above = {
            f"above_{name}": over(0.98 - ends[name], f"ceiling minus {name} on {task}")
            for name in ("constant", "zero_shot")
        }
        made = {name: over(mean, f"{name} on {task}") for name, mean in ends.items()}
        return TaskScale(task=task, counts=constant < 0.9, **made, **above)

    def fidelity(kl: float, held: float) -> Fidelity:
        def mean(value: float, unit: str) -> Estimate:
            values = {s: value * (1 + 0.01 * float(rng.standard_normal())) for s in SEEDS}
            return mean_interval(values, metric=f"{unit} of a made-up proxy", unit=unit)

        return Fidelity(
            kl=mean(kl, "nats"),
            agreement=mean(0.6 - 0.1 * kl, "share"),
            llm_perplexity=mean(20.0, "perplexity"),
            proxy_perplexity=mean(20.0 + 10 * kl, "perplexity"),
            cka=mean(0.9 - 0.1 * kl, "CKA"),
            verbatim=mean(held, "share"),
        )

    return Report(
        name="sample comparison",
        command="fedproxy-secure compare sample",
        config_sha256="5b" * 32,
        environment={"python": "3.11.7", "device": "cpu"},
        seeds=SEEDS,
        rows=(
            row("zero_shot", 0.22, None, gap=False),
            row("centralised_llm", 0.98, None),
            row("fedot", 0.78, 0.25),
            row("fedproxy_h_ties", 0.96, 0.25),
            row("fedot", 0.74, 0.5),
            row("masked_h_ties_block", 0.94, 0.5),
        ),
        differences=tuple(
            MethodDifference(
                method=method,
                against=against,
                remove_ratio=ratio,
                average=over(difference, f"accuracy, {method} minus {against}"),
                average_norm=over(difference + 0.01, f"acc_norm, {method} minus {against}"),
                tasks={"bank": over(difference - 0.01, f"accuracy on bank, {method} minus {against}")},
            )
            for method, against, ratio, difference in (
                ("zero_shot", "fedot", 0.25, -0.56),
                ("fedproxy_h_ties", "fedot", 0.25, 0.18),
                ("fedot", "fedproxy_h_ties", 0.25, -0.18),
                ("masked_h_ties_block", "fedot", 0.5, 0.2),
            )
        ),
        task_scales=(scale("clinic", 0.5), scale("bank", 0.97)),
        proxies=(
            ProxyRow(remove_ratio=0.25, fidelity=fidelity(0.5, 0.2), before_healing=fidelity(2.5, 0.75)),
            ProxyRow(
                remove_ratio=0.5,
                fidelity=fidelity(3.0, 0.5),
                above_llm=over(-0.1, "accuracy, proxy minus LLM"),
            ),
        ),
        notes=("This report is made up, to test its page.",),
    )


def _configuration(
    protection: str, ratio: float, adapter: str, seeds: tuple[int, ...], rounds: int, copies: int
) -> Configuration:
    level = list(OUTCOMES).index(protection) if protection in OUTCOMES else 1
    rng = np.random.default_rng([level, int(100 * ratio), len(adapter)])
    broken = protection == "masking_dp8" and ratio == 0.5 and len(seeds) > 1
    finished = seeds[:-1] if broken else seeds
    key = f"{protection}-{ratio:g}-{adapter}"
    place = {s: f"cells/{key}-seed{s}" for s in finished}

    def near(mean: float, spread: float) -> dict[int, float]:
        return {s: mean + spread * float(rng.standard_normal()) for s in finished}

    def measure(
        axis: Axis,
        key: str,
        better: Better,
        mean: float,
        spread: float,
        unit: str,
        file: str = "result.json",
    ) -> Measure:
        metric = key.replace("_", " ")
        estimate = (
            counted(mean, metric=metric, unit=unit, seeds=finished, n=len(finished))
            if spread == 0
            else mean_interval(near(mean, spread), metric=metric, unit=unit)
        )
        s = finished[0]
        source = f"{place[s]}/seed-{s}/{file}#{key}"
        return Measure(axis=axis, key=key, better=better, estimate=estimate, source=source)

    gap = (0.97, 0.96, 0.78)[level] - 0.1 * (ratio - 0.25)
    private = (
        (
            measure("privacy", "epsilon_claimed", "lower", 8.0, 0, "epsilon"),
            measure("privacy", "epsilon_spent", "lower", 12.1, 0, "epsilon"),
            measure("privacy", "epsilon_spent_one_seed", "lower", 7.4, 0.1, "epsilon"),
            measure("privacy", "delta", "lower", 1e-5, 0, "delta"),
        )
        if level == 2
        else ()
    )
    measures = (
        measure("performance", "accuracy_zero_shot", "higher", 0.22, 0.01, "share"),
        measure("performance", "accuracy_fused", "higher", 0.22 + 0.77 * gap, 0.01, "share"),
        measure("performance", "gap_closed", "higher", gap, 0.012, "share"),
        measure("performance", "perplexity_after", "lower", 14.2 + level, 0.2, "perplexity"),
        *private,
        measure("privacy", "effective_cohort", "higher", (1, 4, 4)[level], 0, "clients"),
        measure("privacy", "token_auc", "lower", (0.99, 0.93, 0.56)[level], 0.008, "AUC"),
        measure("privacy", "exact_sequence_recall", "lower", (0.71, 0.18, 0.01)[level], 0.01, "share"),
        measure("privacy", "tpr_at_1pct_fpr", "lower", (0.88, 0.47, 0.03)[level], 0.02, "share"),
        measure("ip", "verbatim_share", "lower", 1 - 0.8 * ratio, 0, "share"),
        measure("ip", "owners_edge", "higher", 0.1 + 0.4 * ratio, 0.01, "share"),
        measure("ip", "extraction_R", "lower", 0.75 - 0.6 * ratio + 0.02 * level, 0.02, "share"),
        measure("ip", "kl_left_nats", "higher", 0.02 + 0.3 * ratio - 0.002 * level, 0.004, "nats"),
        measure("ip", "proxy_cka", "neither", 1 - 0.4 * ratio, 0.01, "CKA"),
        measure("cost", "upload_bytes", "lower", 412e3 * (1, 1.02, 1.02)[level], 0, "bytes"),
        measure("cost", "seconds_federate", "lower", (41, 43, 60)[level], 2, "s"),
        measure("cost", "peak_memory_bytes", "lower", 812e6, 4e6, "bytes"),
    )
    return Configuration(
        name=f"{WORDS.get(protection, protection)}, {100 * ratio:g}% removed"
        + ("" if adapter == "lora" else f", {adapter}"),
        scheme=protection.removesuffix("_dp8"),
        settings={
            "protection": protection,
            "remove_ratio": f"{ratio:g}",
            "fusion": "fedavg",
            "adapter": adapter,
        },
        seeds=finished,
        measures=measures,
        curves=tuple(
            _curve(key, title, unit, start, rounds, rng, place, finished)
            for key, title, unit, start in (
                ("loss", "training loss (nats per token)", "nats", 2.4 + 0.2 * level),
                ("step_norm", "how far the adapter moved", "norm", 0.8),
            )
            if not (key == "loss" and level == 2)
        ),
        findings=tuple(
            _finding(a, copy, protection, s, rng)
            for s in finished
            for copy in range(copies)
            for a in range(len(ATTACKS))
        ),
        ledger=_ledger(level, place[finished[0]]),
        guarantees=(
            (
                "Differential privacy: each client's updates of all rounds together are (8, 1e-05)-DP in "
                "that client's records (unit: one record; neighbours: one record there or not).",
                "Not covered: accuracies measured on clients' test records; that a client takes part.",
            )
            if level == 2
            else ("Differential privacy: none. What clients send, or their sum, may reveal records.",)
        ),
        unsafe=("unsafe_plaintext: the server sees every client's update.",) if level == 0 else (),
        failed=(f"seed {seeds[-1]}: its process ended with code 137",) if broken else (),
        commands=tuple(f"fedproxy-secure run cells/{key}-seed{s}/config.yaml --record" for s in seeds),
        folders={f"seed-{s}": folder for s, folder in place.items()},
        privacy_unit="record" if level == 2 else "none",
    )


def _curve(
    key: str,
    title: str,
    unit: str,
    start: float,
    rounds: int,
    rng: np.random.Generator,
    place: dict[int, str],
    seeds: tuple[int, ...],
) -> Curve:
    points = []
    for number in range(rounds):
        mean = start * 0.8**number + 0.3
        values = {s: mean * (1 + 0.03 * float(rng.standard_normal())) for s in seeds}
        points.append((number, mean_interval(values, metric=f"{title}, round {number}", unit=unit)))
    source = f"{place[seeds[0]]}/seed-{seeds[0]}/federation/rounds.jsonl#{key}"
    return Curve(key=key, title=title, points=tuple(points), source=source)


def _finding(index: int, copy: int, protection: str, seed: int, rng: np.random.Generator) -> Finding:
    id, name, title = ATTACKS[index]
    outcome = Outcome(OUTCOMES.get(protection, OUTCOMES["masking"]).split()[index])
    won = 188 if protection == "unsafe_plaintext" else 150
    hits = {Outcome.SUCCEEDED: won, Outcome.INCONCLUSIVE: 112, Outcome.RESISTED: 101}.get(outcome)
    reasons = {
        Outcome.SUCCEEDED: "auc 0.94, chance 0.5",
        Outcome.RESISTED: "auc 0.505; positive control 0.96",
        Outcome.INCONCLUSIVE: "auc 0.56: interval reaches 0.55",
        Outcome.NOT_APPLICABLE: "needs IND+ACT; this view has AGG, MOD",
        Outcome.ERROR: "ValueError: shapes do not match",
    }

    def share(right: int, metric: str) -> Estimate:
        right = min(200, max(0, right + int(rng.integers(-3, 4))))
        return replace(proportion_interval(right, 200, metric=metric, seeds=(seed,)), unit="AUC")

    measured = hits is not None
    return Finding(
        attack=name if copy == 0 else f"{name}_{copy}",
        id=id,
        title=title,
        view="active_server" if id == "A10" else "client" if id in ("A7", "A12") else "server",
        surfaces=("AGG", "MOD", "MR") if protection != "unsafe_plaintext" else ("AGG", "IND", "MOD", "MR"),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=outcome,
        reason=reasons[outcome],
        estimates=(share(hits, "auc"), share(hits // 2, "recall of named tokens")) if hits else (),
        measures={MEASURED[id]: (0,) if measured else ()} if id in MEASURED else {},
        positive=share(192, "auc") if measured else None,
        negative=share(100, "auc") if measured else None,
        seconds=float(rng.uniform(2, 40)),
        seed=seed,
        mapping=(ATLAS, OWASP) if index < 2 else (MEASURE,),
        read=READ[id][protection != "unsafe_plaintext"],
        chance=0.5,
        margin=0.05,
        detectable=(
            Detectable(metric="auc", unit="AUC", bar=0.55, smallest=0.648, how="100 there, 100 not"),
        )
        if measured
        else (),
        roc=Roc(positives=100, negatives=100, steps=((0, hits // 20), (2, hits // 5), (30, hits // 2)))
        if hits and id == "A5"
        else None,
    )


def _ledger(level: int, place: str) -> tuple[LedgerRow, ...]:
    def row(message: str, party: str, reveals: str, count: int, size: int) -> LedgerRow:
        return LedgerRow(
            message=message,
            party=party,
            reveals=reveals,
            count=count,
            payload_bytes=count * size,
            source=f"{place}/seed-0/federation/ledger.jsonl#{message}",
        )

    always = (
        row("Proxy", "clients", "the proxy: blocks of the LLM, word for word", 12, 4_100_000),
        row("Broadcast", "clients", "the tuned adapter of the last round", 72, 412_000),
    )
    if level == 0:
        return (*always, row("Update", "server", "the client's whole update", 72, 412_000))
    return (
        *always,
        row("Advertise", "server", "that the client takes part", 72, 300),
        row("KeyBook", "clients", "which clients take part", 72, 1_200),
        row("MaskedInput", "server", "uniform words, while one honest pair remains", 72, 420_000),
        row("Unmask", "server", "with t of them: the sum over the survivors", 72, 500),
        row("sum of MaskedInput", "server", "102,912 sums over 4 clients", 18, 412_000),
    )
