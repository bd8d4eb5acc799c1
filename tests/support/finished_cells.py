"""Finished cells of a comparison, made up: each method answers the easier ones of the same records."""

from dataclasses import replace

import numpy as np

from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.losses import TextLoss
from fedproxy_secure.experiments.results import Accuracy, MethodResult
from fedproxy_secure.experiments.sweeps.method_cells import Cell, CellResult, Origin

RECORDS = 40


def origin(config=None, *, has_proxy=True, **changes) -> Origin:
    settings = (config or parse_config({})).cell_sha256(has_proxy=has_proxy)
    made = dict.fromkeys(("records", "llm", "public_text"), "ab" * 32)
    return replace(Origin(settings=settings, device="cpu", truncated=0, **made), **changes)


def finished(method, ratio, seed, share, *, made=None, records=RECORDS) -> CellResult:
    """A cell whose model answers this share of the records; the hard ones are the same for every method."""
    hardness = np.random.default_rng(seed).permutation(records)
    bits = tuple(bool(h < share * records) for h in hardness)
    norm = tuple(bool(h < (share + 0.1) * records) for h in hardness)
    accuracy = {"bank": Accuracy(correct=bits, correct_norm=norm)}
    return CellResult(
        cell=Cell(method=method, remove_ratio=ratio, seed=seed),
        outcome=MethodResult(fused=accuracy, tuned=accuracy if ratio else None, upload_bytes=7),
        seconds=1.5,
        origin=made or origin(has_proxy=ratio is not None),
    )


def on_tasks(method, ratio, **shares):
    """A finished cell that answers a share of each task's records."""
    cells = {task: finished(method, ratio, 0, share) for task, share in shares.items()}
    answers = {task: cell.outcome.fused["bank"] for task, cell in cells.items()}
    one = next(iter(cells.values()))
    return replace(one, outcome=replace(one.outcome, fused=answers, tuned=None))


def lost(seed, nats, *, records=RECORDS) -> TextLoss:
    """A loss of so many nats a token; which records are harder is the same for every method."""
    hardness = np.random.default_rng(seed).uniform(0.5, 1.5, records)
    hardness /= hardness.mean()
    return TextLoss(nats=tuple((4 * nats * hardness).tolist()), tokens=(4,) * records)


def with_text(made: CellResult, **nats) -> CellResult:
    """That cell with tasks of free text, too, on which its models lose so many nats a token."""
    losses = {task: lost(made.cell.seed, value) for task, value in nats.items()}
    fused, tuned = made.outcome.fused, made.outcome.tuned
    outcome = replace(
        made.outcome,
        fused={**fused, **losses},
        tuned=None if tuned is None else {**tuned, **losses},
    )
    return replace(made, outcome=outcome)


def text_alone(made: CellResult, **nats) -> CellResult:
    """That cell as if all its tasks were free text."""
    outcome = replace(made.outcome, fused={}, tuned=None if made.outcome.tuned is None else {})
    return with_text(replace(made, outcome=outcome), **nats)


def always(**shares):
    """What a constant answer gets right: its share of each task's records, the first ones."""
    return {task: tuple(i < share * RECORDS for i in range(RECORDS)) for task, share in shares.items()}
