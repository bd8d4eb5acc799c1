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

    A method without a remove ratio is paired with the other method at each of the latter's ratios. Pairs
    use the seeds that both have; without a common seed there is no difference.
    """
    groups = by_row(results)
    differences = []
    for reference in against:
        reference_groups = {row: group for row, group in groups.items() if row[0] == reference}
        for key, group in groups.items():
            for reference_key, reference_group in reference_groups.items():
                if key[0] != reference and _comparable(key[1], reference_key[1]):
                    differences += _difference(key, group, reference_key, reference_group)
    return differences


def _comparable(a: float | None, b: float | None) -> bool:
    return a is None or b is None or a == b


def _difference(key: Key, group: BySeed, reference_key: Key, reference: BySeed) -> list[MethodDifference]:
    pairs: Mapping[int, tuple[CellResult, CellResult]] = {
        s: (group[s], reference[s]) for s in group if s in reference
    }
    if not pairs:
        return []
    names = f"{_row(group)} minus {_row(reference)}"

    def minus(of: Callable[[CellResult], Bits], score: str) -> Estimate:
        answers = {s: (of(a), of(b)) for s, (a, b) in pairs.items()}
        return over_seeds_or_records(answers, operator.sub, f"{score}, {names}")

    def loss_minus(of: Callable[[CellResult], Losses], score: str) -> Estimate:
        losses = {s: (of(a), of(b)) for s, (a, b) in pairs.items()}
        return loss_over_seeds_or_records(losses, operator.sub, f"{score}, {names}")

    def on(task: str) -> Estimate:
        return minus(lambda result: {task: result.fused[task]}, f"accuracy on {task}")

    def loss_on(task: str) -> Estimate:
        return loss_minus(lambda result: {task: result.fused_loss[task]}, f"loss on {task}")

    coded = all(a.fused and b.fused for a, b in pairs.values())
    text = all(measured(r.fused_loss) for pair in pairs.values() for r in pair)
    first = next(iter(pairs.values()))[0]
    return [
        MethodDifference(
            method=key[0],
            against=reference_key[0],
            remove_ratio=key[1] if reference_key[1] is None else reference_key[1],
            average=minus(lambda result: result.fused, "accuracy") if coded else None,
            average_norm=minus(lambda result: result.fused_norm, "acc_norm") if coded else None,
            tasks={task: on(task) for task in first.fused} if coded else {},
            loss=loss_minus(lambda result: result.fused_loss, "loss") if text else None,
            tasks_loss={task: loss_on(task) for task in first.fused_loss} if text else {},
        )
    ]


def _row(by_seed: BySeed) -> str:
    return next(iter(by_seed.values())).cell.row
