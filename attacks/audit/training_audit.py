"""A8 on this project's own DP-SGD, from the inside: canaries whose gradients are unit vectors.

A linear model has one weight per canary. A canary that is in pulls its own weight, by at most the clip, and
no other. No canary is stronger, so this shows how much noise the code adds, whatever the model.

Guarantees: the verdict is that of the one-run audit (`dp_audit`). It is about `private_steps`, which
clients run on their adapters, not about one client's data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attacks.audit.dp_audit import AuditResult, audit
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.federate.private_training import private_steps


def audit_private_steps(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    claimed_epsilon: float,
    delta: float,
    seed: int,
    canaries: int = 1000,
    guesses: Sequence[int] = (100, 400),
) -> AuditResult:
    """Train once, with each canary in or out by a coin, and bound epsilon from below by guesses.

    The guesses are made from the weights. The coins and the noise follow from `seed`, so that an audit can
    be repeated.
    """
    import torch

    coins = np.random.default_rng(seed).random(canaries) < 0.5
    there = torch.eye(canaries)[np.flatnonzero(coins)]
    layer = torch.nn.Linear(canaries, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    private_steps(
        layer,
        lambda chosen: layer(there[chosen]).mean(),
        records=len(there),
        steps=steps,
        optimizer=torch.optim.SGD(layer.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=noise_multiplier, clip_norm=1.0, sampling_rate=sampling_rate),
        noise=Noise(seed.to_bytes(32, "big")),
        who="audit",
    )
    scores = -layer.weight.detach().numpy().ravel()
    return audit(scores, coins, guesses=guesses, delta=delta, claimed_epsilon=claimed_epsilon)
