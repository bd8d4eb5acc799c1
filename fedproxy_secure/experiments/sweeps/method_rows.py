"""Rows of a comparison: each method at each remove ratio, and each proxy, joined over seeds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fedproxy_secure.evidence.answers import (
    Bits,
    gap_over_seeds_or_records,
    over_seeds_or_records,
    resolved_gap,
    share_right,
)
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.losses import (
    Losses,
    loss_gap_over_seeds_or_records,
    loss_of,
    losses_by_task,
    measured,
)
from fedproxy_secure.evidence.measures.cost import UPLOAD_BYTES
from fedproxy_secure.experiments.method import method_of
from fedproxy_secure.experiments.methods.references import ZERO_SHOT_PROXY
from fedproxy_secure.experiments.sweeps.method_cells import CellResult
from fedproxy_secure.experiments.sweeps.prepared_proxies import BEFORE
from fedproxy_secure.report.measured.proxies import fidelity_of
from fedproxy_secure.report.report import MethodRow, ProxyRow

BySeed = Mapping[int, CellResult]
Of = TypeVar("Of")  # answers or losses


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Both ends of the scale of gap closed, by seed: the LLM before tuning and tuned on pooled records."""

    floor: BySeed
    ceiling: BySeed

    def scale(self, of: Callable[[CellResult], Of]) -> dict[int, tuple[Of, Of]]:
        """Return, by seed, what counts as 0 and as 1 of the gap, without seeds that lack either.

        `of`: returns the answers or losses that count.
        """
        seeds = [s for s in self.floor if s in self.ceiling]
        return {s: (of(self.floor[s]), of(self.ceiling[s])) for s in seeds}


def ends_of(results: Iterable[CellResult]) -> Ends:
    """Return the results that are the ends of the scale."""
    ends: dict[str | None, dict[int, CellResult]] = {}
    for r in results:
        ends.setdefault(method_of(r.cell.method).end, {})[r.cell.seed] = r
    return Ends(floor=ends.get("floor", {}), ceiling=ends.get("ceiling", {}))


def rows_of(results: Sequence[CellResult], *, counting: Collection[str] = ()) -> list[MethodRow]:
    """Join seeds: one row for each method and remove ratio, gaps closed paired by seed.

    `counting`: the tasks of `gap_closed_counting`, which is left out if there are none.
    """
    ends = ends_of(results)
    ceiling = {s: r.fused for s, r in ends.ceiling.items() if r.fused}
    pooled: dict[float | None, dict[int, Bits]] = {}
    for r in results:
        if method_of(r.cell.method).end == "pooled_proxy" and r.tuned:
            pooled.setdefault(r.cell.remove_ratio, {})[r.cell.seed] = r.tuned
    rows = []
    for (_, ratio), group in by_row(results).items():
        row = _with_effects(_row(group, ends, counting), group, ceiling, pooled.get(ratio, {}))
        rows.append(_with_losses(row, group, ends))
    return rows


def proxy_rows(
    results: Sequence[CellResult], records: Mapping[float, Mapping[int, Mapping[str, Any]]]
) -> list[ProxyRow]:
    """Return a row for each remove ratio that has a record of the proxy or its accuracy.

    `records`: the records of the proxies, by remove ratio and seed (`records_of`). If all tasks are free
    text, there is no accuracy to compare.
    """
    floor, rows = ends_of(results).floor, []
    for ratio in sorted({r.cell.remove_ratio for r in results if r.cell.remove_ratio is not None}):
        known = records.get(ratio, {})
        before = {s: record[BEFORE] for s, record in known.items() if BEFORE in record}
        pairs = {
            r.cell.seed: (r.fused, floor[r.cell.seed].fused)
            for r in results
            if (r.cell.method, r.cell.remove_ratio) == (ZERO_SHOT_PROXY.name, ratio)
            and r.cell.seed in floor
            and r.fused
        }
        name = f"proxy at {ratio:g}"
        above = f"accuracy, {name} minus LLM, both untuned"
        if known or pairs:
            rows.append(
                ProxyRow(
                    remove_ratio=ratio,
                    fidelity=fidelity_of(known, name) if known else None,
                    before_healing=fidelity_of(before, f"{name} before healing") if before else None,
                    above_llm=over_seeds_or_records(pairs, operator.sub, above) if pairs else None,
                )
            )
    return rows


def by_row(results: Iterable[CellResult]) -> dict[tuple[str, float | None], dict[int, CellResult]]:
    """Return results by method and remove ratio, and then by seed; methods without a ratio come first."""
    groups: dict[tuple[str, float | None], dict[int, CellResult]] = {}
    for r in results:
        groups.setdefault((r.cell.method, r.cell.remove_ratio), {})[r.cell.seed] = r
    return dict(sorted(groups.items(), key=lambda item: (item[0][1] is not None, item[0][1] or 0)))


def scales_of(results: Iterable[CellResult]) -> dict[str, dict[int, float]]:
    """Return the factors that searches on public text found, by row and seed."""
    scales: dict[str, dict[int, float]] = {}
    for r in results:
        if r.outcome.scale is not None:
            scales.setdefault(r.cell.row, {})[r.cell.seed] = r.outcome.scale
    return scales


def costs_of(results: Sequence[CellResult]) -> tuple[Estimate, ...]:
    """Return the bytes that a client uploads in a round, by method and ratio."""
    costs: dict[str, list[CellResult]] = {}
    for r in results:
        if r.outcome.upload_bytes:
            costs.setdefault(f"{UPLOAD_BYTES.estimate_name}, {r.cell.row}", []).append(r)
    return tuple(
        replace(
            counted(
                float(rs[0].outcome.upload_bytes),
                metric=name,
                unit=UPLOAD_BYTES.unit,
                seeds=[r.cell.seed for r in rs],
                n=len(rs),
            ),
            how="counted, exact: payload only",
        )
        for name, rs in costs.items()
    )


def _row(by_seed: BySeed, ends: Ends, counting: Collection[str]) -> MethodRow:
    """Return the row of one method at one ratio, without losses."""
    cell = next(iter(by_seed.values())).cell
    bare = MethodRow(method=cell.method, remove_ratio=cell.remove_ratio)
    fused = {s: r.fused for s, r in by_seed.items()}
    if not all(fused.values()):
        return bare  # all tasks are free text
    norm = {s: r.fused_norm for s, r in by_seed.items()}
    tuned = {s: r.tuned for s, r in by_seed.items() if r.tuned}
    tuned_norm = {s: r.tuned_norm for s, r in by_seed.items() if r.tuned_norm}

    def edge(owners: Mapping[int, Bits], clients: Mapping[int, Bits], score: str) -> Estimate | None:
        if not clients or not method_of(cell.method).trains:
            return None
        pairs = {s: (owners[s], bits) for s, bits in clients.items()}
        return over_seeds_or_records(pairs, operator.sub, f"{score}, {cell.row}")

    return replace(
        bare,
        tasks=_by_task(fused, "accuracy", cell.row),
        average=share_right(fused, f"accuracy, {cell.row}"),
        tasks_norm=_by_task(norm, "acc_norm", cell.row),
        average_norm=share_right(norm, f"acc_norm, {cell.row}"),
        gap_closed=gap_over(by_seed, ends, lambda r: r.fused, f"gap closed, {cell.row}"),
        tuned_proxy=share_right(tuned, f"tuned proxy accuracy, {cell.row}") if tuned else None,
        owners_edge=edge(fused, tuned, "owner's edge"),
        gap_closed_norm=gap_over(
            by_seed, ends, lambda r: r.fused_norm, f"gap closed by acc_norm, {cell.row}"
        ),
        tuned_proxy_norm=share_right(tuned_norm, f"tuned proxy acc_norm, {cell.row}") if tuned else None,
        owners_edge_norm=edge(norm, tuned_norm, "owner's edge by acc_norm"),
        gap_closed_counting=gap_over(
            by_seed,
            ends,
            lambda r: {task: bits for task, bits in r.fused.items() if task in counting},
            f"gap closed on tasks that count, {cell.row}",
        ),
    )


def _with_losses(row: MethodRow, by_seed: BySeed, ends: Ends) -> MethodRow:
    """Add the losses on free text, if every seed has them and they are finite."""
    cell = next(iter(by_seed.values())).cell
    fused = {s: r.fused_loss for s, r in by_seed.items()}
    if not all(map(measured, fused.values())):
        return row
    tuned = {s: losses for s, r in by_seed.items() if (losses := r.tuned_loss)}
    if not all(map(measured, tuned.values())):
        tuned = {}
    models, metric = _to_scale(by_seed, ends), f"gap closed by loss, {cell.row}"
    return replace(
        row,
        tasks_loss=losses_by_task(fused, cell.row),
        loss=loss_of(fused, f"loss, {cell.row}"),
        loss_gap_closed=loss_gap_over_seeds_or_records(models, metric) if models else None,
        tuned_proxy_loss=loss_of(tuned, f"tuned proxy loss, {cell.row}") if tuned else None,
    )


def _to_scale(by_seed: BySeed, ends: Ends) -> dict[int, tuple[Losses, Losses, Losses]]:
    """Return, by seed, losses of the method, of zero-shot and of the ceiling; {} unless all are finite."""
    scale = ends.scale(lambda r: r.fused_loss)
    models = {s: (r.fused_loss, *scale[s]) for s, r in by_seed.items() if s in scale}
    whole = models.keys() == by_seed.keys() and all(all(map(measured, three)) for three in models.values())
    return models if whole else {}


def _with_effects(
    row: MethodRow, by_seed: BySeed, ceiling: Mapping[int, Bits], pooled: Mapping[int, Bits]
) -> MethodRow:
    """Add how far the tuned proxy is from the ceiling because of its size, and because of federation.

    Both, and the owner's edge beside them, use the seeds that all of them have, so that they add up to the
    whole. Without such seeds, or if the method's proxy differs from the control's (exact copies, an
    emulator), the row is unchanged.
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
        owners_edge_effect=over_seeds_or_records(
            {s: (by_seed[s].fused, t) for s, t in tuned.items()},
            operator.sub,
            f"owner's edge, {row.method}",
        ),
    )


def _by_task(answers: Mapping[int, Bits], score: str, row: str) -> dict[str, Estimate]:
    return {
        task: share_right({s: {task: a[task]} for s, a in answers.items()}, f"{score} on {task}, {row}")
        for task in next(iter(answers.values()))
    }


def gap_over(by_seed: BySeed, ends: Ends, of: Callable[[CellResult], Bits], metric: str) -> Estimate | None:
    """Return the gap closed by a method; None if its seeds lack an end of the scale or do not resolve it.

    Args:
        of: returns the answers of a model that count, such as those to some tasks; without answers, as if
            all tasks are free text, there is no gap.
    """
    scale, answers = ends.scale(of), {s: of(r) for s, r in by_seed.items()}
    if not set(answers) <= set(scale):
        return None
    if not all(bits and all(scale[s]) for s, bits in answers.items()):
        return None
    return gap_over_seeds_or_records({s: (bits, *scale[s]) for s, bits in answers.items()}, metric)


def unresolved(results: Sequence[CellResult], of: Callable[[CellResult], Bits]) -> list[str]:
    """Return the rows without a gap closed whose seeds have both ends of the scale but resolve no gap.

    `of`: as in `gap_over`.
    """
    scale, rows = ends_of(results).scale(of), []
    for group in by_row(results).values():
        known = {s: scale[s] for s in group if s in scale and all(scale[s])}
        if known.keys() == group.keys() and not resolved_gap(known):
            rows.append(next(iter(group.values())).cell.row)
    return rows


def unresolved_by_loss(results: Sequence[CellResult]) -> list[str]:
    """Return the rows without a gap closed by loss whose seeds have all losses but resolve no gap."""
    ends, rows = ends_of(results), []
    for group in by_row(results).values():
        models = _to_scale(group, ends)
        if models and loss_gap_over_seeds_or_records(models, "gap") is None:
            rows.append(next(iter(group.values())).cell.row)
    return rows
