"""The proxy that a process trains: loaded and checked once, lent to one client at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.proxy_intake.files import verified_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.tracing.marks import Marks


@dataclass(frozen=True, kw_only=True)
class SharedProxy:
    """A proxy with a fresh adapter, its tokenizer, and the digest of both as they were loaded."""

    model: LentModel
    tokenizer: Tokenizer
    loaded_sha256: str


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a proxy lies. All copies of one traced proxy are equal, as they load as the same model."""

    folder: Path = field(compare=False)
    alone: Path | None
    marks: Marks | None


def _place(job: FederationJob, folder: Path) -> _Place:
    resolved = folder.resolve()
    return _Place(folder=resolved, alone=resolved if job.marks is None else None, marks=job.marks)


def shared_proxy(job: FederationJob, folder: Path) -> SharedProxy:
    """Return the proxy in `folder` with a fresh adapter, loaded once per process unless its files change.

    Raises what `load_proxy` raises.
    """
    return _shared(
        _place(job, folder),
        verified_sha256(folder, job.marks),
        job.adapter,
        job.blocks,
        job.seed,
        job.device,
        job.dtype,
        job.max_tokens,
    )


def with_proxy(job: FederationJob, folder: Path) -> FederationJob:
    """Return the job with both hashes of the proxy in `folder`, as a server names it to clients.

    Loads the proxy once per process. Raises what `load_proxy` raises: a server does not offer a proxy that
    its clients would refuse.
    """
    if job.federate.engine == "in_process":  # its clients train this very copy
        loaded = shared_proxy(job, folder).loaded_sha256
    else:
        sha256 = verified_sha256(folder, job.marks)
        loaded = _loaded_once(_place(job, folder), sha256, job.device, job.dtype, job.max_tokens)
    return job.changed(proxy_sha256=verified_sha256(folder, job.marks), proxy_loaded_sha256=loaded)


def forget_proxies() -> None:
    """Drop the proxies that this process caches; the next use of one loads it again."""
    _shared.cache_clear()


@lru_cache(maxsize=2)
def _shared(
    place: _Place,
    _files_sha256: str,
    adapter: AdapterConfig,
    blocks: tuple[int, ...] | None,
    seed: int,
    device: str,
    dtype: str,
    max_tokens: int,
) -> SharedProxy:
    loaded = load_proxy(place.folder, max_tokens=max_tokens, device=device, dtype=dtype, marks=place.marks)
    return SharedProxy(
        model=LentModel(attach(loaded.model, adapter, seed=seed, blocks=blocks)),
        tokenizer=loaded.tokenizer,
        loaded_sha256=loaded.loaded_sha256,
    )


@lru_cache(maxsize=8)
def _loaded_once(place: _Place, _files_sha256: str, device: str, dtype: str, max_tokens: int) -> str:
    loaded = load_proxy(place.folder, max_tokens=max_tokens, device=device, dtype=dtype, marks=place.marks)
    return loaded.loaded_sha256
