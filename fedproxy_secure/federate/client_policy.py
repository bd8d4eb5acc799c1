"""A client's own policy: the one file that says what a server may ask of it.

    client: {name: clinic, task: classification, source: "{data}/clinic.{split}.jsonl"}
    data_root: /srv/records
    max_tokens: 128
    seeds: [0]
    rounds: 4
    participation: 1.0
    device: auto
    dtype: auto
    checkpointing: false
    adapter: {...}      # adapter, local, fusion, protect, privacy and audit: as in the settings of a run
    ...

`fedproxy-secure provision CONFIG` writes one per client, complete, from the settings of a run.

Guarantees: a job that differs from the policy in anything that the policy states is refused before records
are read, with an error that names the value. A policy that lacks a key is refused, also within a section
unless that key is local to the client, and so is one whose noise the server could compute. The policy
leaves to the server: the proxy and its blocks (both are in what clients sign), which clients take part, and
when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ValidationError

from fedproxy_secure.config import (
    OWN,
    AdapterConfig,
    AuditConfig,
    ClientConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
    Section,
)
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.config.loading import rule_in_words
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.runtime.nearest import nearest
from fedproxy_secure.runtime.untrusted import parse_yaml, yaml_reason
from fedproxy_secure.secagg.provision import load_identity, load_roster

POLICY = ".policy.yaml"  # after the name of a client


class ClientPolicy(Section):
    """The demands of one client on every job; all keys must be there."""

    client: ClientConfig
    data_root: Annotated[str | None, OWN]
    max_tokens: int
    seeds: Annotated[tuple[int, ...], OWN]
    rounds: int
    participation: float
    device: Annotated[Literal["auto", "cpu", "cuda"], OWN]
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "mixed"], OWN]
    checkpointing: Annotated[bool, OWN]
    adapter: AdapterConfig
    local: LocalConfig
    fusion: FusionConfig
    protect: ProtectConfig
    privacy: PrivacyConfig
    audit: Annotated[AuditConfig, OWN]

    def own_job(self, asked: FederationJob) -> FederationJob:
        """Return the server's job with this client's records, folders, device and audit in it.

        Raises `ConfigError` if the job differs from what this policy states.
        """
        if asked.seed not in self.seeds:
            raise ConfigError(f"seed={asked.seed} asked by the server: must be one of {list(self.seeds)}")
        _check_same(
            "", requested={"max_tokens": asked.max_tokens}, expected={"max_tokens": self.max_tokens}
        )
        _check_same(
            "federate.",
            requested={"rounds": asked.federate.rounds, "participation": asked.federate.participation},
            expected={"rounds": self.rounds, "participation": self.participation},
        )
        for section in ("adapter", "local", "fusion", "protect", "privacy"):
            _check_same(
                f"{section}.",
                requested=getattr(asked, section).without(OWN),
                expected=getattr(self, section).without(OWN),
            )
        return asked.changed(
            clients=(self.client,),
            data_root=self.data_root,
            device=self.device,
            dtype=self.dtype,
            checkpointing=self.checkpointing,
            protect=self.protect,
            privacy=self.privacy,
            audit=self.audit,
        )

    def sha256(self) -> bytes:
        """Return the hash of what the client agrees to, 32 bytes.

        Its records, where they lie, its folders and its seeds are not part of it: under the same demands
        and seed a journal grants one run, and moving the records must not make room for another.
        """
        return hashlib.sha256(json.dumps(self.without(OWN), sort_keys=True).encode()).digest()

    def write(self, file: Path) -> None:
        """Write the policy as YAML, atomically."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        write_bytes(file, text.encode())


def check_sound(policy: ClientPolicy, *, one_machine: bool = False) -> None:
    """Raise `ConfigError` for a policy whose sections together cannot give the protection that they name.

    This is checked when the policy is read, before a seed is spent on a run that the client cannot answer.
    `one_machine`: this machine plays server and clients, so noise that follows from the seed is no leak.
    """
    scheme, unit = policy.protect.scheme, policy.privacy.unit
    if policy.privacy.randomness != "os" and not one_machine:
        raise ConfigError(
            f"privacy.randomness={policy.privacy.randomness}: must be os; the server knows the seed, and "
            "with it this noise, so nothing would be private"
        )
    if unit != "none" and policy.privacy.ledger is None:
        raise ConfigError(f"privacy.ledger: must name a folder if privacy.unit={unit}")
    protection = PROTECTIONS.get(scheme, setting="protect.scheme")
    if protection.needs_keys and policy.protect.keys is None:
        raise ConfigError(f"protect.keys: must name a folder if protect.scheme={scheme}")
    protection.check_settings(policy.protect, policy.privacy, policy.fusion, cohort=None)


def policy_for(job: FederationJob, index: int, *, seeds: tuple[int, ...]) -> ClientPolicy:
    """Return the policy by which client `index` agrees to a job, for all of `seeds`."""
    return ClientPolicy(
        client=job.clients[index],
        data_root=job.data_root,
        max_tokens=job.max_tokens,
        seeds=seeds,
        rounds=job.federate.rounds,
        participation=job.federate.participation,
        device=job.device,  # type: ignore[arg-type]  # the job's device comes from the same setting
        dtype=job.dtype,  # type: ignore[arg-type]
        checkpointing=job.checkpointing,
        adapter=job.adapter,
        local=job.local,
        fusion=job.fusion,
        protect=job.protect,
        privacy=job.privacy,
        audit=job.audit,
    )


def load_policy(file: Path, *, one_machine: bool = False) -> ClientPolicy:
    """Read a policy; `one_machine` as for `check_sound`.

    Raises `ConfigError` if it cannot be read, lacks a key, has an unknown one, or is not sound.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    with _one_line(file):
        policy = _policy(raw.decode())  # another encoding is a `ValueError`
    check_sound(policy, one_machine=one_machine)
    return policy


def check_keys(job: FederationJob, *, policies: bool = True) -> None:
    """Check the keys that `protect.keys` names, and the job against the policies beside them.

    The engines of one machine call it; a client elsewhere reads its own keys and policy. A key without a
    policy beside it allows any job. Policies of other folders are not read.

    Args:
        job: with all clients that take part.
        policies: whether the job must be one that each policy beside the keys allows.

    Raises `ConfigError` for keys that are missing, of other clients or readable by others, and for a policy
    that cannot be read or does not allow the job.
    """
    if job.protect.keys is None or not PROTECTIONS.get(job.protect.scheme).needs_keys:
        return
    folder = Path(job.protect.keys)
    if not (folder / ROSTER).is_file():
        raise ConfigError(
            f"protect.keys={folder}: has no {ROSTER}; must be a folder made by `fedproxy-secure provision`"
        )
    roster = load_roster(folder)
    if strangers := [c.name for c in job.clients if c.name not in roster.members]:
        raise ConfigError(
            f"client {strangers[0]}: is not in the roster of protect.keys={folder}; all clients of a "
            "secure sum must be; provision keys for them"
        )
    for client in job.clients:
        load_identity(folder, client.name, roster)
        file = folder / f"{client.name}{POLICY}"
        if policies and file.exists():
            try:
                load_policy(file, one_machine=True).own_job(job)
            except ConfigError as error:
                raise ConfigError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


def policy_of(raw: Mapping[str, Any], *, file: Path) -> ClientPolicy:
    """Return the policy that plain values describe; `file`, where they come from, is named in errors.

    Raises `ConfigError` if a key is missing, unknown or wrong.
    """
    with _one_line(file):
        policy = _complete(raw)
    check_sound(policy)
    return policy


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Turn an error of reading a policy into a `ConfigError` that names the file."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{file}: {_what_is_wrong(error)}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {yaml_reason(error)}") from error


def _what_is_wrong(error: ValidationError) -> str:
    """Return one line: an unknown key before a missing one, because a misspelt key is both."""
    errors = error.errors()
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{key}: {rule_in_words(first)}"
    *section, unknown = first["loc"]
    missing = [
        str(entry["loc"][-1])
        for entry in errors
        if entry["type"] == "missing" and [*entry["loc"][:-1]] == section
    ]
    hint = nearest(str(unknown), missing) if missing else "remove it, or spell it as in the proposal"
    return f"{key}: unknown key; {hint}"


@lru_cache(maxsize=64)  # a policy is read again for every message, and YAML takes 10 ms
def _policy(text: str) -> ClientPolicy:
    return _complete(parse_yaml(text))


def _complete(raw: Any) -> ClientPolicy:
    """Return the policy that plain values describe.

    Settings of a run have defaults, but a policy must state what it agrees to. Raises `ValidationError` for
    wrong values and for a section that lacks a key, unless that key is local to the client.
    """
    policy = ClientPolicy.model_validate(raw)
    for name, field in ClientPolicy.model_fields.items():
        section = getattr(policy, name)
        if OWN in field.metadata or not isinstance(section, Section):
            continue
        fields = type(section).model_fields.items()
        if missing := {key for key, agreed in fields if OWN not in agreed.metadata} - set(raw[name]):
            raise ValidationError.from_exception_data(
                "ClientPolicy", [{"type": "missing", "loc": (name, min(missing)), "input": raw[name]}]
            )
    return policy


def _check_same(prefix: str, *, requested: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in sorted(expected):
        if requested[name] != expected[name]:
            raise ConfigError(
                f"{prefix}{name}={requested[name]!r} asked by the server: must be {expected[name]!r}, as "
                "this client's policy says"
            )
