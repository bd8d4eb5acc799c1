"""The positive control of attacks on models: the same model, trained on few records until it knows them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
CONTEXT = 16  # tokens of a record before its answer, if they tell all records apart
STEPS = 12  # between two checks whether the records are known
What = Literal["answers", "canaries", "texts"]


class Known(NamedTuple):
    """When training ends: the loss as a share of that of the first steps, or the most checks."""

    share: float
    checks: int


KNOWN: dict[What, Known] = {
    "answers": Known(0.45, 10),
    "canaries": Known(0.75, 10),  # they are short and few
    "texts": Known(0.08, 25),  # every detail must be known
}


def overfitted(view: View, truth: Truth, *, what: What) -> tuple[View, Truth] | None:
    """Return the view with its models trained until they know a few records, and the truth about them.

    Args:
        what: what the models are trained on. `answers`: `RECORDS` of one client with random tokens as
            answers, also in the records set aside, so that only memory tells them apart. `canaries`: all
            clients' canaries. `texts`: every token of `RECORDS` of one client, as they are.

    Returns None if no client has two such records.
    """
    states = {n: s for n, s in truth.clients.items() if s.train}
    if not states:
        return None
    name = max(states)
    if what == "canaries":
        items = list(dict.fromkeys(i for s in states.values() for i in s.train[len(s.own_records) :]))
        changed = states
    else:
        few = _few_texts(states[name]) if what == "texts" else _random_answers(states[name])
        changed = {name: few}
        items = list(few.train)
    if len(items) < 2:
        return None
    models: dict[str, Any] = {}
    known = KNOWN[what]
    if view.has_white_box:
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
    records = state.own_records[:RECORDS]
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
    """Return a client that holds and drew only `RECORDS` of its records, and learns them as texts.

    Its set-aside records become texts, too: otherwise the part that is read would reveal the members.
    """
    records = state.own_records[:RECORDS]

    def whole(items: Sequence[Encoded]) -> tuple[Encoded, ...]:
        return tuple(Encoded(ids=item.ids, response_start=1) for item in items)

    return replace(
        state,
        train=whole(records),
        holdout=whole(state.holdout),
        rounds={0: PrivateRound(update=np.zeros(1, np.float32), used=np.arange(len(records)))},
        canaries=(),
    )


def _train(tuned: Any, items: Sequence[Encoded], tokenizer: Any, known: Known) -> None:
    """Train a model until it knows the records by heart, or `known.checks` checks are used up."""
    local = LocalConfig(steps=STEPS, batch_size=min(16, len(items)), learning_rate=3e-3)
    first = None
    for time in range(known.checks):
        loss = train(
            tuned,
            items,
            steps=STEPS,
            local=local,
            pad_id=tokenizer.pad_token_id,
            rng=np.random.default_rng(time),
            subject="positive control",
        )
        first = first or loss
        if loss < known.share * first:
            return


@lru_cache(maxsize=3)  # other views of the run need the same: answers, canaries, texts
def _overfitted_adapter(
    proxy: HeldProxy, adapter: bytes, items: tuple[Encoded, ...], known: Known
) -> np.ndarray:
    with white_box.lent(proxy, np.frombuffer(adapter, np.float32).copy()) as box:
        _train(box.tuned, items, box.tokenizer, known)
        return get_vector(box.tuned)


@lru_cache(maxsize=2)
def _overfitted_folder(folder: Path, _written: int, items: tuple[Encoded, ...], known: Known) -> Path:
    """Return the folder of an overfitted copy of a model.

    `_written` is the time at which the model's weights were written: it keeps a new model in the same
    folder from being mistaken for the old one.
    """
    model, tokenizer = load_llm(folder, device="cpu", dtype="float32")
    tuned: Any = attach(model, AdapterConfig(), seed=0)
    _train(tuned, items, tokenizer, known)
    copy_folder = Path(tempfile.mkdtemp(prefix="fedproxy-control-"))
    # not atexit: attacks run in processes of multiprocessing, which end without it
    Finalize(None, shutil.rmtree, args=(copy_folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    merged = tuned.merge_and_unload()
    with without_library_bars():
        merged.save_pretrained(copy_folder)
    tokenizer.save_pretrained(copy_folder)
    return copy_folder
