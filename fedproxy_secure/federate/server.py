"""The server's state between rounds, and the step from one round's updates to the next state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from fedproxy_secure.config import FusionConfig
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.federate import fusion as rules
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import get_vector, tensor_sizes
from fedproxy_secure.runtime.artifacts import write_bytes

FEDADAM_BETAS = (0.9, 0.99)
FEDADAM_TAU = 1e-3  # floor of the adaptive step (Reddi et al. 2021)


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The server's state between two rounds.

    `round` is the next to run; `adapter` is phi_g, float32 [d]; `sizes` of the tensors in it, int64 (None:
    one tensor); `conflict` is C of the last round, float32 [d] or None; `momentum` and `variance` belong to
    FedAdam, float32 [d] or None; `clip` is the next round's under masking, float64 [1] or None.
    """

    round: int
    adapter: np.ndarray
    conflict: np.ndarray | None = None
    momentum: np.ndarray | None = None
    variance: np.ndarray | None = None
    sizes: np.ndarray | None = None
    clip: np.ndarray | None = None

    def save(self, file: Path) -> None:
        """Write atomically: the file is the old state or the new one, never half of either."""
        arrays = {"round": np.array([self.round], dtype=np.int64), "adapter": self.adapter}
        for name in ("conflict", "momentum", "variance", "sizes", "clip"):
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        write_bytes(file, save(arrays))

    @classmethod
    def load(cls, file: Path) -> ServerState:
        """Read what `save` wrote. Raises `RunFolderError` for a damaged file."""
        try:
            arrays = load_file(file)
            return cls(round=int(arrays.pop("round")[0]), adapter=arrays.pop("adapter"), **arrays)
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

    Raises `DataError`, naming the client, for an update of the wrong shape or not finite.
    """
    tau = _stack(updates, d=len(state.adapter))
    analysis = rules.analyse(tau)
    if fusion.linear:
        merged = rules.fedavg(tau)
    elif fusion.rule == "ties":
        merged = rules.ties(tau, keep_ratio=fusion.keep_ratio)
    else:
        merged = rules.h_ties(tau, analysis, rho=fusion.rho, r0=fusion.r0, delta=fusion.delta)
    new = advance(state, merged, fusion, conflict=analysis.conflict)
    mean_norm = float(np.linalg.norm(tau.mean(axis=0)))
    step_norm = float(np.linalg.norm(new.adapter - state.adapter))
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
    """Return the next state after a round whose updates merged into `merged`, float32 [d]."""
    momentum, variance = state.momentum, state.variance
    if fusion.rule == "fedadam":
        merged, momentum, variance = _adam(merged, momentum, variance)
    step = np.float32(fusion.server_learning_rate) * merged
    return ServerState(
        round=state.round + 1,
        adapter=(state.adapter + step).astype(np.float32),
        conflict=conflict if fusion.pcr_lambda > 0 else None,
        momentum=momentum,
        variance=variance,
        sizes=state.sizes,
        clip=clip,
    )


def _adam(
    mean: np.ndarray, momentum: np.ndarray | None, variance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    beta1, beta2 = FEDADAM_BETAS
    m = (1 - beta1) * mean + (0 if momentum is None else beta1 * momentum)
    v = (1 - beta2) * mean**2 + (0 if variance is None else beta2 * variance)
    return m / (np.sqrt(v) + FEDADAM_TAU), m, v


def _stack(updates: Sequence[ClientUpdate], *, d: int) -> np.ndarray:
    for u in updates:
        if u.update.shape != (d,):
            raise DataError(f"client {u.client}: update of shape {u.update.shape}; must be ({d},)")
        if not np.isfinite(u.update).all():
            raise DataError(f"client {u.client}: update holds NaN or infinity; must be finite")
    return np.stack([u.update for u in updates]).astype(np.float32)
