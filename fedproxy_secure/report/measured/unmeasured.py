"""Notes on measures that a report should have but does not: losses, gaps closed, what some seed lacks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedproxy_secure.evidence.measure import in_order
from fedproxy_secure.evidence.measures import performance as kinds
from fedproxy_secure.evidence.number import named_seeds
from fedproxy_secure.report.measured.attacks import counts
from fedproxy_secure.report.report import MethodRow
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.files.names import seed_folder

WHY = "a model has diverged, and its loss is not finite (train it less, or slower)"
DIVERGED = (
    "the fused LLM of a seed has diverged, and its perplexity is not finite (train it less, or slower)"
)
NO_GAP = (
    "the LLM tuned on all records together is not better than the LLM before tuning beyond the interval of "
    "their difference, so there is no gap to measure by"
)
_OF_A_RUN = (
    kinds.LOSS_ZERO_SHOT,
    kinds.LOSS_ZERO_SHOT_PROXY,
    kinds.LOSS_TUNED_PROXY,
    kinds.LOSS_FUSED,
)


def without_losses(
    configurations: Sequence[Configuration], texts: Collection[str], *, ceiling: bool = False
) -> list[str]:
    """Return a line for each configuration that lacks a loss although it has clients with free text.

    Args:
        configurations: the report's configurations.
        texts: the tasks of free text.
        ceiling: whether the centralised LLM was trained with every seed.
    """
    expected = (*_OF_A_RUN, *((kinds.LOSS_CENTRALISED,) if ceiling else ()))
    lines = []
    for configuration in configurations if texts else ():
        present = {m.key for m in configuration.measures}
        missing = [kind.key for kind in expected if kind.key not in present]
        if missing and configuration.seeds:
            lines.append(f"{', '.join(missing)} of {configuration.name}: {WHY}")
    return lines


def lacking_on_some_seed(configurations: Sequence[Configuration]) -> list[str]:
    """Return a line for each measure that is left out because a finished seed has no number of it.

    Measures of losses and of gaps have lines of their own (`without_losses`, `without_gap`).
    """
    lines = []
    for configuration in configurations:
        before, after = (
            configuration.measure(kind.key) for kind in (kinds.PERPLEXITY_BEFORE, kinds.PERPLEXITY_AFTER)
        )
        if before is not None and after is None:
            lines.append(f"{kinds.PERPLEXITY_AFTER.key} of {configuration.name}: {DIVERGED}")
        for key in in_order(key for f in configuration.findings for key in f.measures):
            folders = {f.seed_folder for f in configuration.findings if counts(f, key)}
            lacking = [s for s in configuration.seeds if seed_folder(s) not in folders]
            if folders and lacking:
                lines.append(
                    f"{key} of {configuration.name}: no attack has a number of it with "
                    f"{named_seeds(lacking)}, and a mean over the other seeds would mislead"
                )
    return lines


def without_gap(configurations: Sequence[Configuration]) -> list[str]:
    """Return a line for each gap closed of a configuration that is left out because it is not resolved."""
    needs = {
        kinds.GAP_CLOSED: (kinds.ACCURACY_CENTRALISED,),
        kinds.LOSS_GAP_CLOSED: (kinds.LOSS_FUSED, kinds.LOSS_ZERO_SHOT, kinds.LOSS_CENTRALISED),
    }
    return [
        f"{gap.key} of {c.name}: {NO_GAP}"
        for c in configurations
        for gap, needed in needs.items()
        if c.measure(gap.key) is None and all(c.measure(kind.key) is not None for kind in needed)
    ]


def rows_without_losses(rows: Sequence[MethodRow], texts: Collection[str]) -> list[str]:
    """Return a line for each row of a comparison that lacks a loss although there is free text."""
    lines = []
    for row in rows if texts else ():
        missing = ["loss"] if row.loss is None else []
        if missing or (row.tuned_proxy is not None and row.tuned_proxy_loss is None):
            loss_name = "loss" if missing else "the tuned proxy's loss"
            at = "" if row.remove_ratio is None else f" at {row.remove_ratio:g}"
            lines.append(f"{loss_name} of {row.method}{at}: {WHY}")
    return lines
