"""Rows of a comparison: each method at each remove ratio, joined over seeds."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedproxy_secure.evidence.answers import (
    Bits,
    gap_closed,
    has_gap,
    over_seeds_or_records,
    share_right,
)
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.losses import (
    has_loss_gap,
    loss_of,
    loss_over_seeds_or_records,
    losses_by_task,
)
from fedproxy_secure.experiments.method import method_of
from fedproxy_secure.experiments.sweeps.method_cells import CellResult
from fedproxy_secure.report.report import MethodRow

BySeed = Mapping[int, CellResult]
Scale = Mapping[int, tuple[CellResult, CellResult]]  # by seed, what counts as 0 and as 1 of the gap


def rows_of(results: Sequence[CellResult]) -> list[MethodRow]:
    """Join seeds: one row for each method and remove ratio, gaps closed paired by seed."""
    ends: dict[str | None, dict[int, CellResult]] = {}
    pooled: dict[float | None, dict[int, Bits]] = {}
    for r in results:
        end = method_of(r.cell.method).end
        ends.setdefault(end, {})[r.cell.seed] = r
        if end == "pooled_proxy" and r.tuned:
            pooled.setdefault(r.cell.remove_ratio, {})[r.cell.seed] = r.tuned
    floor, ceiling = ends.get("floor", {}), ends.get("ceiling", {})
    scale = {s: (floor[s], ceiling[s]) for s in floor if s in ceiling}
    highest = {s: r.fused for s, r in ceiling.items() if r.fused}
    return [
        _with_losses(_with_effects(_row(group, scale), group, highest, pooled.get(ratio, {})), group, scale)
        for (_, ratio), group in by_row(results).items()
    ]


def by_row(results: Iterable[CellResult]) -> dict[tuple[str, float | None], dict[int, CellResult]]:
    """Return results by method and remove ratio, and then by seed; those without a ratio come first."""
    groups: dict[tuple[str, float | None], dict[int, CellResult]] = {}
    for r in results:
        groups.setdefault((r.cell.method, r.cell.remove_ratio), {})[r.cell.seed] = r
    return dict(sorted(groups.items(), key=lambda item: (item[0][1] is not None, item[0][1] or 0)))


def scales_of(results: Iterable[CellResult]) -> dict[str, dict[int, float]]:
    """Return the factors that searches on public text found, by row and seed."""
    found: dict[str, dict[int, float]] = {}
    for r in results:
        if r.outcome.scale is not None:
            found.setdefault(r.cell.row, {})[r.cell.seed] = r.outcome.scale
    return found


def costs_of(results: Sequence[CellResult]) -> tuple[Estimate, ...]:
    """Return the bytes that a client uploads in a round, by method and ratio."""
    costs: dict[str, list[CellResult]] = {}
    for r in results:
        if r.outcome.upload_bytes:
            costs.setdefault(f"upload a client and round, {r.cell.row}", []).append(r)
    return tuple(
        Estimate(
            metric=name,
            value=float(rs[0].outcome.upload_bytes),
            low=None,
            high=None,
            n=len(rs),
            unit="bytes",
            seeds=tuple(r.cell.seed for r in rs),
            how="counted, payload only",
        )
        for name, rs in costs.items()
    )


def _row(by_seed: BySeed, scale: Scale) -> MethodRow:
    """Return the row of one method at one ratio, without losses; `scale`: the ends of the gap, by seed."""
    cell = next(iter(by_seed.values())).cell
    bare = MethodRow(method=cell.method, remove_ratio=cell.remove_ratio)
    fused = {s: r.fused for s, r in by_seed.items()}
    if not all(fused.values()):
        return bare  # all tasks are free text
    norm = {s: r.fused_norm for s, r in by_seed.items()}
    tuned = {s: r.tuned for s, r in by_seed.items() if r.tuned}
    edge = None
    if tuned and method_of(cell.method).trains:
        pairs = {s: (fused[s], t) for s, t in tuned.items()}
        edge = over_seeds_or_records(pairs, operator.sub, f"owner's edge, {cell.row}")
    return replace(
        bare,
        tasks=_by_task(fused, "accuracy", cell.row),
        average=share_right(fused, f"accuracy, {cell.row}"),
        tasks_norm=_by_task(norm, "acc_norm", cell.row),
        average_norm=share_right(norm, f"acc_norm, {cell.row}"),
        gap_closed=_gap(fused, scale, f"gap closed, {cell.row}"),
        tuned_proxy=share_right(tuned, f"tuned proxy accuracy, {cell.row}") if tuned else None,
        owners_edge=edge,
    )


def _with_losses(row: MethodRow, by_seed: BySeed, scale: Scale) -> MethodRow:
    """Add the losses on free text, where every seed has them."""
    cell = next(iter(by_seed.values())).cell
    fused = {s: r.fused_loss for s, r in by_seed.items()}
    if not all(fused.values()):
        return row
    tuned = {s: r.tuned_loss for s, r in by_seed.items() if r.tuned_loss}
    ends = {s: (floor.fused_loss, ceiling.fused_loss) for s, (floor, ceiling) in scale.items()}
    gap = None
    if all(s in ends and all(ends[s]) and has_loss_gap(*ends[s]) for s in fused):
        models = {s: (f, *ends[s]) for s, f in fused.items()}
        gap = loss_over_seeds_or_records(
            models, gap_closed, f"gap closed by loss, {cell.row}", unit="share"
        )
    return replace(
        row,
        tasks_loss=losses_by_task(fused, cell.row),
        loss=loss_of(fused, f"loss, {cell.row}"),
        loss_gap_closed=gap,
        tuned_proxy_loss=loss_of(tuned, f"tuned proxy loss, {cell.row}") if tuned else None,
    )


def _with_effects(
    row: MethodRow, by_seed: BySeed, ceiling: Mapping[int, Bits], pooled: Mapping[int, Bits]
) -> MethodRow:
    """Add how far the tuned proxy is from the ceiling because of its size, and because of federation.

    Both are of the seeds that all have, and so is the way back beside them, which makes them add up to the
    whole. Without any, or for a method whose proxy is another than the control's (exact copies, an
    emulator), the row stays as it is.
    """
    tuned = {s: r.tuned for s, r in by_seed.items() if r.tuned and s in ceiling and s in pooled}
    method = method_of(row.method)
    if not tuned or not method.trains or not method.settings_proxy:
        return row
    return replace(
        row,
        size_effect=over_seeds_or_records(
            {s: (pooled[s], ceiling[s]) for s in tuned}, operator.sub, f"size, {row.method}"
        ),
        federation_effect=over_seeds_or_records(
            {s: (t, pooled[s]) for s, t in tuned.items()},
            operator.sub,
            f"federation, {row.method}",
        ),
        way_back_effect=over_seeds_or_records(
            {s: (by_seed[s].fused, t) for s, t in tuned.items()}, operator.sub, f"way back, {row.method}"
        ),
    )


def _by_task(answers: Mapping[int, Bits], what: str, row: str) -> dict[str, Estimate]:
    return {
        task: share_right({s: {task: a[task]} for s, a in answers.items()}, f"{what} on {task}, {row}")
        for task in next(iter(answers.values()))
    }


def _gap(fused: Mapping[int, Bits], scale: Scale, metric: str) -> Estimate | None:
    """Return the gap closed, or None unless centralised tuning is better than none under every seed."""
    if not set(fused) <= set(scale):
        return None
    ends = {s: (scale[s][0].fused, scale[s][1].fused) for s in fused}
    if not all(all(both) and has_gap(*both) for both in ends.values()):
        return None
    return over_seeds_or_records({s: (f, *ends[s]) for s, f in fused.items()}, gap_closed, metric)
