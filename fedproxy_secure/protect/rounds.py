"""One round under any protection, and the check that its result has what the protection's class promises.

Attacks, costs and the report read the result. A protection that left something out would be reported as
safer or cheaper than it is, so its round is refused. That the values are true cannot be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.protect.base import Protection, RoundResult, ServerRound


def run_round(protection: Protection, round: ServerRound) -> RoundResult:
    """Run one round; return its result, with the length of the fused step among the metrics.

    With differential privacy the metrics have no `loss`: clients keep their losses to themselves.

    Raises `RoundAborted` if too few clients answer, and `ConfigError`, naming the protection, for a result
    that lacks what its class promises.
    """
    from fedproxy_secure import wire

    in_the_clear: set[str] = set()

    def ask(kind: str, contents: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
        for name, reply in round.ask(kind, contents, group):
            if wire.holds_update(reply):
                in_the_clear.add(name)
            yield name, reply

    result = protection.run_round(replace(round, ask=ask))
    _check_round(protection, result, round, in_the_clear)
    step = result.state.adapter.astype(np.float64) - round.state.adapter
    metrics = {**result.metrics, "step_norm": float(np.linalg.norm(step))}
    if round.job.privacy.unit != "none":
        metrics.pop("loss", None)
    return replace(result, metrics=metrics)


def _check_round(
    protection: Protection, result: RoundResult, round: ServerRound, in_the_clear: set[str]
) -> None:
    d, clients = len(round.state.adapter), set(result.clients)
    if result.state.round != round.state.round + 1 or result.state.adapter.shape != (d,):
        raise _broken(protection, "state", "must be the next round's, with an adapter of the same length")
    if not clients or len(clients) < len(result.clients) or not clients <= set(round.cohort):
        raise _broken(protection, "clients", "must be some of the cohort, each once")
    if protection.server_learns == "sums":
        _check_vectors(protection, "sums", {"update": result.sums.get("update")}, d)
        if result.updates:
            raise _broken(protection, "updates", "must be empty if server_learns is sums")
    else:
        updates = {name: result.updates.get(name) for name in sorted(clients - in_the_clear)}
        _check_vectors(protection, "updates", updates, d)
    rows = round.ledger.rows.values()
    noted = sum(r["count"] for r in rows if r["to"] == "server" and not r.get("computed"))
    if noted < len(clients):
        rule = f'must note what each of {len(clients)} clients sends to "server"'
        raise _broken(protection, "ledger", rule)


def _check_vectors(
    protection: Protection, field: str, vectors: Mapping[str, np.ndarray | None], d: int
) -> None:
    for name, vector in vectors.items():
        if not isinstance(vector, np.ndarray) or vector.shape != (d,) or not np.isfinite(vector).all():
            rule = f"must be what the server learns, {d} finite numbers"
            raise _broken(protection, f"{field}[{name!r}]", rule)


def _broken(protection: Protection, field: str, rule: str) -> ConfigError:
    return ConfigError(f"protect.scheme={protection.name}: {field} of its round: {rule}")
