"""From what a run left on disk to the measures of a configuration: the trilemma's numbers and sources.

    result.json           accuracies, perplexities, fidelity, privacy events and what they cost, seconds
    federation/*.jsonl    rounds (curves) and the leakage ledger (bytes, who saw what)
    attacks/results.json  findings of a suite, where one ran

Each number is made per seed first and then joined over seeds; epsilon is composed over them (see
`report.composition`), for they train on the same records. A number that a run does not have is left out,
never guessed: `not_measured` says which and why.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedproxy_secure.artifacts import RunFolder
from fedproxy_secure.config import Config
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.report.composition import Training, joined
from fedproxy_secure.report.estimate import (
    Bits,
    Estimate,
    alone,
    counted,
    gap_closed,
    mean_interval,
    mean_share,
    no_surer,
    over_seeds_or_records,
)
from fedproxy_secure.report.finding import FOLDER, RESULTS, Finding, Outcome, read_findings
from fedproxy_secure.report.spending import epsilons
from fedproxy_secure.report.trilemma import Axis, Better, Configuration, Curve, LedgerRow, Measure
from fedproxy_secure.untrusted import read_json

VECTORS = ("Update", "MaskedInput", "Encrypted", "Broadcast", "Proxy")  # payload; all else is protocol
ATTACKED = "no suite of attacks ran: measured privacy and extraction are missing; add --suite smoke"
# key -> what it is called, which attacks measure it, their metric (`*`: how its name begins)
LEAKS: Mapping[str, tuple[str, Set[str], str]] = {
    "token_auc": ("token AUC", {"A1", "A2"}, "auc"),
    "exact_sequence_recall": ("sequences found exactly", {"A3"}, "exact recall"),
    "tpr_at_1pct_fpr": ("membership: TPR at 1 % FPR", {"A5", "A6"}, "TPR at 1.0% FPR*"),
    "membership_auc": ("membership AUC", {"A5", "A6"}, "auc"),
    "canary_exposure_bits": ("canary exposure", {"A7"}, "exposure in the*"),
    "epsilon_audited": ("audited epsilon, lower bound", {"A8"}, "audited epsilon"),
}
SHARES = {"token_auc", "exact_sequence_recall", "tpr_at_1pct_fpr", "membership_auc"}  # between 0 and 1
EXTRACTION = {
    "extraction_R": "extraction R",
    "api_gain": "API gain",
    "proxy_gain": "proxy gain",
    "healing_R": "healing R",
}


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one configuration, as it lies on disk. `place` is the path of its files in sources."""

    seed: int
    place: str
    result: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    ledger: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    ceiling: Bits | None = None  # the centralised LLM's answers, same seed and records

    def training(self, config: Config) -> Training:
        """What it spent. Raises `RunFolderError` if what its result says of that is no event or number."""
        try:
            return Training.of_result(self.result, delta=config.privacy.target_delta)
        except DataError as error:
            raise RunFolderError(f"{self.place}/seed-{self.seed}/result.json: {error}") from error


def read_seed(run: Path, seed: int, *, root: Path, ceiling: Bits | None = None) -> SeedRun:
    """One seed of the run in `run`; sources are told relative to `root`, the report's folder.

    Raises `RunFolderError` if the seed did not finish.
    """
    folder = run / f"seed-{seed}"
    try:
        result = read_json(folder / "result.json")
    except OSError as error:
        raise RunFolderError(f"{folder / 'result.json'}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunFolderError(f"{folder / 'result.json'}: is damaged; delete it and resume") from error
    files = RunFolder(path=folder / "federation")
    findings = [f for f in read_findings(run) if f.seed_folder == folder.name] if attacked(run) else []
    return SeedRun(
        seed=seed,
        place=_relative(run, root),
        result=result,
        rounds=tuple(files.read_jsonl("rounds.jsonl")),
        ledger=tuple(files.read_jsonl("ledger.jsonl")),
        findings=tuple(findings),
        ceiling=ceiling,
    )


def attacked(run: Path) -> bool:
    """Whether a suite of attacks has ended on the run."""
    return (run / FOLDER / RESULTS).is_file()


def configuration_of(
    seeds: Sequence[SeedRun],
    config: Config,
    *,
    name: str,
    settings: Mapping[str, str],
    guarantees: Sequence[str] = (),
    failed: Sequence[str] = (),
    commands: Sequence[str] = (),
    besides: Sequence[Training] = (),
) -> Configuration:
    """All measures, curves, findings and ledger rows of one configuration's finished seeds.

    Args:
        besides: what trainings on the same records spent that are none of `seeds`, as they did not finish.
    """
    private = config.privacy.unit != "none"
    trainings = [*(s.training(config) for s in seeds), *besides] if private else []
    if not seeds:
        return Configuration(
            name=name,
            settings=settings,
            seeds=(),
            unsafe=unsafe_stamps(config),
            privacy_unit=config.privacy.unit,
            failed=tuple(failed),
            commands=tuple(commands),
            spends=joined(trainings) or {},
        )
    return Configuration(
        name=name,
        settings=settings,
        seeds=tuple(s.seed for s in seeds),
        measures=(*_performance(seeds), *_privacy(seeds, config, trainings), *_ip(seeds), *_cost(seeds)),
        curves=_curves(seeds),
        findings=tuple(f for s in seeds for f in s.findings),
        ledger=_ledger(seeds),
        guarantees=tuple(guarantees),
        unsafe=unsafe_stamps(config),
        privacy_unit=config.privacy.unit,
        failed=tuple(failed),
        commands=tuple(commands),
        folders={f"seed-{s.seed}": s.place for s in seeds},
        spends=joined(trainings) or {},
    )


def cost_against(seeds: Sequence[SeedRun], base: Sequence[SeedRun]) -> tuple[Measure, ...]:
    """Bytes and seconds over those of the unprotected runs `base`, by seed; () without a common seed."""
    by_seed = {s.seed: s for s in base}
    pairs = [(s, by_seed[s.seed]) for s in seeds if s.seed in by_seed]
    if not pairs:
        return ()
    made = []
    for key, of in (("upload_over_unprotected", _uploaded), ("seconds_over_unprotected", _federated)):
        values = {s.seed: of(s) / of(b) for s, b in pairs if of(b) > 0}
        if len(values) == len(pairs):
            made.append(_values([s for s, _ in pairs], values, "cost", key, "lower", "ratio"))
    return tuple(made)


def _uploaded(s: SeedRun) -> float:
    rows = (r for r in s.ledger if r["to"] == "server" and not r["message"].startswith("sum of"))
    return float(sum(r["bytes"] for r in rows))


def _federated(s: SeedRun) -> float:
    return sum(float(r.get("seconds", 0.0)) for r in s.rounds)


def unsafe_stamps(config: Config) -> tuple[str, ...]:
    """What every report on these settings must say first; () if nothing in them is unsafe."""
    stamps = []
    if config.protect.scheme == "unsafe_plaintext":
        stamps.append("unsafe_plaintext: the server sees every client's update.")
    if config.protect.scheme == "ckks":
        stamps.append(
            "ckks: protects against a server that follows the protocol and that no client helps; any one "
            "client and the server open every update."
        )
    if config.protect.weights == "encrypted_gram":
        stamps.append(
            "encrypted_gram: cosines are hidden from a server that follows the protocol; one that deviates "
            "reads a number of one client's update per round."
        )
    if config.privacy.unit != "none" and config.privacy.randomness == "unsafe_simulated":
        stamps.append("unsafe_simulated: the noise follows from the seed; nothing is private.")
    return tuple(stamps)


def _performance(seeds: Sequence[SeedRun]) -> list[Measure]:
    models = {"zero_shot": "zero_shot", "tuned_proxy": "tuned", "fused": "fused"}
    made = [
        _answers(seeds, "performance", f"accuracy_{key}", "higher", alone, [model])
        for key, model in models.items()
    ]
    if all(s.ceiling is not None for s in seeds):
        made.append(_answers(seeds, "performance", "accuracy_centralised", "higher", alone, ["ceiling"]))
        if all(mean_share(_bits(s, "ceiling")) != mean_share(_bits(s, "zero_shot")) for s in seeds):
            made.append(
                _answers(
                    seeds,
                    "performance",
                    "gap_closed",
                    "higher",
                    gap_closed,
                    ["fused", "zero_shot", "ceiling"],
                )
            )
    before = {s.seed: float(s.result["fidelity"]["llm_perplexity"]) for s in seeds}
    made.append(_values(seeds, before, "performance", "perplexity_before", "lower", "perplexity"))
    after = {s.seed: float(s.result["perplexity"]["fused"]) for s in seeds if "perplexity" in s.result}
    made += _maybe(seeds, after, "performance", "perplexity_after", "lower", "perplexity")
    return made


def _ip(seeds: Sequence[SeedRun]) -> list[Measure]:
    made: list[Measure] = []
    fidelity: dict[str, dict[int, float]] = {}
    held = {s.seed: float(s.result["verbatim_share"]) for s in seeds if "verbatim_share" in s.result}
    made += _maybe(seeds, held, "ip", "verbatim_share", "lower", "share")
    made.append(
        _answers(
            seeds,
            "ip",
            "owners_edge",
            "higher",
            operator.sub,
            ["fused", "tuned"],
        )
    )
    made.append(_answers(seeds, "ip", "proxy_accuracy", "neither", alone, ["proxy"]))
    for s in seeds:
        shape = s.result["fidelity"]
        for key, value in (
            ("proxy_kl_nats", shape["kl_nats"]),
            ("proxy_cka", sum(shape["cka"]) / len(shape["cka"])),
            ("proxy_perplexity_ratio", shape["proxy_perplexity"] / shape["llm_perplexity"]),
        ):
            fidelity.setdefault(key, {})[s.seed] = float(value)
    units = {"proxy_kl_nats": "nats", "proxy_cka": "CKA", "proxy_perplexity_ratio": "ratio"}
    made += [_values(seeds, v, "ip", key, "neither", units[key]) for key, v in fidelity.items()]
    for key, metric in EXTRACTION.items():
        made += _worst(seeds, "ip", key, metric, {"A12"}, metric)
    return made


def _privacy(seeds: Sequence[SeedRun], config: Config, trainings: Sequence[Training]) -> list[Measure]:
    numbers = [s.seed for s in seeds]
    made = epsilons(config, trainings, seeds=numbers, place=seeds[0].place) if trainings else []
    least = min(len(r["participants"]) for s in seeds for r in s.rounds)
    cohort = 1 if config.protect.scheme == "unsafe_plaintext" else least - config.protect.colluders
    made.append(
        Measure(
            axis="privacy",
            key="effective_cohort",
            better="higher",
            estimate=counted(cohort, metric="fewest clients in a sum", unit="clients", seeds=numbers),
            source=f"{seeds[0].place}/seed-{seeds[0].seed}/federation/rounds.jsonl#participants",
        )
    )
    for key, (metric, attacks, named) in LEAKS.items():
        made += _worst(seeds, "privacy", key, metric, attacks, named)
    return made


def _cost(seeds: Sequence[SeedRun]) -> list[Measure]:
    made = []
    parts: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
        ("upload_bytes", lambda row: row["to"] == "server" and not row["message"].startswith("sum of")),
        ("download_bytes", lambda row: row["to"] == "clients" and row["message"] != "Proxy"),
        (
            "protocol_bytes",
            lambda row: row["message"] not in VECTORS and not row["message"].startswith("sum of"),
        ),
    )
    for key, wanted in parts:
        values = {}
        for s in seeds:
            messages = sum(len(r["participants"]) for r in s.rounds)
            values[s.seed] = sum(row["bytes"] for row in s.ledger if wanted(row)) / max(messages, 1)
        made.append(
            Measure(
                axis="cost",
                key=key,
                better="lower",
                estimate=_exact_or_mean(values, metric=f"{_words(key)}, a client and round", unit="bytes"),
                source=f"{seeds[0].place}/seed-{seeds[0].seed}/federation/ledger.jsonl#bytes",
            )
        )
    federated = {s.seed: _federated(s) for s in seeds}
    made.append(_values(seeds, federated, "cost", "seconds_federate", "lower", "s"))
    timed = [s for s in seeds if "seconds" in s.result]
    total = {s.seed: sum(s.result["seconds"].values()) for s in timed}
    made += _maybe(seeds, total, "cost", "seconds_total", "lower", "s")
    peak = {s.seed: float(s.result["peak_memory_bytes"]) for s in timed}
    return made + _maybe(seeds, peak, "cost", "peak_memory_bytes", "lower", "bytes")


def _curves(seeds: Sequence[SeedRun]) -> tuple[Curve, ...]:
    made = []
    for key, title, unit in (
        ("loss", "training loss (nats a token)", "nats"),
        ("step_norm", "how far the adapter moved", "norm"),
    ):
        if not all(r.get(key) is not None for s in seeds for r in s.rounds):
            continue  # under differential privacy losses stay with the clients
        points = []
        for number in range(min(len(s.rounds) for s in seeds)):
            values = {s.seed: float(s.rounds[number][key]) for s in seeds}
            points.append((number, mean_interval(values, metric=f"{title}, round {number}", unit=unit)))
        source = f"{seeds[0].place}/seed-{seeds[0].seed}/federation/rounds.jsonl#{key}"
        made.append(Curve(key=key, title=title, points=tuple(points), source=source))
    return tuple(made)


def _ledger(seeds: Sequence[SeedRun]) -> tuple[LedgerRow, ...]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for s in seeds:
        for line in s.ledger:
            row = rows.setdefault(
                (line["message"], line["to"]), {"reveals": line["reveals"], "count": 0, "bytes": 0}
            )
            row["count"] += line["count"]
            row["bytes"] += line["bytes"]
    return tuple(
        LedgerRow(
            message=message,
            party=party,
            reveals=row["reveals"],
            count=row["count"],
            payload_bytes=row["bytes"],
            source=f"{seeds[0].place}/seed-{seeds[0].seed}/federation/ledger.jsonl#{message}",
        )
        for (message, party), row in rows.items()
    )


def _worst(
    seeds: Sequence[SeedRun],
    axis: Axis,
    key: str,
    metric: str,
    attacks: Set[str],
    named: str,
) -> list[Measure]:
    """The highest number called `named` that any of these attacks reached, by seed, then over seeds.

    Attacks that could not tell (inconclusive, error) count too where they left a number: what they show is
    a lower bound on what leaks.
    """
    best: dict[int, tuple[Estimate, Finding]] = {}
    for s in seeds:
        found = [
            (e, f)
            for f in s.findings
            if f.id in attacks and f.outcome not in (Outcome.NOT_APPLICABLE, Outcome.ERROR)
            for e in f.estimates
            if _called(e.metric, named)
        ]
        if found:
            worst, finding = max(found, key=lambda pair: pair[0].value)
            ends = [e.high for e, _ in found if e.high is not None]
            if worst.high is not None:  # of another view it may reach further
                worst = replace(worst, high=max(ends))
            best[s.seed] = worst, finding
    if len(best) < len(seeds):
        return []
    ((first, where), *_) = best.values()
    if len(seeds) == 1:
        estimate = Estimate(**{**vars(first), "metric": metric, "seeds": (seeds[0].seed,)})
    else:
        values = {k: e.value for k, (e, _) in best.items()}
        limits = (0.0, 1.0) if key in SHARES else (-math.inf, math.inf)
        joined = mean_interval(values, metric=metric, unit=first.unit, within=limits)
        estimate = no_surer(joined, [e for e, _ in best.values()])
    how = f"{estimate.how}; the worst of {', '.join(sorted(attacks))} over all views"
    place = seeds[0].place
    return [
        Measure(
            axis=axis,
            key=key,
            better="lower",
            estimate=Estimate(**{**vars(estimate), "how": how}),
            source=f"{place}/{FOLDER}/{RESULTS}#{where.attack} from {where.view}",
        )
    ]


def _answers(
    seeds: Sequence[SeedRun],
    axis: Axis,
    key: str,
    better: Better,
    statistic: Callable[..., float],
    models: Sequence[str],
) -> Measure:
    by_seed = {s.seed: [_bits(s, m) for m in models] for s in seeds}
    return Measure(
        axis=axis,
        key=key,
        better=better,
        estimate=over_seeds_or_records(by_seed, statistic, _words(key)),
        source=f"{seeds[0].place}/seed-{seeds[0].seed}/result.json#{models[0]}",
    )


def _bits(s: SeedRun, model: str) -> Bits:
    if model == "ceiling":
        assert s.ceiling is not None
        return s.ceiling
    return {task: [c == "1" for c in text] for task, text in s.result[model].items()}


def _values(
    seeds: Sequence[SeedRun], values: Mapping[int, float], axis: Axis, key: str, better: Better, unit: str
) -> Measure:
    return Measure(
        axis=axis,
        key=key,
        better=better,
        estimate=_exact_or_mean(values, metric=_words(key), unit=unit),
        source=f"{seeds[0].place}/seed-{seeds[0].seed}/result.json#{key}",
    )


def _maybe(
    seeds: Sequence[SeedRun], values: Mapping[int, float], axis: Axis, key: str, better: Better, unit: str
) -> list[Measure]:
    return [_values(seeds, values, axis, key, better, unit)] if len(values) == len(seeds) else []


def _exact_or_mean(values: Mapping[int, float], *, metric: str, unit: str) -> Estimate:
    """Bytes and shares of weights are the same for every seed and exact; all else is a mean over seeds."""
    if unit in ("bytes", "share") and len(set(values.values())) == 1:
        value = next(iter(values.values()))
        return counted(value, metric=metric, unit=unit, seeds=values, n=len(values))
    return mean_interval(values, metric=metric, unit=unit)


def _called(metric: str, named: str) -> bool:
    return metric.startswith(named[:-1]) if named.endswith("*") else metric == named


def _words(key: str) -> str:
    return key.replace("_", " ")


def _relative(run: Path, root: Path) -> str:
    try:
        return run.resolve().relative_to(root.resolve()).as_posix() or "."
    except ValueError:
        return run.as_posix()
