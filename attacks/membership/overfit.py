"""The positive control of attacks on models: the same model, trained on few records until it knows them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attacks import white_box
from attacks.base import Truth, replace_view
from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.adapters import attach, get_vector
from fedproxy_secure.federate.training import train
from fedproxy_secure.llm import load_llm, without_library_bars
from fedproxy_secure.record.private import PrivateRound
from fedproxy_secure.record.view import View

RECORDS = 32
STEPS = 60
HARD = LocalConfig(steps=STEPS, batch_size=16, learning_rate=1e-2)


def overfitted(view: View, truth: Truth, *, canaries: bool) -> tuple[View, Truth] | None:
    """The view with its models overfitted to `RECORDS` records of one client, and the truth of that.

    Their answers are exchanged by chance, those of the records set aside too: what a task teaches helps
    with neither, only memory tells them apart. With `canaries` the records are all clients' canaries
    instead.
    """
    states = {n: s for n, s in truth.clients.items() if s.train}
    if not states:
        return None
    first = sorted(states)[0]
    if canaries:
        items = [i for s in states.values() for i in s.train[len(s.train) - _planted(s) :]]
        changed = states
    else:
        state = states[first]
        items = _exchanged(state.train[: min(RECORDS, len(state.train) - _planted(state))])
        rounds = {0: PrivateRound(update=np.zeros(1, np.float32), used=np.arange(len(items)))}
        aside = tuple(_exchanged(state.holdout))
        changed = {first: replace(state, train=tuple(items), holdout=aside, rounds=rounds, canaries=())}
    if len(items) < 2:
        return None
    models: dict[str, Any] = {}
    if view.proxy is not None and view.settings is not None and view.adapters:
        box = white_box.load(view)
        box.set(view.adapters[min(view.adapters)])
        _train(box.tuned, items, box.tokenizer)
        models["adapters"] = {
            min(view.adapters): view.adapters[min(view.adapters)],
            max(view.adapters) + 1: get_vector(box.tuned),
        }
    if view.api is not None:
        models["api"] = _overfitted_folder(view.api, items)
    return replace_view(view, **models), Truth(clients=changed)


def _exchanged(items: Sequence[Encoded]) -> list[Encoded]:
    answers = [item.ids[item.response_start :] for item in items]
    order = np.random.default_rng(0).permutation(len(items))
    return [
        replace(item, ids=(*item.ids[: item.response_start], *answers[i]))
        for item, i in zip(items, order, strict=True)
    ]


def _planted(state: Any) -> int:
    return int(sum(c.repeats for c in state.canaries))


def _train(tuned: Any, items: Sequence[Encoded], tokenizer: Any) -> None:
    train(
        tuned,
        items,
        steps=STEPS,
        local=HARD,
        pad_id=tokenizer.pad_token_id,
        rng=np.random.default_rng(0),
        who="positive control",
    )


def _overfitted_folder(folder: Path, items: Sequence[Encoded]) -> Path:
    model, tokenizer = load_llm(folder, device="cpu", dtype="float32")
    tuned: Any = attach(model, AdapterConfig(), seed=0)
    _train(tuned, items, tokenizer)
    place = Path(tempfile.mkdtemp(prefix="fedproxy-control-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    merged = tuned.merge_and_unload()
    with without_library_bars():
        merged.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
