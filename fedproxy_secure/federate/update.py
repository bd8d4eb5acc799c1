"""A client's update, apart from the training that makes it.

The steps of secure aggregation carry updates and do not train. Flower's deployment engine starts a process
for each step of each client, and importing torch would be most of that process's work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """One client's update of a round, `tau_k = phi_k - phi_g`, float32 [d], and its metrics."""

    client: str
    update: np.ndarray
    loss: float
    steps: int
    seconds: float
    truncated: int
