"""Differences between methods of a comparison, paired by seed and, with one seed, by record."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from fedproxy_secure.evidence.answers import Bits, over_seeds_or_records
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.losses import Losses, loss_over_seeds_or_records, measured
from fedproxy_secure.experiments.sweeps.method_cells import CellResult
from fedproxy_secure.experiments.sweeps.method_rows import BySeed, by_row
from fedproxy_secure.report.report import MethodDifference

Key = tuple[str, float | None]


def differences_of(results: Sequence[CellResult], against: Sequence[str]) -> list[MethodDifference]:
    """Return every method minus each method of `against` that has results, at the same remove ratio.

    A method without a remove ratio is paired with the other at each of its ratios. Pairs have the seeds
    that both have; where they have none in common there is no difference.
    """
    groups = by_row(results)
    found = []
    for reference in against:
        theirs = {key: group for key, group in groups.items() if key[0] == reference}
        for mine, group in groups.items():
            for other, reference_group in theirs.items():
                if mine[0] != reference and _comparable(mine[1], other[1]):
                    found += _difference(mine, group, other, reference_group)
    return found


def _comparable(a: float | None, b: float | None) -> bool:
    return a is None or b is None or a == b


def _difference(mine: Key, group: BySeed, other: Key, reference: BySeed) -> list[MethodDifference]:
    pairs: Mapping[int, tuple[CellResult, CellResult]] = {
        s: (group[s], reference[s]) for s in group if s in reference
    }
    if not pairs:
        return []
    names = f"{_row(group)} minus {_row(reference)}"

    def minus(of: Callable[[CellResult], Bits], what: str) -> Estimate:
        answers = {s: (of(a), of(b)) for s, (a, b) in pairs.items()}
        return over_seeds_or_records(answers, operator.sub, f"{what}, {names}")

    def loss_minus(of: Callable[[CellResult], Losses], what: str) -> Estimate:
        losses = {s: (of(a), of(b)) for s, (a, b) in pairs.items()}
        return loss_over_seeds_or_records(losses, operator.sub, f"{what}, {names}")

    def on(task: str) -> Estimate:
        return minus(lambda result: {task: result.fused[task]}, f"accuracy on {task}")

    def loss_on(task: str) -> Estimate:
        return loss_minus(lambda result: {task: result.fused_loss[task]}, f"loss on {task}")

    coded = all(a.fused and b.fused for a, b in pairs.values())
    text = all(measured(r.fused_loss) for pair in pairs.values() for r in pair)
    first = next(iter(pairs.values()))[0]
    return [
        MethodDifference(
            method=mine[0],
            against=other[0],
            remove_ratio=mine[1] if other[1] is None else other[1],
            average=minus(lambda result: result.fused, "accuracy") if coded else None,
            average_norm=minus(lambda result: result.fused_norm, "acc_norm") if coded else None,
            tasks={task: on(task) for task in first.fused} if coded else {},
            loss=loss_minus(lambda result: result.fused_loss, "loss") if text else None,
            tasks_loss={task: loss_on(task) for task in first.fused_loss} if text else {},
        )
    ]


def _row(by_seed: BySeed) -> str:
    return next(iter(by_seed.values())).cell.row
