"""The server's state between rounds, and the step from one round's updates to the next state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from fedproxy_secure.config import FusionConfig
from fedproxy_secure.errors import ConfigError, DataError, RunFolderError
from fedproxy_secure.federate.fusion.algorithms import analyse, fedavg
from fedproxy_secure.federate.fusion.rule import checked, fusion_rule_of
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import get_vector, tensor_sizes
from fedproxy_secure.runtime.artifacts import write_bytes

MEMORY = "memory."  # begins the names of a fusion rule's arrays in the file


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The server's state between two rounds.

    `round`: the next to run. `adapter`: phi_g, float32 [d]. `sizes`: of the tensors in it, int64 (None: one
    tensor). `conflict`: C of the last round, float32 [d] or None. `clip`: the next round's under masking,
    float64 [1] or None. `memory`: what the fusion rule remembers, arrays by name.
    """

    round: int
    adapter: np.ndarray
    conflict: np.ndarray | None = None
    sizes: np.ndarray | None = None
    clip: np.ndarray | None = None
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write the state atomically: the file holds the old state or the new one, whole."""
        arrays = {"round": np.array([self.round], dtype=np.int64), "adapter": self.adapter}
        for name in ("conflict", "sizes", "clip"):
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        arrays |= {MEMORY + name: np.asarray(value) for name, value in self.memory.items()}
        write_bytes(file, save(arrays))

    @classmethod
    def load(cls, file: Path) -> ServerState:
        """Read what `save` wrote. Raises `RunFolderError` for a damaged file."""
        try:
            arrays = load_file(file)
            memory = {n[len(MEMORY) :]: arrays.pop(n) for n in list(arrays) if n.startswith(MEMORY)}
            number = int(arrays.pop("round")[0])
            return cls(round=number, adapter=arrays.pop("adapter"), memory=memory, **arrays)
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise RunFolderError(f"{file}: is not a saved server state") from error


def initial_state(tuned: nn.Module) -> ServerState:
    """Return the state before the first round, with the adapter as `attach` made it."""
    return ServerState(
        round=0, adapter=get_vector(tuned), sizes=np.array(tensor_sizes(tuned), dtype=np.int64)
    )


def fuse_round(
    state: ServerState, updates: Sequence[ClientUpdate], fusion: FusionConfig
) -> tuple[ServerState, dict[str, float]]:
    """Merge one round's updates, all in the clear; return the next state and numbers for the metrics line.

    Raises `DataError`, naming the client, for an update of the wrong shape or not finite; `ConfigError`,
    naming the rule, for a result that a fusion rule may not return.
    """
    tau = _stack(updates, d=len(state.adapter))
    analysis = analyse(tau)
    rule = fusion_rule_of(fusion)
    if rule.linear:
        merged = fedavg(tau)  # a secure sum would give the server the same
    else:
        merged = checked(rule, rule.merge(tau, analysis, fusion), d=tau.shape[1], by="merge")
    new = advance(state, merged, fusion, conflict=analysis.conflict)
    mean_norm = float(np.linalg.norm(tau.mean(axis=0, dtype=np.float64)))
    step_norm = float(np.linalg.norm(new.adapter.astype(np.float64) - state.adapter))
    metrics = {
        "loss": float(np.mean([u.loss for u in updates])),
        "clients": float(len(updates)),
        "heterogeneity": float(analysis.heterogeneity.mean()),
        "conflict": float(analysis.conflict.mean()),
        "weight_min": float(analysis.weights.min()),
        "weight_max": float(analysis.weights.max()),
        "step_norm": step_norm,
        "step_over_mean": step_norm / mean_norm if mean_norm else 0.0,
    }
    return new, metrics


def advance(
    state: ServerState,
    merged: np.ndarray,
    fusion: FusionConfig,
    *,
    conflict: np.ndarray | None,
    clip: np.ndarray | None = None,
) -> ServerState:
    """Return the next state after a round whose updates merged into `merged`, float32 [d].

    Raises `ConfigError`, naming the rule, for a step that it may not return, or naming the rate, for a step
    that leads to an adapter that is not finite.
    """
    rule, rate = fusion_rule_of(fusion), fusion.server_learning_rate
    step, memory = rule.step(merged, state.memory)
    step = checked(rule, step, d=len(merged), by="step")
    with np.errstate(over="ignore", invalid="ignore"):
        adapter = (state.adapter + np.float32(rate) * step).astype(np.float32)
    if not np.isfinite(adapter).all():
        raise ConfigError(
            f"fusion.server_learning_rate={rate:g}: the adapter holds NaN or infinity after round "
            f"{state.round}; must be finite; lower the rate"
        )
    return ServerState(
        round=state.round + 1,
        adapter=adapter,
        conflict=conflict if fusion.pcr_lambda > 0 else None,
        sizes=state.sizes,
        clip=clip,
        memory=memory,
    )


def _stack(updates: Sequence[ClientUpdate], *, d: int) -> np.ndarray:
    for u in updates:
        if u.update.shape != (d,):
            raise DataError(f"client {u.client}: update of shape {u.update.shape}; must be ({d},)")
        if not np.isfinite(u.update).all():
            raise DataError(f"client {u.client}: update holds NaN or infinity; must be finite")
    tau = np.stack([u.update for u in updates]).astype(np.float32)
    tau.setflags(write=False)  # no fusion rule may change what later steps read
    return tau
