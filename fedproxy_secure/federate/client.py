"""One client: its records, the proxy it was given, and its round of local training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded, encode_records
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.adapters import (
    attach,
    get_vector,
    set_vector,
    split_like,
    trained_parameters,
)
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.training import train
from fedproxy_secure.llm import load_llm
from fedproxy_secure.randomness import stream


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """What one client sends after a round: `tau_k = phi_k - phi_g`, float32 [d], and its metrics."""

    client: str
    update: np.ndarray
    records: int
    loss: float
    steps: int
    seconds: float
    truncated: int


@dataclass(frozen=True, kw_only=True)
class LocalClient:
    """A client between rounds. `tuned` may be shared: every round writes the broadcast adapter first."""

    name: str
    tuned: nn.Module
    items: Sequence[Encoded]
    truncated: int
    pad_id: int
    local: LocalConfig
    seed: int

    def __post_init__(self) -> None:
        if len(self.items) < 2:
            raise DataError(
                f"client {self.name}: has {len(self.items)} training records; at least 2 are needed"
            )

    def train(
        self,
        *,
        round: int,
        start: np.ndarray,
        conflict: np.ndarray | None = None,
        pcr_lambda: float = 0.0,
        prox_mu: float = 0.0,
    ) -> ClientUpdate:
        """Tune the adapter from the broadcast one and return the difference.

        Args:
            round: from 0; data order depends on (seed, client, round) alone, so a resumed run repeats it.
            start: broadcast adapter phi_g, float32 [d].
            conflict: last round's conflict map C, float32 [d] in [0, 1], or None in round 0.
            pcr_lambda: weight of PCR, `lambda sum_p C_p (phi_p - phi_gp)^2` (Eq. 8, 9).
            prox_mu: weight of FedProx, `mu / 2 ||phi - phi_g||^2`.

        Raises `TrainingError` if the loss stops being finite.
        """
        began = time.perf_counter()
        set_vector(self.tuned, start)
        loss = train(
            self.tuned,
            self.items,
            steps=self.local.steps,
            local=self.local,
            pad_id=self.pad_id,
            rng=stream(self.seed, "client", self.name, round),
            who=f"client {self.name}, round {round}",
            penalty=self._penalty(start, conflict, pcr_lambda, prox_mu),
        )
        return ClientUpdate(
            client=self.name,
            update=get_vector(self.tuned) - start,
            records=len(self.items),
            loss=loss,
            steps=self.local.steps,
            seconds=time.perf_counter() - began,
            truncated=self.truncated,
        )

    def _penalty(
        self, start: np.ndarray, conflict: np.ndarray | None, pcr_lambda: float, prox_mu: float
    ) -> Any:
        weight = np.full_like(start, prox_mu / 2)
        if conflict is not None:
            weight += pcr_lambda * conflict
        if not weight.any():
            return None
        weights, anchors = split_like(self.tuned, weight), split_like(self.tuned, start)
        parameters = trained_parameters(self.tuned)

        def penalty() -> torch.Tensor:
            terms = [
                (w * (p - a).square()).sum() for w, p, a in zip(weights, parameters, anchors, strict=True)
            ]
            return torch.stack(terms).sum()

        return penalty


def build_client(job: FederationJob, index: int, model_folder: Path) -> LocalClient:
    """Client `index` of a job, its records read and encoded, on the model in `model_folder`.

    Clients of one process share one copy of the model. Raises `DataError` for records it cannot use.
    """
    tuned, tokenizer = shared_model(
        str(model_folder), job.adapter, job.blocks, job.seed, job.device, job.dtype
    )
    client = job.clients[index]
    encoded = encode_records(
        load_task(client, root=job.data_root).train, tokenizer, max_tokens=job.max_tokens
    )
    return LocalClient(
        name=client.name,
        tuned=tuned,
        items=encoded.items,
        truncated=encoded.truncated,
        pad_id=tokenizer.pad_token_id,
        local=job.local,
        seed=job.seed,
    )


@lru_cache(maxsize=2)
def shared_model(
    folder: str,
    adapter: AdapterConfig,
    blocks: tuple[int, ...] | None,
    seed: int,
    device: str,
    dtype: str,
) -> tuple[nn.Module, Any]:
    """The model in `folder` with a fresh adapter, loaded once a process."""
    model, tokenizer = load_llm(folder, device=device, dtype=dtype)
    return attach(model, adapter, seed=seed, blocks=blocks), tokenizer
