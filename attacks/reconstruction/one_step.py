"""The positive control of attacks on updates: one client's round on few records, seen in the clear.

It takes one step of SGD, as long as the first step of the run's round: what float32 rounding hides in the
run's updates, it hides in the control. If the run's clients use AdamW, an update is no combination of
gradients and attacks read it differently, so the control uses AdamW, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from attacks import white_box
from attacks.base import Truth, replace_view
from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import PublicSettings, View

CONTROL = "control"  # the client's name
LONG_STEP = 100.0  # learning rate of SGD where the run's is that of AdamW
MOST_STEPS = 20  # of AdamW in a control


def one_step_control(
    view: View, truth: Truth, *, records: int, drawn: bool = False
) -> tuple[View, Truth] | None:
    """Return a view in which one client took one SGD step on some of its records, and its truth.

    The step has the learning rate of its round's first step, and the run's limit of the gradient's norm. If
    the run's clients use AdamW, it is so long that its rounding does not matter. It is taken in the last
    round with a broadcast adapter, where the adapters' B are no longer zero. The records are the client's
    shortest, the likeliest to be within capacity, or with `drawn` random ones, so that their length does
    not reveal them. Planted canaries are not among them. Returns None if the view has no settings or no
    proxy, or if no honest client trained in such a round; the first that did is taken.
    """
    clients = _trained(view, truth)
    if not clients:
        return None
    state, r = clients[0]
    own_records = state.own_records
    if drawn:
        order = np.random.default_rng(0).permutation(len(own_records))
        items = [own_records[i] for i in order[:records]]
    else:
        items = sorted(own_records, key=lambda item: len(item.ids))[:records]
    return _in_the_clear(view, [_stepped(view, state, items, r, name=CONTROL)])


def one_step_controls(view: View, truth: Truth, *, updates: int) -> tuple[View, Truth] | None:
    """Return a view of many steps as in `one_step_control`, each on one record, and its truth.

    There are at most `updates` steps, on the honest clients' shortest records, no two of them alike.
    """
    held = [(state, r, item) for state, r in _trained(view, truth) for item in state.own_records]
    held.sort(key=lambda one: len(one[2].ids))
    distinct = list({one[2].ids: one for one in reversed(held)}.values())[::-1][:updates]
    if not distinct:
        return None
    controls = [
        _stepped(view, state, [item], r, name=f"{CONTROL} {number}")
        for number, (state, r, item) in enumerate(distinct, start=1)
    ]
    return _in_the_clear(view, controls)


def _trained(view: View, truth: Truth) -> list[tuple[PrivateState, int]]:
    """Return the honest clients that trained in a round with a broadcast adapter, with the last such round.

    There are none if the view has no settings or no proxy.
    """
    if view.settings is None or view.proxy is None:
        return []
    rounds = [(s, [r for r in s.rounds if r in view.adapters]) for s in truth.clients.values()]
    return [(state, max(seen)) for state, seen in rounds if seen]


def _stepped(
    view: View, state: PrivateState, items: Sequence[Encoded], r: int, *, name: str
) -> PrivateState:
    """Return a client of this name that took one step on these records of `state`, in round `r` alone."""
    assert view.settings is not None
    start = view.adapters[r]
    with white_box.opened(view, start) as box:
        update = (start - _step(box.gradient(items), view.settings, r)) - start
    return PrivateState(
        client=name,
        train=tuple(items),
        holdout=state.holdout,
        canaries=(),
        rounds={r: PrivateRound(update=update, used=np.arange(len(items)))},
    )


def _in_the_clear(view: View, controls: Sequence[PrivateState]) -> tuple[View, Truth]:
    """Return the view with the updates of these clients in the place of the run's, and their truth."""
    assert view.settings is not None
    local = LocalConfig(**{**view.settings.local.model_dump(), "steps": 1, "optimizer": "sgd"})
    privacy = view.settings.privacy.model_copy(update={"unit": "none"})
    changed = replace_view(
        view,
        updates={(r, c.client): done.update for c in controls for r, done in c.rounds.items()},
        sums={},
        settings=view.settings.changed(local=local, privacy=privacy),
    )
    return changed, Truth(clients={c.client: c for c in controls})


def _step(gradient: np.ndarray, settings: PublicSettings, r: int) -> np.ndarray:
    """Return what the first step of round `r` by SGD subtracts, float32 [d], clipped as in training."""
    local = settings.local
    if local.optimizer != "sgd":
        return np.float32(LONG_STEP) * gradient
    clip = min(1.0, local.max_grad_norm / max(float(np.linalg.norm(gradient)), 1e-12))
    return np.float32(clip * settings.first_rate(r)) * gradient


def as_in_the_run(
    control: tuple[View, Truth] | None, settings: PublicSettings | None, *, steps: int | None = None
) -> tuple[View, Truth] | None:
    """Return a control of one step, retrained by AdamW if the run's clients use it.

    Args:
        control: of `one_step_control`.
        settings: of the run.
        steps: how many steps of AdamW, each on all records; None: as many as in the run, at most
            `MOST_STEPS`.
    """
    if control is None or settings is None or settings.local.optimizer == "sgd":
        return control
    return _with_adamw(*control, settings, steps=steps or min(settings.local.steps, MOST_STEPS))


def _with_adamw(control: View, truth: Truth, settings: PublicSettings, *, steps: int) -> tuple[View, Truth]:
    """Return the control with the update of `steps` AdamW steps, each on all of its records."""
    assert control.settings is not None
    ((number, name),) = control.updates
    state = truth.clients[name]
    start = control.adapters[number]
    changes = {**vars(settings.local), "steps": steps, "batch_size": len(state.train)}
    local = LocalConfig(**changes)
    with white_box.opened(control, start) as box:
        train(
            box.tuned,
            state.train,
            steps=steps,
            local=local,
            pad_id=box.tokenizer.pad_token_id,
            rng=np.random.default_rng(0),
            subject="positive control",
            round=number,
            rounds=settings.federate.rounds,
        )
        update = get_vector(box.tuned) - start
    done = replace(state.rounds[number], update=update)
    changed = control.settings.changed(local=local)
    return (
        replace_view(control, updates={(number, name): update}, settings=changed),
        Truth(clients={name: replace(state, rounds={number: done})}),
    )
