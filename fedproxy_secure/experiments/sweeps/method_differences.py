"""Differences between methods of a comparison, paired by seed and, with one seed, by record."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from fedproxy_secure.evidence.answers import over_seeds_or_records
from fedproxy_secure.evidence.losses import loss_over_seeds_or_records
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
    name = f"{_row(group)} minus {_row(reference)}"
    average = loss = None
    if all(a.fused and b.fused for a, b in pairs.values()):
        bits = {s: (a.fused, b.fused) for s, (a, b) in pairs.items()}
        average = over_seeds_or_records(bits, operator.sub, f"accuracy, {name}")
    if all(a.fused_loss and b.fused_loss for a, b in pairs.values()):
        lost = {s: (a.fused_loss, b.fused_loss) for s, (a, b) in pairs.items()}
        loss = loss_over_seeds_or_records(lost, operator.sub, f"loss, {name}")
    return [
        MethodDifference(
            method=mine[0],
            against=other[0],
            remove_ratio=mine[1] if other[1] is None else other[1],
            average=average,
            loss=loss,
        )
    ]


def _row(by_seed: BySeed) -> str:
    return next(iter(by_seed.values())).cell.row
