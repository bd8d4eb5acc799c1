"""Attacks by clients that lie: in control words, in ring words, and by answers that are not messages.

A sum hides who lied, so the server can only check whether honest clients could have produced it. That
bounds what a liar can do. It does not stop the liar, and one liar can abort every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import FedProxyError, ProtocolAborted
from fedproxy_secure.flower.selftest import known_bad
from fedproxy_secure.flower.selftest.attempts import Attack, Attempt, Limit
from fedproxy_secure.flower.selftest.known_bad import taken_out
from fedproxy_secure.flower.selftest.stage import InstalledApp, Stage, World, staged
from fedproxy_secure.protect.secure_sum import client as masked_client
from fedproxy_secure.protect.secure_sum.terms import first_clip, largest_clip
from fedproxy_secure.secagg.control import FRACTION, LIMB_BITS, LIMBS, NAMES
from fedproxy_secure.secagg.masking import server as secagg_server
from fedproxy_secure.secagg.ring import Quantised, RingPlan, quantise

ADVERSARY = "lying_clients"
LIAR = 0  # the index of the client that lies
Lie = Callable[[RingPlan, np.ndarray], None]  # changes ring words [plan.words] before they are masked


class Liar(InstalledApp):
    """A client app in which one client changes its words between rounding and masking."""

    def __init__(self, node: int, lie: Lie) -> None:
        super().__init__()
        self._node, self._lie = node, lie

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as installed, but change the liar's words."""
        if context.node_id != self._node:
            return super().__call__(message, context)

        def lying(plan: RingPlan, values: Any, **how: Any) -> Quantised:
            rounded = quantise(plan, values, **how)
            self._lie(plan, rounded.words)
            return rounded

        with taken_out((masked_client, "quantise", lying)):
            return super().__call__(message, context)


class Garbler(InstalledApp):
    """A client app in which one client answers one kind of message with something else."""

    def __init__(self, node: int, kind: str, content: RecordDict) -> None:
        super().__init__()
        self._node, self._kind, self._content = node, kind, content

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer that kind of message with the prepared content, and all others as installed."""
        if (context.node_id, message.metadata.message_type) == (self._node, self._kind):
            return Message(self._content, reply_to=message)
        return super().__call__(message, context)


def weight_of_almost_nothing(world: World) -> str:
    """Subtract the others' weight from the sum with the liar's limbs, so that 2^-20 is left."""

    def lie(plan: RingPlan, words: np.ndarray) -> None:
        others_weight = (plan.clients - 1) * _limbs(int(FRACTION))
        _say(plan, words, "weight", _limbs(1) - others_weight)

    with staged(world) as stage:
        return _moved(stage, stage.serve(stage.grid(Liar(stage.node(LIAR), lie))).adapter)


def counts(name: str, value: int) -> Attack:
    """Return an attack whose liar says `value` where honest clients say what the settings imply."""

    def attack(world: World) -> str:
        with staged(world) as stage:
            liar = Liar(stage.node(LIAR), lambda plan, words: _say(plan, words, name, _limbs(value)))
            stage.serve(stage.grid(liar))
            return f"the server takes a sum in which one client says {name} = {value}"

    return attack


def within_the_bound(world: World) -> str:
    """Move coordinate 0 of the sum to the end of the ring, with knowledge of the others' updates."""
    with staged(world) as stage:
        state = stage.serve(stage.grid(Liar(stage.node(LIAR), _bringing(stage, -4.0 * _sign(stage)))))
        clip, mean = first_clip(stage.job), _honest_mean(stage)
        moved = abs(float(state.adapter[0] - stage.initial.adapter[0]) - float(mean[0])) / clip
        if not moved <= 2 + 1e-6:
            raise ProtocolAborted(f"a coordinate moves by {moved:.2f} clips; the bound is 2")
        honest = 2 / len(stage.policies)
        return f"moves a coordinate of the mean by {moved:.2f} clips (bound 2; an honest client {honest:g})"


def doubled_clip(world: World) -> str:
    """Say that values were clipped, which makes the next round's ring twice as coarse."""

    def lie(plan: RingPlan, words: np.ndarray) -> None:
        _say(plan, words, "clipped", _limbs(1))

    with staged(world) as stage:
        clip, most = first_clip(stage.job), largest_clip(stage.job, 0)
        honest = float(_clip(stage.serve(stage.grid()).clip))
    with staged(world) as stage:
        state = stage.serve(stage.grid(Liar(stage.node(LIAR), lie)))
        return (
            f"the next round's clip is {_clip(state.clip) / clip:.2f} of this one's, in place of "
            f"{honest / clip:.2f} (bound {most / clip:.2f})"
        )


def garbled(kind: str, record: dict[str, Any]) -> Attack:
    """Return an attack by an answer that is not a message; the server should go on without its client."""

    def attack(world: World) -> str:
        with staged(world) as stage:
            content = RecordDict({"protocol": ConfigRecord(record)})
            try:
                state = stage.serve(stage.grid(Garbler(stage.node(LIAR), kind, content)))
            except FedProxyError:
                raise
            except Exception as error:  # a server that does not judge answers may end with any error
                return f"the server ends with {type(error).__name__}: {str(error)[:60]}"
            moved = np.abs(state.adapter - stage.initial.adapter).max()
            raise ProtocolAborted(f"left out; the sum of the other 3 moves the adapter by {moved:.0e}")

    return attack


def attempts() -> Iterator[Attempt | Limit]:
    """Yield the attempts in the order in which they are shown."""
    for name, attack in (
        ("says a weight that leaves 2^-20 in the sum", weight_of_almost_nothing),
        ("says that it counts as two", counts("clients", 2)),
        ("says that it took 1000 steps", counts("steps", 1000)),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=name,
            attack=attack,
            known_bad="server that believes control words",
            without=lambda: taken_out((secagg_server, "decode_control", known_bad.believed)),
        )
    yield Limit(
        adversary=ADVERSARY,
        name="sends ring words beyond the clip",
        attack=within_the_bound,
        why="a sum does not tell who lied",
    )
    yield Limit(
        adversary=ADVERSARY,
        name="says that its values were clipped",
        attack=doubled_clip,
        why="honest clients may say so too",
    )
    for kind, record in (
        (wire.TRAIN, dict.fromkeys(("share_key", "mask_key", "commitment", "signature"), 7)),
        (wire.MASK, {"masked": 2**62, "tag": b""}),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=f"answers {kind} with values of other types",
            attack=garbled(kind, {"client": "c0", **record}),
            known_bad="server that takes any values",
            without=lambda: taken_out((wire, "decode_message", _any_values)),
        )


def _any_values(kind: Any, content: RecordDict) -> Any:
    return kind(**content.config_records["protocol"])


def _say(plan: RingPlan, words: np.ndarray, name: str, limbs: np.ndarray) -> None:
    """Write the limbs of a control word, int64 [LIMBS], which may be negative in the ring."""
    at = NAMES.index(name) * LIMBS + plan.place_of("control").start
    words[at : at + LIMBS] = (limbs % 2**plan.bits).astype(words.dtype)


def _limbs(value: int) -> np.ndarray:
    return np.array([(value >> (LIMB_BITS * i)) & (2**LIMB_BITS - 1) for i in range(LIMBS)])


def _bringing(stage: Stage, clips: float) -> Lie:
    """Return a lie that moves coordinate 0 of the sum to `clips` times the clip."""
    others_sum = sum(float(stage.update(i)[0]) for i in range(len(stage.policies)) if i != LIAR)
    target = clips * first_clip(stage.job) * (1 - 1e-6) - others_sum

    def lie(plan: RingPlan, words: np.ndarray) -> None:
        steps = round(target / plan.step_of(plan.segment("update")))
        words[0] = np.array(steps % 2**plan.bits).astype(words.dtype)

    return lie


def _sign(stage: Stage) -> float:
    return 1.0 if _honest_mean(stage)[0] >= 0 else -1.0


def _honest_mean(stage: Stage) -> np.ndarray:
    return np.asarray(np.mean([stage.update(i) for i in range(len(stage.policies))], axis=0))


def _moved(stage: Stage, adapter: np.ndarray) -> str:
    """Return how far the fused step goes, as text. Raises `ProtocolAborted` if it stays within the clip."""
    clip = first_clip(stage.job)
    moved = float(np.abs(adapter.astype(np.float64) - stage.initial.adapter).max())
    if moved <= clip * (1 + 1e-6):
        raise ProtocolAborted(f"the step goes {moved:.1e} at most, within the clip")
    return f"a coordinate of the mean moves by {moved:.3g}, {moved / clip:,.0f} clips"


def _clip(clip: np.ndarray | None) -> float:
    assert clip is not None  # every masked round has a clip
    return float(clip[0])
