"""One client: its records, the proxy it was given, and its round of local training."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig, LocalConfig, PrivacyConfig
from fedproxy_secure.data.encode import Encoded, encode_each, encode_records
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.dp.accounting import noise_multiplier_for
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import PrivacyLedger, own_salt
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.federate.adapters import (
    attach,
    get_vector,
    set_vector,
    split_like,
    tensor_sizes,
    trained_parameters,
)
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.private_training import (
    RecordNoise,
    check_fits,
    check_private,
    train_privately,
)
from fedproxy_secure.federate.proxy_files import verified_sha256
from fedproxy_secure.federate.proxy_model import ProxyModel, load_proxy
from fedproxy_secure.federate.training import train
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.randomness import stream, stream_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """A client's differential privacy at the unit `record`: its noise, and where it is written down.

    `simulated`: noise follows from the run's seed; nothing is protected then.
    """

    noise: RecordNoise
    ledger: PrivacyLedger
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class LocalClient:
    """A client between rounds. `tuned` may be shared: every round writes the broadcast adapter first.

    `on_trained` is told the round, the update and which records were drawn, for evaluation.

    Guarantees: with `privacy`, a round's update is (epsilon, delta)-DP in the client's records as its
    ledger says, under what `private_training` says that it rests on; its `loss` and `truncated` are 0. What
    the server makes of updates (trimming, weights, conflict, plug-in) is post-processing. Not covered: how
    many records there are, how long it takes, a process that native code ends.
    """

    name: str
    tuned: nn.Module
    items: Sequence[Encoded]
    truncated: int
    pad_id: int
    local: LocalConfig
    seed: int
    privacy: Privacy | None = None
    on_trained: Callable[[int, ClientUpdate, list[int]], None] | None = None

    def __post_init__(self) -> None:
        if len(self.items) < 2:
            raise DataError(
                f"client {self.name}: has {len(self.items)} training records; at least 2 are needed"
            )

    @property
    def sizes(self) -> list[int]:
        """How many numbers of an update belong to each trained tensor, in order."""
        return tensor_sizes(self.tuned)

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

        Raises `TrainingError` if the loss stops being finite, `PrivacyError` before any step if the round
        would spend more than allowed.
        """
        began, drawn = time.perf_counter(), _Drawn(self.items)
        loss = 0.0
        if self.privacy is not None:
            moved = self._train_privately(self.privacy, drawn, round, start, conflict, pcr_lambda, prox_mu)
        else:
            loss = self._train(drawn, round, start, conflict, pcr_lambda, prox_mu)
            moved = get_vector(self.tuned) - start
        update = ClientUpdate(
            client=self.name,
            update=moved,
            loss=loss,
            steps=self.local.steps,
            seconds=time.perf_counter() - began,
            truncated=self.truncated if self.privacy is None else 0,
        )
        if self.on_trained is not None:
            self.on_trained(round, update, drawn.indices)
        return update

    def _train(
        self,
        items: Sequence[Encoded],
        round: int,
        start: np.ndarray,
        conflict: np.ndarray | None,
        pcr_lambda: float,
        prox_mu: float,
    ) -> float:
        set_vector(self.tuned, start)
        return train(
            self.tuned,
            items,
            steps=self.local.steps,
            local=self.local,
            pad_id=self.pad_id,
            rng=stream(self.seed, "client", self.name, round),
            who=f"client {self.name}, round {round}",
            penalty=self._penalty(start, conflict, pcr_lambda, prox_mu),
        )

    def _train_privately(
        self,
        privacy: Privacy,
        items: _Drawn,
        round: int,
        start: np.ndarray,
        conflict: np.ndarray | None,
        pcr_lambda: float,
        prox_mu: float,
    ) -> np.ndarray:
        """Return the round's update, float32 [d]: computed once, then the result that the ledger stored."""
        noise, who = privacy.noise, f"client {self.name}, round {round}"
        d = sum(self.sizes)
        for vector in (start, conflict):  # what cannot be trained from must not be paid for
            if vector is not None and vector.shape != (d,):
                raise DataError(f"{who}: broadcast of shape {vector.shape}; must be ({d},)")

        def computed(key: bytes) -> bytes:
            if privacy.simulated:
                place = f"{stream_seed(self.seed, 'noise', self.name, round)}"
                key = hashlib.sha256(place.encode()).digest()
            set_vector(self.tuned, start)
            device = trained_parameters(self.tuned)[0].device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                # secret, as the noise is: by masks that all know, one record more changes others' gradients
                torch.manual_seed(int.from_bytes(hashlib.sha256(key + b"dropout").digest()[:7], "big"))
                train_privately(
                    self.tuned,
                    items,
                    steps=self.local.steps,
                    local=self.local,
                    private=noise,
                    noise=Noise(key),
                    pad_id=self.pad_id,
                    who=who,
                    pull=self._pull(start, conflict, pcr_lambda, prox_mu),
                )
            moved = (get_vector(self.tuned) - start).astype(np.float32)
            # which records were drawn is kept for evaluation alone: it is as secret as the noise
            drawn = [] if self.on_trained is None else items.indices
            return bytes(moved.tobytes() + np.array(drawn, dtype=np.int64).tobytes())

        result = privacy.ledger.once(
            round=round,
            inputs_sha256=_inputs_sha256(round, start, conflict, pcr_lambda, prox_mu),
            event=SampledGaussian(
                noise_multiplier=noise.noise_multiplier,
                sampling_rate=noise.sampling_rate,
                steps=self.local.steps,
            ),
            compute=computed,
        )
        items.indices[:] = np.frombuffer(result[4 * d :], dtype=np.int64).tolist()
        return np.frombuffer(result[: 4 * d], dtype=np.float32).copy()

    def _pull(
        self, start: np.ndarray, conflict: np.ndarray | None, pcr_lambda: float, prox_mu: float
    ) -> Any:
        """The penalty's gradients, for training that does not differentiate it with the loss."""
        penalty = self._penalty(start, conflict, pcr_lambda, prox_mu)
        if penalty is None:
            return None
        parameters = trained_parameters(self.tuned)
        return lambda: torch.autograd.grad(penalty(), parameters)

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


class _Drawn(Sequence[Encoded]):
    """Records that remember which of them were read, in order."""

    def __init__(self, items: Sequence[Encoded]) -> None:
        self._items = items
        self.indices: list[int] = []

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        self.indices.append(int(index))
        return self._items[index]


def _inputs_sha256(
    round: int, start: np.ndarray, conflict: np.ndarray | None, pcr_lambda: float, prox_mu: float
) -> bytes:
    """Hash what the server chooses in a round, 32 bytes; the ledger's run covers all other inputs."""
    numbers = f"{round}|{pcr_lambda!r}|{prox_mu!r}|{start.size}|{conflict is not None}|".encode()
    vectors = [v.astype(np.float32).tobytes() for v in (start, conflict) if v is not None]
    return hashlib.sha256(b"".join([numbers, *vectors])).digest()


def build_client(job: FederationJob, index: int, model_folder: Path) -> LocalClient:
    """Client `index` of a job, its records read and encoded, on the proxy in `model_folder`.

    Clients of one process share one copy of the model. The proxy, its tokenizer included, is loaded and
    checked before any record is read. With `privacy.unit` record, no exception that encoding a record
    raises is passed on; errors of reading the client's own files are, and so is how many records there are.
    Not excluded by proof: native code of the tokenizer that ends the process on some text.

    Raises `ProtocolAborted` for a proxy that loads as another than the job names, `DataError` and
    `ModelError` as `load_proxy`, `DataError` for records that cannot be used.
    """
    held = shared_model(job, model_folder)
    if held.loaded_sha256 != job.proxy_loaded_sha256:
        raise ProtocolAborted(
            f"proxy loads as {held.loaded_sha256[:12]}: must be as the job says, "
            f"{job.proxy_loaded_sha256[:12] or 'nothing'}; server and clients need the same files and the "
            "same version of transformers"
        )
    tuned, tokenizer = held.model, held.tokenizer
    private = job.privacy.unit == "record"
    if private:
        check_private(tuned)
        check_fits(
            tuned,
            tokens=max(tokenizer.get_vocab().values()) + 1,
            longest=job.max_tokens,
            pad_id=tokenizer.pad_token_id,
        )
    client = job.clients[index]
    encode = encode_each if private else encode_records
    encoded = encode(
        load_task(client, root=job.data_root, audit=job.audit).train, tokenizer, max_tokens=job.max_tokens
    )
    return LocalClient(
        name=client.name,
        tuned=tuned,
        items=encoded.items,
        truncated=encoded.truncated,
        pad_id=tokenizer.pad_token_id,
        local=job.local,
        seed=job.seed,
        privacy=_privacy(job, client.name, encoded.items) if private else None,
    )


def record_noise(privacy: PrivacyConfig, local: LocalConfig, *, rounds: int, records: int) -> RecordNoise:
    """The noise with which a client of so many records stays within the target over all rounds.

    Raises `ConfigError` for a delta of 1 / records or more, a batch larger than the records, or a target
    that no noise reaches. A client's error goes to the server, so its text does not say how many there are.
    """
    if privacy.target_delta >= 1 / records:
        log.info("privacy.target_delta=%g: must be < 1/%d", privacy.target_delta, records)
        raise ConfigError(
            f"privacy.target_delta={privacy.target_delta:g}: must be < 1 / the client's number of records; "
            "publishing one record at random would pass otherwise"
        )
    if local.batch_size > records:
        log.info("local.batch_size=%d: must be <= %d", local.batch_size, records)
        raise ConfigError(
            f"local.batch_size={local.batch_size}: must be <= the client's number of records, with "
            "privacy.unit=record"
        )
    rate = local.batch_size / records
    return RecordNoise(
        noise_multiplier=noise_multiplier_for(
            target_epsilon=privacy.target_epsilon,
            delta=privacy.target_delta,
            sampling_rate=rate,
            steps=rounds * local.steps,
        ),
        clip_norm=privacy.clip_norm,
        sampling_rate=rate,
    )


def _privacy(job: FederationJob, name: str, items: Sequence[Encoded]) -> Privacy:
    settings = job.privacy
    if settings.ledger is None:
        raise ConfigError("privacy.ledger: must name the folder in which to write what was spent")
    noise = record_noise(settings, job.local, rounds=job.federate.rounds, records=len(items))
    # salted: whoever reads the ledger could else try out whether a record is among them
    salt = own_salt(Path(settings.ledger), name)
    plain = repr([(i.ids, i.response_start) for i in items]).encode()
    records = hashlib.sha256(salt + plain).hexdigest()
    ledger = PrivacyLedger(
        folder=Path(settings.ledger),
        client=name,
        # where another model or other arithmetic would be trained, the same noise must not serve again
        run=f"{job.agreed_sha256().hex()}/{records}/{job.device}/{job.dtype}",
        unit="record",
        delta=settings.target_delta,
        max_epsilon=settings.limit,
    )
    ledger.open()
    return Privacy(noise=noise, ledger=ledger, simulated=settings.randomness == "unsafe_simulated")


def with_proxy(job: FederationJob, folder: Path) -> FederationJob:
    """The job with both hashes of the proxy in `folder`, as a server names it to clients.

    Loads it once a process. Raises as `load_proxy`: a server does not offer what its clients would refuse.
    """
    if job.federate.engine == "in_process":  # its clients train this very copy
        loaded = shared_model(job, folder).loaded_sha256
    else:
        loaded = _loaded_once(
            folder.resolve(), verified_sha256(folder), job.device, job.dtype, job.max_tokens
        )
    return replace(job, proxy_sha256=verified_sha256(folder), proxy_loaded_sha256=loaded)


def shared_model(job: FederationJob, folder: Path) -> ProxyModel:
    """The proxy in `folder` with a fresh adapter, loaded once a process unless its files change.

    Raises as `load_proxy`.
    """
    return _shared(
        folder.resolve(),
        verified_sha256(folder),
        job.adapter,
        job.blocks,
        job.seed,
        job.device,
        job.dtype,
        job.max_tokens,
    )


@lru_cache(maxsize=2)
def _shared(
    folder: Path,
    _files_sha256: str,
    adapter: AdapterConfig,
    blocks: tuple[int, ...] | None,
    seed: int,
    device: str,
    dtype: str,
    max_tokens: int,
) -> ProxyModel:
    loaded = load_proxy(folder, max_tokens=max_tokens, device=device, dtype=dtype)
    return replace(loaded, model=attach(loaded.model, adapter, seed=seed, blocks=blocks))


@lru_cache(maxsize=8)
def _loaded_once(folder: Path, _files_sha256: str, device: str, dtype: str, max_tokens: int) -> str:
    return load_proxy(folder, max_tokens=max_tokens, device=device, dtype=dtype).loaded_sha256
