"""Settings of protection: secure aggregation, differential privacy, and what an evaluation records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.config.sections import NO_EFFECT, OWN, Positive, Ratio, Scalar, Section


class ProtectConfig(Section):
    """The protection of updates on their way to the server.

    `scheme` names the protection. `masking`: the server sees sums over at least `threshold` clients and
    no single update. Sums can still reveal records, and `coordinate`, `self` and `encrypted_gram` (below)
    reveal more. `ckks`: the same if the server follows the protocol; a server that colludes with any one
    client can decrypt every update. `unsafe_plaintext`: the server sees every update.

    Under masking, a rule that elects signs (h_ties, ties) works at a `granularity`: besides the sum,
    `block` reveals one variance per block, `coordinate` the counts of signs at each coordinate. With 16
    `bits`, `block` elects wrongly in tensors that move much less than the one that moves most.

    H-TIES derives its `weights` from the cosines between clients' updates. `uniform` uses no cosines.
    `self` uses each client's cosine with the last round's step; a client that was not in the last round has
    the least weight. With `encrypted_gram` (extra `ckks`) all clients learn all cosines, and the server
    learns none only if it follows the protocol.

    Clients enforce two more rules against the server. They take part in no sum over fewer than `min_cohort`
    clients, nor over fewer than is safe. With `refuse_differencing` they refuse a sum whose survivors
    differ by exactly one client from those of an earlier sum, because the two sums together would reveal
    that client's part. As a consequence, if one client drops out, later rounds abort. A simultaneous
    drop-out of two clients is not refused.
    """

    scheme: str = "masking"
    options: Mapping[str, Scalar] = {}  # read by the scheme; this package's own schemes have none
    granularity: Literal["block", "coordinate"] = "block"
    weights: Literal["uniform", "self", "encrypted_gram"] = "uniform"
    bits: Literal[16, 24, 32] = 32
    clip: Annotated[float, Field(gt=0)] | None = None  # None: from the optimiser, then from masked sums
    colluders: Annotated[int, Field(ge=0)] = 0  # clients that may collude with the server without harm
    threshold: Positive | None = None  # None: the least that is safe
    min_cohort: Positive | None = None  # None, or less than the threshold: the threshold
    refuse_differencing: bool = False
    keys: Annotated[str | None, OWN, NO_EFFECT] = (
        None  # folder made by `provision`; None: fresh keys, on engines of one machine
    )

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, scheme: str) -> str:
        PROTECTIONS.check(scheme, setting="protect.scheme")
        return scheme


class PrivacyConfig(Section):
    """Differential privacy of what clients send, for one of two units.

    `record`: each client's training hides any one of its records (DP-SGD); this suits few clients with many
    records. `client`: noise inside the secure sum hides any one client's whole contribution; this suits
    large cohorts and tiny adapters. The noise is set so that all rounds together spend `target_epsilon`.
    A step that would raise the total above `max_epsilon` is refused.
    """

    unit: Literal["none", "record", "client"] = "none"
    target_epsilon: Annotated[float, Field(gt=0)] = 8.0
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[float, Field(gt=0)] | None = None  # None: target_epsilon
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # of a record's gradient, or of a client's update
    mechanism: Literal["skellam", "discrete_gaussian"] = "skellam"  # for the unit `client`
    randomness: Literal["os", "unsafe_simulated"] = "os"  # simulated: the noise follows from the seed
    ledger: Annotated[str | None, OWN, NO_EFFECT] = (
        None  # folder; None: one in the run's folder, on engines of one machine
    )

    @property
    def limit(self) -> float:
        """The epsilon that is never exceeded."""
        return self.target_epsilon if self.max_epsilon is None else self.max_epsilon

    @model_validator(mode="after")
    def _limit_leaves_room(self) -> PrivacyConfig:
        if self.limit < self.target_epsilon:
            raise ValueError(
                f"max_epsilon={self.max_epsilon}: must be >= target_epsilon={self.target_epsilon}"
            )
        return self


class AuditConfig(Section):
    """Recording of a run for evaluation, all off by default, and the key that signs the run.

    `record` writes a transcript of all messages and of every party's state, including the records, beside
    the run. Use it only on synthetic data or with the data subjects' consent. `holdout` is the share of
    each client's training records that is set aside at random. `canaries` is a list of repetition counts:
    for each count, one made-up secret is inserted that many times into each client's training records. The
    set-aside records and the secrets are drawn anew for every seed. `folder` replaces the place in the
    run's folder where transcripts lie; each seed has `seed-N` below it. Attacks read only those in the
    run's own folder. A matrix decides itself whether and where it records, and a comparison records
    nothing. `signing_key` is a file made by `audit keygen`, whose key signs the audit log and the report;
    without it the run makes its own key.
    """

    record: Annotated[bool, NO_EFFECT] = False
    folder: Annotated[str | None, NO_EFFECT] = None  # of transcripts; None: in the run's folder
    holdout: Ratio = 0.0
    canaries: tuple[Positive, ...] = ()
    signing_key: Annotated[str | None, NO_EFFECT] = None
