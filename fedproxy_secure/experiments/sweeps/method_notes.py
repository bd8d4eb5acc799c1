"""The notes and stamps of a comparison's report: guarantees, what is unsafe, the budget, cut prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fedproxy_secure.config import CompressConfig, Config
from fedproxy_secure.dp.guarantees import guarantees
from fedproxy_secure.evidence.answers import Bits
from fedproxy_secure.evidence.number import named_seeds
from fedproxy_secure.experiments.method import Method, method_of
from fedproxy_secure.experiments.results import READ_BY_NORM, choice_notes, cut_notes, healing_note
from fedproxy_secure.experiments.sweeps.method_cells import CellResult
from fedproxy_secure.experiments.sweeps.method_rows import unresolved, unresolved_by_loss
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.report.measured import NO_GAP
from fedproxy_secure.report.stamps import whole_llm_stamps
from fedproxy_secure.runtime.files.names import PROXIES, PROXY_RECORD


def comparison_notes(config: Config, truncated: int) -> tuple[str, ...]:
    """Return what a reader must know to interpret the numbers.

    Args:
        truncated: how many prompts were cut.
    """
    methods = [method_of(name) for name in config.compare.methods]
    privacy = config.privacy
    promised = guarantees(
        privacy.unit,
        epsilon=privacy.limit,
        delta=privacy.target_delta,
        clip_norm=privacy.clip_norm,
        mechanism=privacy.mechanism,
        simulated=privacy.randomness == "unsafe_simulated",
    )
    return (
        *promised,
        *(() if privacy.unit == "none" else _limits_of_privacy(config, methods)),
        *(method.note for method in methods if method.note),
        f"Budget: {config.federate.rounds} rounds x {config.local.steps} steps x "
        f"{config.local.batch_size} records for each of {_asked(config)}; a method that does not federate "
        "sees as many in total.",
        *cut_notes(truncated, config),
        *choice_notes(config),
        *_norm_notes(config),
    )


def _asked(config: Config) -> str:
    """Return the size of a round's cohort, in words."""
    clients = len(config.data.clients)
    return f"{clients} clients" if config.cohort == clients else f"{config.cohort} of {clients} clients"


def proxy_notes(
    results: Sequence[CellResult], records: Mapping[float, Mapping[int, Mapping[str, Any]]]
) -> list[str]:
    """Return notes on how proxies were healed, and on those whose fidelity the folder lacks.

    `records`: the records of the proxies, by remove ratio and seed (`records_of`).
    """
    notes, unknown = [], []
    needed: dict[float, set[int]] = {}
    for r in results:
        if r.cell.remove_ratio is not None and method_of(r.cell.method).settings_proxy:
            needed.setdefault(r.cell.remove_ratio, set()).add(r.cell.seed)
    for ratio, seeds in sorted(needed.items()):
        known = records.get(ratio, {})
        if healed := {s: record["healing"] for s, record in known.items() if "healing" in record}:
            notes.append(_healed(ratio, healed))
        if lacking := sorted(seeds - known.keys()):
            unknown.append(f"at {ratio:g} ({named_seeds(lacking)})")
    if unknown:
        notes.append(
            f"Not told: how like the LLM the proxy is {'; '.join(unknown)}. "
            f"No {PROXIES}/NAME/{PROXY_RECORD} of these settings and this version says it; "
            "cells that were copied come without."
        )
    return notes


def unresolved_gaps(results: Sequence[CellResult], counting: Collection[str] = ()) -> list[str]:
    """Return a line for each kind of gap closed that rows lack because the gap is not resolved.

    `counting`: the tasks of `gap_closed_counting`.
    """
    scores: Mapping[str, Callable[[CellResult], Bits]] = {
        "gap_closed": lambda r: r.fused,
        "gap_closed_norm": lambda r: r.fused_norm,
        "gap_closed_counting": lambda r: {task: bits for task, bits in r.fused.items() if task in counting},
    }
    rows = {key: unresolved(results, of) for key, of in scores.items()}
    rows["loss_gap_closed"] = unresolved_by_loss(results)
    return [f"{key} of {', '.join(names)}: {NO_GAP}" for key, names in rows.items() if names]


def _healed(ratio: float, healed: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the note on the healing of a proxy, with means over seeds."""
    before, after = (
        sum(h[key] for h in healed.values()) / len(healed) for key in ("kl_before", "kl_after")
    )
    note = healing_note(
        f"The proxy at {ratio:g}",
        list(healed.values()),
        before=before,
        after=after,
        windows="on windows that healing held out, ",
    )
    return f"{note} ({named_seeds(healed)})."


def _norm_notes(config: Config) -> list[str]:
    """Return the note on tasks for which users of lm-eval read acc_norm instead of acc."""
    names = [c.name for c in config.data.clients if c.task in READ_BY_NORM]
    if not names:
        return []
    return [
        "Accuracy, gap closed and differences use acc. For question answering "
        f"({', '.join(names)}), lm-eval users usually report acc_norm; if it differs, see its own tables."
    ]


def stamps_of_methods(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the unsafe aspects of the methods' protection and proxies, each with the methods' names.

    A method that has no proxy says in its title what its clients hold.
    """
    names: dict[str, list[str]] = {}
    for method in (method_of(name) for name in config.compare.methods):
        settings = method.federation(config)
        if settings is not None:
            for stamp in protection_of(settings.protect).unsafe(settings.protect):
                names.setdefault(stamp, []).append(method.name)
        if method.needs_ratio and (settings is not None or method.alone):  # clients hold the proxy
            base = config.compress if method.settings_proxy else CompressConfig()
            for ratio in config.compare.remove_ratios:
                for stamp in whole_llm_stamps(base.model_copy(update={"remove_ratio": ratio})):
                    names.setdefault(stamp, []).append(method.name)
    return {stamp: tuple(whose) for stamp, whose in names.items()}


def _limits_of_privacy(config: Config, methods: Sequence[Method]) -> list[str]:
    open_ones = [m.name for m in methods if m.trains and m.federation(config) is None]
    lines = [
        "This epsilon covers a single federated method with one seed: every method, remove ratio and seed "
        "trains on the same records, so their epsilons compose."
    ]
    if open_ones:
        lines.append(f"Without differential privacy, because not federated: {', '.join(open_ones)}.")
    return lines
