"""A client's own policy: the one file that says what a server may ask of it.

    client: {name: clinic, task: classification, source: "{data}/clinic.{split}.jsonl"}
    data_root: /srv/records
    max_tokens: 128
    seeds: [0]
    rounds: 4
    participation: 1.0
    device: auto
    dtype: auto
    adapter: {...}      # adapter, local, fusion, protect, privacy and audit: as in the settings of a run
    ...

`fedproxy-secure provision CONFIG` writes one per client, complete, from the settings of a run.

Guarantees: a job that differs from the policy in anything that the policy states is refused, naming the
value, before records are read. What the policy leaves to the server: the proxy and its blocks (both are in
what clients sign), which clients take part, and when. A policy with a key missing is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.config import (
    AdapterConfig,
    AuditConfig,
    ClientConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.untrusted import parse_yaml

# what a client and the server may have differently: where things lie
_OWN_PLACES = {"protect": {"keys"}, "privacy": {"ledger"}}


class ClientPolicy(BaseModel):
    """What one client demands of every job; all keys must be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: ClientConfig
    data_root: str | None
    max_tokens: int
    seeds: tuple[int, ...]
    rounds: int
    participation: float
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    adapter: AdapterConfig
    local: LocalConfig
    fusion: FusionConfig
    protect: ProtectConfig
    privacy: PrivacyConfig
    audit: AuditConfig

    def own_job(self, asked: FederationJob) -> FederationJob:
        """The server's job with this client's records, folders, device and audit in it.

        Raises `ConfigError` if the job differs from what this policy states.
        """
        if asked.seed not in self.seeds:
            raise ConfigError(f"seed={asked.seed} asked by the server: must be one of {list(self.seeds)}")
        _check_same("", asked={"max_tokens": asked.max_tokens}, own={"max_tokens": self.max_tokens})
        _check_same(
            "federate.",
            asked={"rounds": asked.federate.rounds, "participation": asked.federate.participation},
            own={"rounds": self.rounds, "participation": self.participation},
        )
        for section in ("adapter", "local", "fusion", "protect", "privacy"):
            places = _OWN_PLACES.get(section, set())
            _check_same(
                f"{section}.",
                asked=getattr(asked, section).model_dump(exclude=places),
                own=getattr(self, section).model_dump(exclude=places),
            )
        return replace(
            asked,
            clients=(self.client,),
            data_root=self.data_root,
            device=self.device,
            dtype=self.dtype,
            protect=self.protect,
            privacy=self.privacy,
            audit=self.audit,
        )

    def sha256(self) -> bytes:
        """Hash of what was agreed to, 32 bytes: not where things lie, nor which seeds there are."""
        raw = self.model_dump(mode="json", exclude={"data_root", "seeds", "device", "dtype", "audit"})
        for section, places in _OWN_PLACES.items():
            for place in places:
                del raw[section][place]
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).digest()

    def write(self, file: Path) -> None:
        """Write the policy as YAML, whole or not at all."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        write_bytes(file, text.encode())


def check_sound(policy: ClientPolicy) -> None:
    """Raise `ConfigError` for a policy whose parts do not protect together as they say.

    Found when the policy is read, before a seed is spent on a run that could not be answered.
    """
    scheme, unit = policy.protect.scheme, policy.privacy.unit
    if unit != "none" and policy.privacy.ledger is None:
        raise ConfigError(f"privacy.ledger: must name a folder with privacy.unit={unit}")
    if scheme != "unsafe_plaintext" and policy.protect.keys is None:
        raise ConfigError(f"protect.keys: must name a folder with protect.scheme={scheme}")
    if unit == "client" and (scheme != "masking" or policy.fusion.rule not in ("fedavg", "fedadam")):
        raise ConfigError(
            "privacy.unit=client: needs protect.scheme=masking and fusion.rule fedavg or fedadam; all else "
            "would be sent without noise"
        )
    if scheme == "unsafe_plaintext" and (policy.protect.min_cohort or policy.protect.refuse_differencing):
        raise ConfigError(
            f"protect.scheme={scheme}: makes no sums; protect.min_cohort and protect.refuse_differencing "
            "need masking or ckks"
        )


def policy_for(job: FederationJob, index: int, *, seeds: tuple[int, ...]) -> ClientPolicy:
    """The policy of client `index` that agrees to a job, for all of `seeds`."""
    return ClientPolicy(
        client=job.clients[index],
        data_root=job.data_root,
        max_tokens=job.max_tokens,
        seeds=seeds,
        rounds=job.federate.rounds,
        participation=job.federate.participation,
        device=job.device,  # type: ignore[arg-type]  # the job's comes from the same setting
        dtype=job.dtype,  # type: ignore[arg-type]
        adapter=job.adapter,
        local=job.local,
        fusion=job.fusion,
        protect=job.protect,
        privacy=job.privacy,
        audit=job.audit,
    )


def load_policy(file: Path) -> ClientPolicy:
    """Read a policy. Raises `ConfigError` if it cannot be read, lacks a key or has an unknown one."""
    try:
        policy = _policy(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {where}: {first['msg']}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: is not YAML: {str(error).splitlines()[0]}") from error
    check_sound(policy)
    return policy


@lru_cache(maxsize=64)  # a policy is read again for every message, and YAML takes 10 ms
def _policy(text: str) -> ClientPolicy:
    return ClientPolicy.model_validate(parse_yaml(text))


def _check_same(prefix: str, *, asked: dict[str, Any], own: dict[str, Any]) -> None:
    for name in sorted(own):
        if asked[name] != own[name]:
            raise ConfigError(
                f"{prefix}{name}={asked[name]!r} asked by the server: must be {own[name]!r}, as this "
                "client's policy says"
            )
