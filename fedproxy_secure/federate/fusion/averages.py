"""Rules that need the mean of the updates alone: `fedavg`, and `fedadam` with its optimiser."""

from __future__ import annotations

import numpy as np

from fedproxy_secure.federate.fusion.rule import FusionRule, Memory

FEDADAM_BETAS = (0.9, 0.99)
FEDADAM_TAU = 1e-3  # floor of the adaptive step (Reddi et al. 2021)


class FedAvg(FusionRule):
    """The mean of the updates, each client alike (McMahan et al. 2017)."""

    name = "fedavg"
    linear = True


class FedAdam(FedAvg):
    """Adam on the server, with the mean update as its gradient (Reddi et al. 2021, algorithm 2).

    Its memory: `momentum` and `variance`, float32 [d]. As published, there is no bias correction.
    """

    name = "fedadam"

    def step(self, merged: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        beta1, beta2 = FEDADAM_BETAS
        momentum = (1 - beta1) * merged + beta1 * memory.get("momentum", 0)
        variance = (1 - beta2) * merged**2 + beta2 * memory.get("variance", 0)
        return momentum / (np.sqrt(variance) + FEDADAM_TAU), {"momentum": momentum, "variance": variance}


FEDAVG = FedAvg()
FEDADAM = FedAdam()
