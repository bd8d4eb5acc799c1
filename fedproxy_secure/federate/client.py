"""One client: its records, its proxy, and its round of local training."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import PrivacyLedger
from fedproxy_secure.dp.noise import Noise, simulated_key
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import Penalty, train
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import get_vector, split_like, trained_parameters
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.runtime.randomness import stream

LEAST_RECORDS = 2


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """A client's differential privacy at the unit `record`: its noise, and the ledger of what it spent.

    `simulated`: noise follows from the run's seed; nothing is protected then.
    """

    noise: RecordNoise
    ledger: PrivacyLedger
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class LocalClient:
    """A client between rounds; it borrows the `model` only while it trains.

    `rounds` is how many rounds the whole training has, for `local.schedule`.

    `on_trained` is called with the round, the update and the indices of the records drawn, for evaluation;
    `on_failed` with the round and the reason, if training fails and the failure is hidden from the server.

    Guarantees: with `privacy`, a round's update is (epsilon, delta)-DP in the client's records as its
    ledger says, under the assumptions that `private_training` names; its `loss` and `truncated` are 0. What
    the server computes from updates (trimming, weights, conflict, plug-back) is post-processing. Not
    covered: the number of records, how long training takes, a process that native code ends.
    """

    name: str
    model: LentModel
    items: Sequence[Encoded]
    truncated: int
    pad_id: int
    local: LocalConfig
    rounds: int
    seed: int
    privacy: Privacy | None = None
    on_trained: Callable[[int, ClientUpdate, list[int]], None] | None = None
    on_failed: Callable[[int, str], None] | None = None

    def __post_init__(self) -> None:
        if len(self.items) < LEAST_RECORDS:
            raise DataError(
                f"client {self.name}: has {len(self.items)} training records; at least {LEAST_RECORDS} are "
                "needed"
            )

    @property
    def sizes(self) -> list[int]:
        """The sizes of the trained tensors in an update, in order."""
        return list(self.model.sizes)

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
            round: from 0; data order depends on (seed, client, round) alone, so a resumed run repeats it,
                and the learning rates depend on the settings and the round.
            start: broadcast adapter phi_g, float32 [d].
            conflict: last round's conflict map C, float32 [d] in [0, 1], or None in round 0.
            pcr_lambda: weight of PCR, `lambda sum_p C_p (phi_p - phi_gp)^2` (Eq. 8, 9).
            prox_mu: weight of FedProx, `mu / 2 ||phi - phi_g||^2`.

        Raises `TrainingError` if the loss stops being finite, `PrivacyError` before any step if the round
        would spend more than allowed.
        """
        began, drawn = time.perf_counter(), _Drawn(self.items)
        request = _RoundRequest(
            round=round, start=start, conflict=conflict, pcr_lambda=pcr_lambda, prox_mu=prox_mu
        )
        loss = 0.0
        if self.privacy is None:
            loss, difference = self._train(request, drawn)
        else:
            difference = self._train_privately(request, drawn, self.privacy)
        update = ClientUpdate(
            client=self.name,
            update=difference,
            loss=loss,
            steps=self.local.steps,
            # each private record takes a pass of its own, so the time would reveal how many there are
            seconds=time.perf_counter() - began if self.privacy is None else 0.0,
            truncated=self.truncated if self.privacy is None else 0,
        )
        if self.on_trained is not None:
            self.on_trained(round, update, drawn.indices)
        return update

    def _train(self, request: _RoundRequest, items: Sequence[Encoded]) -> tuple[float, np.ndarray]:
        """Return the mean loss, nats, and the round's update, float32 [d]."""
        with self.model.lent(request.start) as tuned:
            loss = train(
                tuned,
                items,
                steps=self.local.steps,
                local=self.local,
                pad_id=self.pad_id,
                rng=stream(self.seed, "client", self.name, request.round),
                subject=f"client {self.name}, round {request.round}",
                penalty=request.penalty(tuned),
                round=request.round,
                rounds=self.rounds,
            )
            return loss, get_vector(tuned) - request.start

    def _train_privately(self, request: _RoundRequest, items: _Drawn, privacy: Privacy) -> np.ndarray:
        """Return the round's update, float32 [d]: computed once, from then on read from the ledger."""
        noise, subject = privacy.noise, f"client {self.name}, round {request.round}"
        d = sum(self.sizes)
        for vector in (request.start, request.conflict):  # a wrong one must not cost privacy
            if vector is not None and vector.shape != (d,):
                raise DataError(f"{subject}: broadcast of shape {vector.shape}; must be ({d},)")

        def compute(key: bytes) -> bytes:
            if privacy.simulated:
                key = simulated_key(self.seed, self.name, request.round)
            with self.model.lent(request.start) as tuned:
                train_privately(
                    tuned,
                    items,
                    steps=self.local.steps,
                    local=self.local,
                    private=noise,
                    noise=Noise(key),
                    pad_id=self.pad_id,
                    subject=subject,
                    pull=request.pull(tuned),
                    round=request.round,
                    rounds=self.rounds,
                )
                difference = (get_vector(tuned) - request.start).astype(np.float32)
            # the indices of drawn records are kept for evaluation only: they are as secret as the noise
            drawn = [] if self.on_trained is None else items.indices
            return bytes(difference.tobytes() + np.array(drawn, dtype=np.int64).tobytes())

        result = privacy.ledger.once(
            round=request.round,
            inputs_sha256=request.sha256(),
            event=SampledGaussian(
                noise_multiplier=noise.noise_multiplier,
                sampling_rate=noise.sampling_rate,
                steps=self.local.steps,
            ),
            compute=compute,
        )
        items.indices[:] = np.frombuffer(result[4 * d :], dtype=np.int64).tolist()
        return np.frombuffer(result[: 4 * d], dtype=np.float32).copy()


@dataclass(frozen=True, kw_only=True)
class _RoundRequest:
    """The values that the server chooses in a round; see `LocalClient.train`."""

    round: int
    start: np.ndarray
    conflict: np.ndarray | None
    pcr_lambda: float
    prox_mu: float

    def penalty(self, tuned: nn.Module) -> Penalty | None:
        """Return the term that is added to the loss: `sum_p (lambda C_p + mu / 2) (phi_p - phi_gp)^2`."""
        weight = np.full_like(self.start, self.prox_mu / 2)
        if self.conflict is not None:
            weight += self.pcr_lambda * self.conflict
        if not weight.any():
            return None
        weights, anchors = split_like(tuned, weight), split_like(tuned, self.start)
        parameters = trained_parameters(tuned)

        def penalty() -> torch.Tensor:
            terms = [
                (w * (p - a).square()).sum() for w, p, a in zip(weights, parameters, anchors, strict=True)
            ]
            return torch.stack(terms).sum()

        return penalty

    def pull(self, tuned: nn.Module) -> Callable[[], Sequence[torch.Tensor]] | None:
        """Return the penalty's gradients, for training that does not differentiate it with the loss."""
        penalty = self.penalty(tuned)
        if penalty is None:
            return None
        parameters = trained_parameters(tuned)
        return lambda: torch.autograd.grad(penalty(), parameters)

    def sha256(self) -> bytes:
        """Return the hash of all values, 32 bytes; the ledger's run covers all other inputs."""
        numbers = (
            f"{self.round}|{self.pcr_lambda!r}|{self.prox_mu!r}|{self.start.size}|"
            f"{self.conflict is not None}|"
        ).encode()
        vectors = [v.astype(np.float32).tobytes() for v in (self.start, self.conflict) if v is not None]
        return hashlib.sha256(b"".join([numbers, *vectors])).digest()


class _Drawn(Sequence[Encoded]):
    """A client's records, with the indices of those that were read, in order."""

    def __init__(self, items: Sequence[Encoded]) -> None:
        self._items = items
        self.indices: list[int] = []

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        self.indices.append(int(index))
        return self._items[index]
