"""Records that a tiny proxy knows by heart, for tests of A6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attacks.base import Truth, replace_view
from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.data.planted import Canary
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import View
from tests.support.lab import make_lab, records

RECORDS = 16
HARD = LocalConfig(steps=80, batch_size=RECORDS, learning_rate=2e-2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def state(
    train: Sequence[Encoded],
    holdout: Sequence[Encoded],
    *,
    used: Sequence[int] | None = None,
    canaries: tuple[Canary, ...] = (),
) -> PrivateState:
    """What the client c0 held and drew; by default it drew every record."""
    drawn = np.arange(len(train)) if used is None else np.array(used)
    return PrivateState(
        client="c0",
        train=tuple(train),
        holdout=tuple(holdout),
        canaries=canaries,
        rounds={0: PrivateRound(update=np.zeros(1, np.float32), used=drawn)},
    )


def learn(tuned: Any, items: Sequence[Encoded]) -> None:
    """Train until the records are known by heart."""
    train(tuned, items, steps=HARD.steps, local=HARD, pad_id=0, rng=rng(), subject="test")


def memorised(folder: Path) -> tuple[View, Truth]:
    """A view before and after a proxy has learnt `RECORDS` records by heart, and the truth."""
    lab = make_lab(folder, hidden=32, adapter={"rank": 8})
    items = records(rng(), 2 * RECORDS + 12, tokens=40, length=12)
    with lab.opened() as box:
        learn(box.tuned, items[:RECORDS])
        learnt = get_vector(box.tuned)
    seen = replace_view(lab.view({}), adapters={0: lab.start, 1: learnt})
    return seen, Truth(clients={"c0": state(items[:RECORDS], items[RECORDS:])})
