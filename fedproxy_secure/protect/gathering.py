"""The parts of a round on the server's side that protections share: gather answers, fuse a sum."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedproxy_secure.config import FusionConfig
from fedproxy_secure.errors import ConfigError, DataError, FedProxyError
from fedproxy_secure.protect.base import RoundResult, ServerRound

if TYPE_CHECKING:
    from flwr.app import RecordDict

log = logging.getLogger(__name__)
T = TypeVar("T")


def gather(
    round: ServerRound,
    read: Callable[[str, RecordDict], T],
    *,
    message: str,
    reveals: str,
    payload_bytes: int,
) -> dict[str, T]:
    """Ask the cohort to train, and return what `read` makes of each usable answer, by client name.

    The result is ordered by name, so that sums do not depend on which answer came first. Each answer is
    noted in the leakage ledger.

    Args:
        round: the round.
        read: takes a client's name and its answer. A client for which it raises is left out of the
            round; the owner is told the text of this package's own errors alone.
        message: what the answer is called in the ledger.
        reveals: what one answer reveals to the server.
        payload_bytes: of one answer.

    Raises `RoundAborted` if fewer clients than `federate.min_clients` are left.
    """
    from fedproxy_secure import wire
    from fedproxy_secure.protect.broadcast import broadcast_of

    content = wire.encode_broadcast(broadcast_of(round.job, round.state))
    group = f"round {round.state.round}"
    answers: dict[str, T] = {}
    for name, reply in round.ask(wire.TRAIN, dict.fromkeys(round.cohort, content), group):
        try:
            answer = read(name, reply)
        except FedProxyError as error:
            log.warning("%s: %s is left out: %s", group, name, error)
            round.note_left_out(name, str(error))
            continue
        except Exception as error:  # a hostile answer may not end the round, whatever `read` forgot
            log.exception("%s: %s is left out", group, name)
            round.note_left_out(name, f"its answer cannot be read: {type(error).__name__}")
            continue
        round.ledger.note(message, to="server", reveals=reveals, payload_bytes=payload_bytes, vector=True)
        answers[name] = answer
        if round.on_client is not None:
            round.on_client(name)
    round.enough(len(answers))
    return {name: answers[name] for name in sorted(answers)}


def check_reads_mean_alone(scheme: str, fusion: FusionConfig) -> None:
    """Raise `ConfigError` for fusion settings that need more than the mean of the updates.

    Call it in `check_settings` of a protection whose server learns nothing but the sum of the updates.
    """
    from fedproxy_secure.federate.fusion.rule import fusion_rule_of

    if not fusion_rule_of(fusion).linear:
        raise ConfigError(
            f"fusion.rule={fusion.rule}: reads single updates, which protect.scheme={scheme} hides; must "
            "be a rule that reads their mean alone, such as fedavg"
        )
    if fusion.pcr_lambda > 0:
        raise ConfigError(
            f"fusion.pcr_lambda={fusion.pcr_lambda}: with protect.scheme={scheme} the server learns no "
            "conflict; must be 0"
        )


def fuse_sum(round: ServerRound, total: np.ndarray, clients: Sequence[str]) -> RoundResult:
    """Fuse the sum of updates, float32 [d], over `clients` into the next state, by a rule of the mean.

    A step that is longer than honest clients can make it is shortened, as under masking
    (`secure_sum.step_bound`).

    Raises `DataError` for a sum of another length or not finite.
    """
    from fedproxy_secure.federate.server import advance
    from fedproxy_secure.protect.secure_sum.step_bound import held, longest_step

    state, count = round.state, len(clients)
    if total.shape != state.adapter.shape or not np.isfinite(total).all():
        raise DataError(f"sum of updates: must be {len(state.adapter)} finite numbers")
    round.ledger.note(
        "sum of update",
        to="server",
        reveals=f"{len(total)} sums over {count} clients",
        payload_bytes=total.nbytes,
        computed=True,
    )
    most = longest_step(
        round.job,
        state.adapter,
        round=state.round,
        cohort=len(round.cohort),
        threshold=count,
        clients=count,
        weight=count,
    )
    step, cut = held((total / count).astype(np.float32), most)
    new = advance(state, step, round.job.fusion, conflict=None)
    metrics = {"clients": float(count), "step_cut": cut}
    return RoundResult(state=new, metrics=metrics, clients=list(clients), sums={"update": total})
