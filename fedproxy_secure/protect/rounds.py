"""One round under any protection, and the check that its result is what the protection's class promises.

Attacks, costs and the report read the result. A protection that left something out would be reported as
safer or cheaper than it is, so its round is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.protect.base import Protection, RoundResult, ServerRound


def run_round(protection: Protection, round: ServerRound) -> RoundResult:
    """Run one round; return its result, with the length of the fused step among the metrics.

    With differential privacy the metrics have no `loss`: clients keep their losses to themselves.

    Raises `RoundAborted` if too few clients answer, and `ConfigError`, naming the protection, for a result
    that is not what its class promises.
    """
    result = protection.run_round(round)
    _check_round(protection, result, round)
    step = result.state.adapter - round.state.adapter
    metrics = {"step_norm": float(np.linalg.norm(step)), **result.metrics}
    if round.job.privacy.unit != "none":
        metrics.pop("loss", None)
    return replace(result, metrics=metrics)


def _check_round(protection: Protection, result: RoundResult, round: ServerRound) -> None:
    d, clients = len(round.state.adapter), len(result.clients)
    if result.state.round != round.state.round + 1 or result.state.adapter.shape != (d,):
        raise _broken(protection, "state", "must be the next round's, with an adapter of the same length")
    if protection.server_learns == "sums":
        _check_vectors(protection, "sums", {"update": result.sums.get("update")}, d)
        if result.updates:
            raise _broken(protection, "updates", "must be empty if server_learns is sums")
    elif not protection.updates_in_messages:
        updates = {name: result.updates.get(name) for name in result.clients}
        _check_vectors(protection, "updates", updates, d)
    rows = round.ledger.rows.values()
    noted = sum(r["count"] for r in rows if r["to"] == "server" and not r.get("computed"))
    if noted < clients:
        raise _broken(protection, "ledger", f'must note what each of {clients} clients sends to "server"')


def _check_vectors(
    protection: Protection, field: str, vectors: Mapping[str, np.ndarray | None], d: int
) -> None:
    for name, vector in vectors.items():
        if vector is None or vector.shape != (d,):
            raise _broken(
                protection, f"{field}[{name!r}]", f"must be what the server learns, float32 [{d}]"
            )


def _broken(protection: Protection, field: str, rule: str) -> ConfigError:
    return ConfigError(f"protect.scheme={protection.name}: {field} of its round: {rule}")
