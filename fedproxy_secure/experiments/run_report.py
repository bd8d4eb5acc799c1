"""The report of a run's finished seeds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import Config
from fedproxy_secure.evidence.answers import Bits, over_seeds_or_records, share_right
from fedproxy_secure.evidence.estimate import Estimate, counted, mean_interval
from fedproxy_secure.evidence.losses import Losses, loss_of, losses_by_task, measured
from fedproxy_secure.experiments.results import NORM, choice_notes, cut_notes, healing_note, text_clients
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.report.composition import Training, composed, one_alone
from fedproxy_secure.report.measured import (
    ATTACKED,
    SeedRun,
    attacked,
    configuration_of,
    lacking_on_some_seed,
    without_losses,
)
from fedproxy_secure.report.measured.proxies import FIDELITY
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.report.spending import guarantees_of, total
from fedproxy_secure.report.sweep import percent
from fedproxy_secure.runtime.artifacts import environment


def settings_of(config: Config) -> dict[str, str]:
    """Return the settings of a configuration that a report shows: those that a matrix can sweep."""
    return {
        "protection": config.protect.scheme,
        "compression": config.compress.kind,
        "remove_ratio": f"{config.compress.remove_ratio:g}",
        "fusion": config.fusion.rule,
        "adapter": config.adapter.kind,
    }


def protection_note(config: Config) -> str:
    """Return what the server could see, in a few sentences for every report."""
    from fedproxy_secure.federate.job import FederationJob

    protection, privacy = protection_of(config.protect), config.privacy
    summed = ""
    if protection.server_learns == "sums":
        job = FederationJob.from_config(config, seed=config.seeds[0])
        least = max(protection.least_clients(job), config.federate.min_clients)
        summed = f" Each sum is over at least {least} of a round's {config.cohort} clients."
    if privacy.unit == "none":
        open_sums = ": the sums themselves may leak" if protection.server_learns == "sums" else ""
        private = f"No differential privacy{open_sums}."
    else:
        limit = f"epsilon {privacy.limit:g} at most for one seed alone"
        private = f"{privacy.unit.capitalize()}-level differential privacy, {limit}."
        if privacy.randomness == "unsafe_simulated":
            private += " With unsafe_simulated randomness nothing is private."
    return f"{protection.sees(config.protect, config.fusion)}{summed} {private}"


def proxy_note(config: Config) -> str:
    """Return one sentence on how the proxy was compressed."""
    compress = config.compress
    options = "".join(f", {key}={value}" for key, value in compress.options.items())
    title = compression_of(compress).title
    return (
        f"Proxy: {title} ({compress.kind}{options}), {percent(compress.remove_ratio)}% of the LLM removed."
    )


def healing_notes(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cost and the effect of healing, means over seeds; () for exact copies."""
    healed = [r["healing"] for r in results if "healing" in r]
    if not healed:
        return ()

    def mean(of: Callable[[Mapping[str, Any]], float]) -> float:
        return sum(of(r) for r in results) / len(results)

    note = healing_note(
        "The proxy",
        healed,
        before=mean(lambda r: r["healing"]["before_healing"]["fidelity"]["kl_nats"]),
        after=mean(lambda r: r["fidelity"]["kl_nats"]),
    )
    return (
        f"{note}; weights held verbatim "
        f"{mean(lambda r: r['healing']['before_healing']['verbatim_share']):.1%} before, "
        f"{mean(lambda r: r['verbatim_share']):.1%} after.",
    )


def found_scales(seeds: Iterable[SeedRun]) -> dict[int, float]:
    """Return, by seed, the factor of the lifted difference, for seeds that searched for it."""
    searches = {s.seed: s.result["plug_back"] for s in seeds}
    return {seed: search["scale"] for seed, search in searches.items() if search["tried"]}


def aligned_windows(seeds: Iterable[SeedRun]) -> list[int]:
    """Return on how many windows of public text each seed's fused LLM was aligned."""
    return [s.result["plug_back"]["aligned_windows"] for s in seeds]


def plug_back_notes(
    config: Config, scales: Mapping[str, Mapping[int, float]], aligned: Iterable[int]
) -> tuple[str, ...]:
    """Return the notes on searched factors and on alignment; () if the settings ask for neither.

    Args:
        scales: for each configuration or method (an empty name for a run's own) the factors by seed.
        aligned: on how many windows each fused LLM was aligned; the text may have fewer than asked for.
    """

    def factors_text(name: str, by_seed: Mapping[int, float]) -> str:
        factors = ", ".join(f"{factor:g} (seed {seed})" for seed, factor in by_seed.items())
        return f"{name}: {factors}" if name else factors

    notes = []
    searched = "; ".join(factors_text(name, by_seed) for name, by_seed in scales.items() if by_seed)
    if searched:
        notes.append(
            "Plug-back: the lifted difference is multiplied by a factor before it is added. Of the factors "
            "tried, it is the one at which the fused LLM predicts public text most like the tuned proxy: "
            + searched
            + "."
        )
    asked, windows = config.plug_back.align_windows, max(aligned, default=0)
    if asked and windows:
        fewer = f"={asked}; the text has no more" if windows < asked else ""
        notes.append(
            f"Plug-back: the fused LLM is aligned on {windows} windows of public text "
            f"(plug_back.align_windows{fewer}), except for proxies with hidden states of their own "
            "(rotated ones), FedOT and methods named exact_..."
        )
    elif asked:
        notes.append(
            f"Plug-back: no result says that its fused LLM was aligned (plug_back.align_windows={asked}). "
            "Proxies with hidden states of their own (rotated ones), FedOT and methods named exact_... "
            "never are."
        )
    return tuple(notes)


def report_of(config: Config, out: Path, seeds: Sequence[SeedRun], command: str) -> Report:
    """Return the report of a run's finished seeds, with the trilemma, and with findings if a suite ran."""
    from fedproxy_secure.models.llm import pick_device

    trainings = [seed.training(config) for seed in seeds]
    configuration = configuration_of(
        seeds,
        config,
        name=config.name,
        settings=settings_of(config),
        guarantees=guarantees_of(config, trainings),
        commands=(command,),
    )
    together = total([configuration], same_records=True)
    truncated = max(s.result["truncated"] for s in seeds)
    return Report(
        name=config.name,
        command=command,
        config_sha256=config.sha256(),
        environment=environment(str(pick_device(config.model.device))),
        seeds=config.seeds,
        rows=_rows(config, seeds),
        estimates=tuple(
            mean_interval({s.seed: s.result["fidelity"][key] for s in seeds}, metric=metric, unit=unit)
            for key, (metric, unit) in FIDELITY.items()
        )
        + _spent(trainings, config.seeds),
        notes=(
            protection_note(config),
            proxy_note(config),
            config.api.says,
            *healing_notes([s.result for s in seeds]),
            *plug_back_notes(config, {"": found_scales(seeds)}, aligned_windows(seeds)),
            *cut_notes(truncated, config),
            *choice_notes(config),
            *seeds[0].result["privacy_notes"],
        ),
        guarantees=configuration.guarantees,
        configurations=side_by_side([configuration])[0],
        total_epsilon=together.epsilon,
        composition=together.says,
        not_measured=(
            *(() if attacked(out) else (ATTACKED,)),
            *without_losses([configuration], text_clients(config)),
            *lacking_on_some_seed([configuration]),
        ),
    )


def _rows(config: Config, seeds: Sequence[SeedRun]) -> tuple[MethodRow, ...]:
    """Return the rows of the LLM, the proxy and the fused LLM."""
    fused, tuned = _bits(seeds, "fused"), _bits(seeds, "tuned")
    ratio, estimates = config.compress.remove_ratio, dict[str, Any]()
    if _all_have(fused):
        pairs = {seed: (fused[seed], tuned[seed]) for seed in fused}
        estimates["tuned_proxy"] = share_right(tuned, "tuned proxy accuracy")
        estimates["owners_edge"] = over_seeds_or_records(pairs, operator.sub, "owner's edge")
    if all(map(measured, (lost := _losses(seeds, "tuned")).values())):
        estimates["tuned_proxy_loss"] = loss_of(lost, "tuned proxy loss")
    return (
        _row(seeds, "zero_shot", "zero_shot"),
        _row(seeds, "zero_shot_proxy", "proxy", remove_ratio=ratio),
        _row(seeds, f"fedproxy_{config.fusion.rule}", "fused", remove_ratio=ratio, **estimates),
    )


def _row(seeds: Sequence[SeedRun], method: str, model: str, **estimates: Any) -> MethodRow:
    """Return one row; `model`: the key of the model's answers in a seed's result."""
    if _all_have(bits := _bits(seeds, model)):
        tasks, average = _accuracies(_bits(seeds, model + NORM), "acc_norm", method)
        estimates |= {"tasks_norm": tasks, "average_norm": average}
        tasks, average = _accuracies(bits, "accuracy", method)
        estimates |= {"tasks": tasks, "average": average}
    if all(map(measured, (lost := _losses(seeds, model)).values())):
        estimates |= {"tasks_loss": losses_by_task(lost, method), "loss": loss_of(lost, f"loss, {method}")}
    return MethodRow(method=method, **estimates)


def _all_have(by_seed: Mapping[int, Mapping[str, Any]]) -> bool:
    """Return whether every seed has a value for some task."""
    return all(by_seed.values())


def _accuracies(
    answers: Mapping[int, Bits], score: str, method: str
) -> tuple[dict[str, Estimate], Estimate]:
    """Return the share of right answers on each task, and on average over tasks."""
    tasks = {
        task: share_right({s: {task: a[task]} for s, a in answers.items()}, f"{score} on {task}, {method}")
        for task in next(iter(answers.values()))
    }
    return tasks, share_right(answers, f"{score}, {method}")


def _losses(seeds: Sequence[SeedRun], model: str) -> dict[int, Losses]:
    """Return the losses of a model on free text, by seed."""
    return {s.seed: s.losses(model) for s in seeds}


def _bits(seeds: Sequence[SeedRun], model: str) -> dict[int, Bits]:
    """Return the answers of a model, by seed."""
    return {s.seed: s.answers(model) for s in seeds}


def _spent(trainings: Sequence[Training], seeds: Sequence[int]) -> tuple[Estimate, ...]:
    """Return the largest epsilon of any client: over all seeds by both accountants, and for one seed."""
    cost, alone = composed(trainings), one_alone(trainings)
    if cost is None or alone is None or not cost.finite:
        return ()
    by = {"rdp": cost.spent.rdp, "prv": cost.spent.prv} if cost.spent is not None else {}
    numbers = {"epsilon spent, client that spent most": cost.epsilon}
    numbers |= {
        f"epsilon spent, by the {name.upper()} accountant, client that spent most": value
        for name, value in by.items()
        if value is not None
    }
    together = f"{len(trainings)} trainings together, " if len(trainings) > 1 else ""
    how = f"counted, exact: {together}{cost.how}"
    spent = tuple(
        replace(counted(value, metric=name, unit="epsilon", seeds=seeds), how=how)
        for name, value in numbers.items()
    )
    if len(trainings) == 1:
        return spent
    name = "epsilon spent by one seed alone, client that spent most"
    return (*spent, counted(alone, metric=name, unit="epsilon", seeds=seeds))
