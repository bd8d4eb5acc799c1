"""The settings of a run: pydantic models, YAML in, cross-field checks, errors of one line.

Every key that is not known is refused with the nearest known one. Defaults are those that work; a
file needs to name only what differs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.untrusted import parse_yaml, read_bytes

Importance = Literal["block_influence", "gradient_fidelity", "uniform", "random"]
AdapterKind = Literal["lora", "ffa", "core"]
FusionRule = Literal["fedavg", "fedadam", "ties", "h_ties"]
Engine = Literal["in_process", "simulation", "deployment"]
Method = Literal[
    "zero_shot",
    "zero_shot_proxy",
    "centralised_llm",
    "centralised_proxy",
    "local_only",
    "fedavg_llm",
    "fedot",
    "fedot_equal_bytes",
    "fedproxy_fedavg",
    "fedproxy_fedavg_lr",
    "fedproxy_fedadam",
    "fedproxy_fedprox",
    "fedproxy_ties",
    "fedproxy_h_ties",
    "fedproxy_h_ties_pcr",
    "masked_fedavg",
    "masked_fedavg_lr",
    "masked_h_ties_coordinate",
    "masked_h_ties_block",
]
RATIO_FREE_METHODS: tuple[Method, ...] = ("zero_shot", "centralised_llm", "fedavg_llm")
Protection = Literal["unsafe_plaintext", "masking", "masking_dp8", "masking_dp3", "masking_dp1", "ckks"]
Fusion = Literal["fedavg", "h_ties", "h_ties_coordinate"]
Tracking = Literal["tensorboard", "mlflow", "wandb"]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(_Strict):
    """The server's LLM: `demo` (embedded), a local Hugging Face folder, or a hub id."""

    path: str = "demo"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class ClientConfig(_Strict):
    """One client: its name, its task's template, and where its records lie.

    `source` is `demo` (the synthetic world's task called `task`), `hub:NAME[:SUBSET]` (the `datasets`
    library) or a file pattern with `{split}` in it, such as `{data}/tasks/sst2.{split}.jsonl`.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    task: str
    source: str = "demo"
    train_split: str = "train"
    test_split: str = "test"
    train_records: Positive | None = None
    test_records: Positive | None = None


class DataConfig(_Strict):
    """The clients, the public text for calibration and fidelity, and how long a record may be."""

    root: str | None = None  # fills `{data}` in sources
    clients: tuple[ClientConfig, ...] = tuple(
        ClientConfig(name=n, task=n) for n in ("clinic", "bank", "insurer", "council")
    )
    public_text: str = "demo"  # `demo` or a text file; `{data}` is filled in
    max_tokens: Annotated[int, Field(ge=8)] = 128

    @model_validator(mode="after")
    def _names_are_unique(self) -> DataConfig:
        names = [c.name for c in self.clients]
        if not names:
            raise ValueError("clients: must name at least one client")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"clients: name {twice[0]!r} is used twice; names must differ")
        return self


class CompressConfig(_Strict):
    """Stage 1: which blocks the proxy keeps."""

    importance: Importance = "block_influence"
    remove_ratio: Ratio = 0.5
    calibration_sequences: Positive = 64


class AdapterConfig(_Strict):
    """What clients train: `lora` (A and B), `ffa` (B only) or `core` (an r x r core only), and where.

    `blocks` are indices into the model that clients hold, `modules` the maps of a block. Only block 0's
    attention reads embeddings, whose span names tokens; all else reads what precedes a token, too.
    """

    kind: AdapterKind = "lora"
    rank: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # None: all
    modules: Literal["all", "attention", "mlp"] = "all"

    @model_validator(mode="after")
    def _blocks_are_some_and_differ(self) -> AdapterConfig:
        if self.blocks is not None and (not self.blocks or len(set(self.blocks)) != len(self.blocks)):
            raise ValueError(f"blocks={list(self.blocks)}: must be at least one, all different")
        return self


class LocalConfig(_Strict):
    """One client's training in one round. Loss: mean over records of the mean over response tokens."""

    steps: Positive = 40
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class FusionConfig(_Strict):
    """How the server merges updates. Symbols as in the paper: rho, r0, delta, lambda."""

    rule: FusionRule = "h_ties"
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    rho: Annotated[float, Field(ge=1)] = 1.1
    r0: Annotated[float, Field(gt=0, le=1)] = 1.0
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2  # TIES: share of each update kept
    pcr_lambda: Annotated[float, Field(ge=0)] = 0.0
    prox_mu: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _retention_stays_positive(self) -> FusionConfig:
        if self.r0 - self.delta <= 0:
            raise ValueError(f"delta={self.delta}: must be < r0={self.r0}, or a client keeps nothing")
        return self


class ProtectConfig(_Strict):
    """How updates reach the server.

    `masking`: the server learns sums over at least `threshold` clients and nothing of any one of them.
    `ckks`: so does a server that follows the protocol; with any one client it opens every update.
    `unsafe_plaintext`: it sees every update. Under masking a rule that elects signs (h_ties, ties) works at
    a `granularity`: `block` reveals one variance a block besides the sum, `coordinate` counts of signs too.
    H-TIES' `weights` come from cosines between clients: `uniform` does without, `self` takes each client's
    with the last step, `encrypted_gram` (extra `ckks`) has the clients, all of them, learn them all; it
    holds against a server that follows the protocol alone.

    Clients hold the server to two more: no sum of fewer than `min_cohort`; with `refuse_differencing` none
    over survivors that differ by exactly one client from those of an earlier sum: after a drop-out the run
    ends with an abort, since its sums would tell that client's part. Two that drop out at once pass.
    """

    scheme: Literal["masking", "ckks", "unsafe_plaintext"] = "masking"
    granularity: Literal["block", "coordinate"] = "block"
    weights: Literal["uniform", "self", "encrypted_gram"] = "uniform"
    bits: Literal[16, 24, 32] = 32
    clip: Annotated[float, Field(gt=0)] | None = None  # None: from the optimiser, then from masked sums
    colluders: Annotated[int, Field(ge=0)] = 0  # clients that may work with the server without harm
    threshold: Positive | None = None  # None: the least that is safe
    min_cohort: Positive | None = None  # None: the threshold says it
    refuse_differencing: bool = False
    keys: str | None = None  # folder made by `provision`; None: fresh keys, on engines of one machine


class PrivacyConfig(_Strict):
    """Differential privacy of what clients send, for one of two units.

    `record`: each client's training hides any one of its records (DP-SGD); for few clients with many
    records. `client`: noise inside the secure sum hides any one client's whole part in it; for large
    cohorts and tiny adapters. The noise follows from `target_epsilon` over all rounds; no step is taken
    that would bring the total above `max_epsilon`.
    """

    unit: Literal["none", "record", "client"] = "none"
    target_epsilon: Annotated[float, Field(gt=0)] = 8.0
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[float, Field(gt=0)] | None = None  # None: target_epsilon
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # of a record's gradient, or of a client's update
    mechanism: Literal["skellam", "discrete_gaussian"] = "skellam"  # of the unit `client`
    randomness: Literal["os", "unsafe_simulated"] = "os"  # simulated: follows from the seed
    ledger: str | None = None  # folder; None: below the run's, on engines of one machine

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


class FederateConfig(_Strict):
    """Stage 2: rounds, who takes part, on which engine."""

    rounds: Positive = 4
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_clients: Positive = 2
    engine: Engine = "in_process"
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0


class AuditConfig(_Strict):
    """What an evaluation needs of a run, all off by default, and who signs it.

    `record` writes a transcript of all messages and of every party's state, records included, beside the
    run: for evaluation on made-up or consenting data. `holdout` sets a share of each client's training
    records aside by chance, `canaries` puts one made-up secret into each client's training records for
    each number in it, so many times. `signing_key` is a file made by `audit keygen`, which signs the audit
    log and the report; None: a key of the run's own.
    """

    record: bool = False
    folder: str | None = None  # of the transcript; None: below the run's
    holdout: Ratio = 0.0
    canaries: tuple[Positive, ...] = ()
    signing_key: str | None = None


def _all_differ(section: BaseModel, *names: str) -> None:
    """Two cells of one name would be one folder with two writers; ratios are named by 6 digits."""
    for name in names:
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in getattr(section, name)]
        if len(set(values)) != len(values):
            raise ValueError(f"{name}=[{', '.join(values)}]: must all differ")


class CompareConfig(_Strict):
    """What `compare` runs: methods x remove ratios x seeds."""

    methods: tuple[Method, ...] = get_args(Method)
    remove_ratios: tuple[Ratio, ...] = (0.25, 0.5)
    jobs: Annotated[int, Field(ge=0)] = 0  # worker processes; 0: one per core
    server_learning_rate: Annotated[float, Field(gt=0)] = 2.0  # of `fedproxy_fedavg_lr`
    fedadam_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    prox_mu: Annotated[float, Field(ge=0)] = 0.01
    pcr_lambda: Annotated[float, Field(ge=0)] = 1e-5  # the paper's

    @model_validator(mode="after")
    def _nothing_comes_twice(self) -> CompareConfig:
        _all_differ(self, "methods", "remove_ratios")
        return self


class MatrixConfig(_Strict):
    """What `matrix` sweeps: protection x remove ratio x fusion x adapter, for every seed, then attacks.

    A protection `masking_dp8` is masking with record-level differential privacy of epsilon 8. `suite` and
    `views` say which attacks run on every cell (`none`: none does); `suite_seconds` bounds each attack.
    """

    protections: tuple[Protection, ...] = ("unsafe_plaintext", "masking", "masking_dp8")
    remove_ratios: tuple[Ratio, ...] = (0.25, 0.5)
    fusions: tuple[Fusion, ...] = ("fedavg",)
    adapters: tuple[AdapterKind, ...] = ("lora",)
    suite: Literal["none", "smoke", "standard", "full"] = "smoke"
    views: tuple[str, ...] = ("server", "client")
    suite_seconds: Annotated[float, Field(gt=0)] = 120.0
    jobs: Annotated[int, Field(ge=0)] = 0  # worker processes; 0: one per core

    @model_validator(mode="after")
    def _nothing_comes_twice(self) -> MatrixConfig:
        _all_differ(self, "protections", "remove_ratios", "fusions", "adapters", "views")
        return self


class Config(_Strict):
    """All settings of a run."""

    name: str = Field(default="demo", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")  # of the run's folder
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    compress: CompressConfig = CompressConfig()
    adapter: AdapterConfig = AdapterConfig()
    local: LocalConfig = LocalConfig()
    fusion: FusionConfig = FusionConfig()
    federate: FederateConfig = FederateConfig()
    protect: ProtectConfig = ProtectConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    audit: AuditConfig = AuditConfig()
    compare: CompareConfig = CompareConfig()
    matrix: MatrixConfig = MatrixConfig()
    track: tuple[Tracking, ...] = ("tensorboard",)  # where rounds and measures go besides the report

    @model_validator(mode="after")
    def _fields_agree(self) -> Config:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: must be at least one, all different")
        clients = len(self.data.clients)
        if self.federate.min_clients > clients:
            raise ValueError(
                f"federate.min_clients={self.federate.min_clients}: must be <= {clients}, "
                "the number of clients"
            )
        chosen = max(1, round(self.federate.participation * clients))
        if chosen < self.federate.min_clients:
            raise ValueError(
                f"federate.participation={self.federate.participation}: selects {chosen} of "
                f"{clients} clients, fewer than federate.min_clients={self.federate.min_clients}"
            )
        return self

    def with_signing_key(self, file: str | None) -> Config:
        """The same settings with another key; None for those who need not know where one lies."""
        return self.model_copy(update={"audit": self.audit.model_copy(update={"signing_key": file})})

    def check_protection(self) -> None:
        """Raise `ConfigError` if the federation these settings describe cannot be protected as they ask.

        Not part of reading the settings: a client's own file names its own records alone.
        """
        self._check_privacy()
        scheme, least = self.protect.scheme, self.protect.min_cohort
        if scheme == "unsafe_plaintext":
            if least is not None or self.protect.refuse_differencing:
                raise ConfigError(
                    f"protect.scheme={scheme}: makes no sums; protect.min_cohort and "
                    "protect.refuse_differencing need masking or ckks"
                )
            return
        chosen = max(1, round(self.federate.participation * len(self.data.clients)))
        if least is not None and least > chosen:
            raise ConfigError(
                f"protect.min_cohort={least}: must be <= {chosen}, the clients of a round; none would sum"
            )
        if not 3 <= chosen <= 64:
            raise ConfigError(
                f"protect.scheme={scheme}: works for 3 to 64 clients a round, here {chosen}; "
                "fewer can only use unsafe_plaintext"
            )
        if self.protect.weights == "encrypted_gram" and (
            scheme != "masking" or self.fusion.rule != "h_ties"
        ):
            raise ConfigError(
                "protect.weights=encrypted_gram: needs protect.scheme=masking and fusion.rule=h_ties"
            )
        if self.fusion.pcr_lambda > 0 and self.fusion.rule in ("fedavg", "fedadam"):
            raise ConfigError(
                f"fusion.pcr_lambda={self.fusion.pcr_lambda}: with fusion.rule={self.fusion.rule} under "
                f"protect.scheme={scheme} the server learns no conflict; must be 0"
            )
        if (
            scheme == "ckks"
            and self.fusion.rule in ("ties", "h_ties")
            and self.protect.granularity != "block"
        ):
            raise ConfigError(
                f"protect.granularity={self.protect.granularity}: with protect.scheme=ckks must be block"
            )

    def _check_privacy(self) -> None:
        if self.privacy.unit != "client":
            return
        if self.protect.scheme != "masking":
            raise ConfigError(
                f"protect.scheme={self.protect.scheme}: with privacy.unit=client must be masking, where "
                "the noise is added"
            )
        if self.fusion.rule not in ("fedavg", "fedadam"):
            raise ConfigError(
                f"fusion.rule={self.fusion.rule}: with privacy.unit=client must be fedavg or fedadam; what "
                "else a rule reads would need noise of its own"
            )

    def sha256(self) -> str:
        """Hex digest of the resolved settings that can change a result; part of every record of a run."""
        settings = self.model_dump(mode="json")
        del settings["protect"]["keys"], settings["privacy"]["ledger"]  # paths
        # being watched changes nothing
        del settings["audit"]["record"], settings["audit"]["folder"], settings["audit"]["signing_key"]
        del settings["track"]
        # a comparison or a matrix may go on with more or fewer workers
        del settings["compare"]["jobs"], settings["matrix"]["jobs"]
        canonical = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `a.b=value` overrides, check everything.

    Raises `ConfigError` with one line: the key, the value, the rule.
    """
    try:
        raw = parse_yaml(read_bytes(Path(path)).decode()) or {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # another encoding, a date that is none
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold settings as `key: value`, holds {type(raw).__name__}")
    for override in overrides or []:
        _apply(raw, override)
    return parse_config(raw)


def parse_config(raw: dict[str, Any]) -> Config:
    """Check a nested dict of settings. Raises `ConfigError` with one line."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must be key.path=value")
    *parents, last = key.split(".")
    node: Any = raw
    try:
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        parsed = parse_yaml(value)
        if isinstance(node, list):
            node[int(last)] = parsed
        else:
            node[last] = parsed
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise ConfigError(f"--set {override}: there is no such key") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, unknown = first["loc"]
        near = difflib.get_close_matches(str(unknown), _keys_at(parents), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key{hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return (f"{where}: {message}" if where else message) + more
    return f"{where}={first['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _keys_at(path: list[Any]) -> list[str]:
    model: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in get_args(annotation) if isinstance(a, type)]
        model = inner[0] if inner else annotation
    return list(model.model_fields)
