"""The positive control of attacks on models: the same model, trained on few records until it knows them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from attacks import white_box
from attacks.base import Truth, replace_view
from attacks.white_box import HeldProxy
from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.models.llm import load_llm, weights_written_ns, without_library_bars
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import View

RECORDS = 12
ANSWER = 4  # random tokens that take the place of a record's answer
CONTEXT = 16  # tokens of a record that stand before them, if these tell all records apart
STEPS, MOST_TIMES = 12, 10  # steps between two checks whether the records are known; the most checks
MOST_TIMES_TEXTS = 25  # the same for whole texts, which have more to know
KNOWN = 0.45  # the records are known once the loss is this share of the loss of the first steps
BY_HEART = 0.75  # the same for canaries, which are short and few
VERBATIM = 0.08  # the same for whole texts, of which every detail must be known


def overfitted(
    view: View, truth: Truth, *, canaries: bool, texts: bool = False
) -> tuple[View, Truth] | None:
    """Return the view with its models trained until they know a few records, and the truth of that.

    The records are `RECORDS` of one client. Their answers are random tokens, and so are those of the
    records set aside. What a task teaches helps with neither; only memory tells them apart. With `canaries`
    the records are all clients' canaries instead, and with `texts` one client's records as they are, every
    token of which is learned.
    """
    states = {n: s for n, s in truth.clients.items() if s.train}
    if not states:
        return None
    name = max(states)
    if canaries:
        items = list(
            dict.fromkeys(i for s in states.values() for i in s.train[len(s.train) - _planted(s) :])
        )
        changed, known = states, BY_HEART
    else:
        few = _few_texts(states[name]) if texts else _random_answers(states[name])
        changed, known = {name: few}, VERBATIM if texts else KNOWN
        items = list(changed[name].train)
    if len(items) < 2:
        return None
    models: dict[str, Any] = {}
    if view.proxy is not None and view.settings is not None and view.adapters:
        first, last = min(view.adapters), max(view.adapters)
        proxy = white_box.held_proxy(view)
        tuned = _overfitted_adapter(proxy, view.adapters[last].tobytes(), tuple(items), known)
        models["adapters"] = {first: view.adapters[first], last + 1: tuned}
    if view.api is not None:
        models["api"] = _overfitted_folder(view.api, weights_written_ns(view.api), tuple(items), known)
    return replace_view(view, **models), Truth(clients=changed)


def _random_answers(state: PrivateState) -> PrivateState:
    """Return a client whose `RECORDS` records were all drawn, with random answers everywhere."""
    rng = np.random.default_rng(0)
    records = state.train[: min(RECORDS, len(state.train) - _planted(state))]
    tokens = sorted({t for i in (*records, *state.holdout) for t in i.ids})

    def kept(item: Encoded) -> tuple[int, ...]:
        return item.ids[: max(item.response_start, len(item.ids) // 2)]  # half of a plain text

    cut = CONTEXT if len({kept(i)[:CONTEXT] for i in records}) == len(records) else None

    def changed(item: Encoded) -> Encoded:
        before = kept(item)[:cut]
        answer = (tokens[i] for i in rng.integers(len(tokens), size=ANSWER))
        return Encoded(ids=(*before, *answer), response_start=len(before))

    return replace(
        state,
        train=tuple(map(changed, records)),
        holdout=tuple(map(changed, state.holdout)),
        rounds={0: PrivateRound(update=np.zeros(1, np.float32), used=np.arange(len(records)))},
        canaries=(),
    )


def _few_texts(state: PrivateState) -> PrivateState:
    """Return a client whose `RECORDS` records were all drawn, each of them learned as a text."""
    records = state.train[: min(RECORDS, len(state.train) - _planted(state))]
    return replace(
        state,
        train=tuple(Encoded(ids=item.ids, response_start=1) for item in records),
        rounds={0: PrivateRound(update=np.zeros(1, np.float32), used=np.arange(len(records)))},
        canaries=(),
    )


def _planted(state: PrivateState) -> int:
    return sum(c.repeats for c in state.canaries)


def _train(tuned: Any, items: Sequence[Encoded], tokenizer: Any, known: float) -> None:
    """Train until the loss of `STEPS` steps is below `known` times that of the first steps, or give up."""
    local = LocalConfig(steps=STEPS, batch_size=min(16, len(items)), learning_rate=3e-3)
    first = None
    for time in range(MOST_TIMES_TEXTS if known == VERBATIM else MOST_TIMES):
        loss = train(
            tuned,
            items,
            steps=STEPS,
            local=local,
            pad_id=tokenizer.pad_token_id,
            rng=np.random.default_rng(time),
            who="positive control",
        )
        first = first or loss
        if loss < known * first:
            return


@lru_cache(maxsize=3)  # other views of the run need the same: answers, canaries, texts
def _overfitted_adapter(
    proxy: HeldProxy, adapter: bytes, items: tuple[Encoded, ...], known: float
) -> np.ndarray:
    with white_box.lent(proxy, np.frombuffer(adapter, np.float32).copy()) as box:
        _train(box.tuned, items, box.tokenizer, known)
        return get_vector(box.tuned)


@lru_cache(maxsize=2)
def _overfitted_folder(folder: Path, _written: int, items: tuple[Encoded, ...], known: float) -> Path:
    """Return the folder of an overfitted copy of a model.

    `_written` is the time at which the model's weights were written: it keeps a new model in the same
    folder from being mistaken for the old one.
    """
    model, tokenizer = load_llm(folder, device="cpu", dtype="float32")
    tuned: Any = attach(model, AdapterConfig(), seed=0)
    _train(tuned, items, tokenizer, known)
    place = Path(tempfile.mkdtemp(prefix="fedproxy-control-"))
    # not atexit: attacks run in processes of multiprocessing, which end without it
    Finalize(None, shutil.rmtree, args=(place,), kwargs={"ignore_errors": True}, exitpriority=0)
    merged = tuned.merge_and_unload()
    with without_library_bars():
        merged.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
