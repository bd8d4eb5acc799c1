"""Adapters on a model's blocks, and the flat vector that clients send.

Three kinds, all built on PEFT's LoRA layers (`y = W x + (alpha / r) B A x`):

* `lora`: A and B are trained. Averaging A and B separately is not averaging B A.
* `ffa`: A is frozen (the same random A everywhere), B is trained: averages are exact, half the bytes.
* `core`: A and B are frozen, an r x r core R between them is trained (B R A): tens to hundreds of times
  fewer numbers. A and B are the first singular directions of W (LoRA-XS, arXiv 2405.17604), which all
  parties have.

The trained numbers, in the model's own order, are the **adapter vector**, float32 [d].
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import block_list_name, blocks_of
from fedproxy_secure.runtime.files.saving import saving
from fedproxy_secure.runtime.randomness import stream_seed

ADAPTER = "default"  # PEFT's name for the only adapter
OVERSAMPLED = 8  # singular directions computed in addition to those that are used


class CoreMap(nn.Module):
    """The B of a `core` adapter: `x -> B (R x)` with B frozen and the square core R trained.

    PEFT sees a linear map: `weight` is the product B R, [out, r].
    """

    def __init__(self, outer: torch.Tensor) -> None:
        super().__init__()
        rank = outer.shape[1]
        self.core = nn.Linear(rank, rank, bias=False, device=outer.device, dtype=outer.dtype)
        nn.init.zeros_(self.core.weight)
        self.outer = nn.Parameter(outer, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The product B R, [out, r]."""
        return self.outer @ self.core.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return B (R x), [..., out], for x [..., r]."""
        return nn.functional.linear(self.core(x), self.outer)


def attach(
    model: nn.Module, adapter: AdapterConfig, *, seed: int, blocks: tuple[int, ...] | None = None
) -> nn.Module:
    """Put an adapter on linear maps of `blocks` (None: the adapter's own) and freeze everything else.

    The frozen parts follow from `seed` and, for `core`, from the model's weights, so server and clients
    agree on them, up to rounding on machines of different kinds. A new adapter does not change the model's
    outputs.

    Returns the PEFT model, which wraps `model` (changed in place).

    Raises `ModelError` for an adapter that does not fit the model, or weights without singular values.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from fedproxy_secure.models.lora_maps import FusedLoraLinear

    targets = _linear_maps(model, adapter, blocks)
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        fan_in_fan_out=_transposed(model, targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    lora._register_custom_module(
        {nn.Linear: FusedLoraLinear}
    )  # PEFT's documented way, if not yet a public name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "adapter"))
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            tuned = cast(nn.Module, get_peft_model(cast(Any, model), lora))
        for module in tuned.modules():
            if isinstance(module, LoraLayer):
                _set_kind(module, adapter)
    return tuned


def _set_kind(layer: Any, adapter: AdapterConfig) -> None:
    # float32 for any dtype of the model, because small steps vanish in bfloat16
    layer.lora_A[ADAPTER].float()
    layer.lora_B[ADAPTER].float()
    if adapter.kind == "lora":
        return
    a = layer.lora_A[ADAPTER].weight
    a.requires_grad_(False)
    if adapter.kind == "core":
        out_features = layer.lora_B[ADAPTER].weight.shape[0]
        if adapter.rank > min(a.shape[1], out_features):
            raise ModelError(
                f"adapter.rank={adapter.rank}: a core adapter needs at most "
                f"{min(a.shape[1], out_features)}, the smallest side of the linear maps"
            )
        outer, inner = _singular_directions(layer, adapter.rank)
        with torch.no_grad():
            a.copy_(inner)
        layer.lora_B[ADAPTER] = CoreMap(outer.to(a.device))


@torch.no_grad()
def _singular_directions(layer: Any, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first left and right singular vectors of a layer's weight, float32 [out, r] and [r, in].

    They are approximate, by random projections (Halko et al. 2011), and signed so that the largest number
    of each right vector is positive, because libraries of different machines could disagree on the sign.
    """
    weight = layer.get_base_layer().weight.detach().double().cpu()
    if layer.fan_in_fan_out:
        weight = weight.T
    try:
        left, _, right = torch.svd_lowrank(weight, q=min(rank + OVERSAMPLED, *weight.shape), niter=4)
    except RuntimeError as error:
        raise ModelError(
            f"a weight of shape {tuple(weight.shape)}: has no singular values: {error}"
        ) from error
    left, right = left[:, :rank], right[:, :rank]
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    return (left * signs).float().contiguous(), (right * signs).T.float().contiguous()


def _linear_maps(model: nn.Module, adapter: AdapterConfig, blocks: tuple[int, ...] | None) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    prefix, count = block_list_name(model), len(blocks_of(model))
    chosen = blocks or adapter.blocks or tuple(range(count))
    if max(chosen) >= count:
        raise ModelError(f"adapter.blocks={list(chosen)}: must be below {count}, the model's blocks")
    names = [
        f"{prefix}.{i}.{name}"
        for i in chosen
        for name, module in blocks_of(model)[i].named_modules()
        if isinstance(module, nn.Linear | Conv1D) and adapter.modules in ("all", _part_of_block(name))
    ]
    if not names:
        raise ModelError(f"{type(model).__name__}: its blocks hold no linear map to adapt")
    return names


def check_rank(model: nn.Module, adapter: AdapterConfig) -> None:
    """Raise `ModelError` for settings whose adapter fits no linear map of an LLM's blocks.

    A rank above a map's smaller side adds numbers, and no difference that a lower rank could not have.
    """
    targets = _linear_maps(model, adapter, None)
    most = max(min(cast(Any, model.get_submodule(name)).weight.shape) for name in targets)
    if adapter.rank > most:
        raise ModelError(
            f"adapter.rank={adapter.rank}: must be <= {most}, the largest that a linear map of the model's "
            "blocks can have"
        )


def _part_of_block(name: str) -> str:
    """Return the part of a block that a map belongs to, by the names that transformers' models use."""
    return "attention" if "attn" in name or "attention" in name else "mlp"


def _transposed(model: nn.Module, targets: list[str]) -> bool:
    """Return whether the maps store their weights as [in, out], as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.get_submodule(targets[0]), Conv1D)


def trained_parameters(tuned: nn.Module) -> list[nn.Parameter]:
    """Return the adapter's trained parameters, in the model's own order."""
    return [p for p in tuned.parameters() if p.requires_grad]


def adapter_size(tuned: nn.Module) -> int:
    """Return d, the number of numbers that a client trains and sends."""
    return sum(p.numel() for p in trained_parameters(tuned))


def size_without_attaching(
    model: nn.Module, adapter: AdapterConfig, *, blocks: tuple[int, ...] | None = None
) -> int:
    """Return the `adapter_size` that the adapter would have on the model, which stays as it is."""
    targets = _linear_maps(model, adapter, blocks)
    shapes = [cast(Any, model.get_submodule(name)).weight.shape for name in targets]
    if adapter.kind == "core":
        return adapter.rank**2 * len(shapes)
    outputs = 1 if _transposed(model, targets) else 0
    return adapter.rank * sum(shape[outputs] if adapter.kind == "ffa" else sum(shape) for shape in shapes)


def tensor_sizes(tuned: nn.Module) -> list[int]:
    """Return how many numbers of the adapter vector belong to each trained tensor, in order."""
    return [p.numel() for p in trained_parameters(tuned)]


def vector_bytes(tuned: nn.Module) -> int:
    """Return the bytes of the adapter vector as it is sent, float32."""
    return adapter_size(tuned) * torch.float32.itemsize


def get_vector(tuned: nn.Module) -> np.ndarray:
    """Return the adapter vector, a new float32 array [d]."""
    parts = [p.detach().reshape(-1).float().cpu() for p in trained_parameters(tuned)]
    return torch.cat(parts).numpy().copy()


@torch.no_grad()
def set_vector(tuned: nn.Module, vector: np.ndarray) -> None:
    """Write an adapter vector (float32 [d]) into the model; raises `ModelError` for a wrong length."""
    if vector.shape != (adapter_size(tuned),):
        raise ModelError(
            f"adapter vector of shape {vector.shape}: this model takes ({adapter_size(tuned)},)"
        )
    for part, p in zip(split_like(tuned, vector), trained_parameters(tuned), strict=True):
        p.copy_(part)


def split_like(tuned: nn.Module, vector: np.ndarray) -> list[torch.Tensor]:
    """Return the pieces of a flat vector, shaped and placed like the trained parameters."""
    parameters = trained_parameters(tuned)
    flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
    pieces = flat.split([p.numel() for p in parameters])
    return [x.view(p.shape).to(p.device) for x, p in zip(pieces, parameters, strict=True)]


@torch.no_grad()
def block_deltas(tuned: nn.Module) -> dict[tuple[int, str], torch.Tensor]:
    """Return the adapter's difference of each weight: `(block, weight name in the block) -> tensor`.

    Tensors are float32 and shaped like the weight itself (GPT-2's transposed maps included).
    """
    from peft.tuners.lora import LoraLayer

    deltas: dict[tuple[int, str], torch.Tensor] = {}
    for name, module in tuned.named_modules():
        if isinstance(module, LoraLayer):
            match = re.search(rf"{_base_list(tuned)}\.(\d+)\.(.+)$", name)
            assert match is not None  # attach() adapts blocks only
            weight = f"{match[2]}.weight"
            deltas[int(match[1]), weight] = cast(Any, module).get_delta_weight(ADAPTER).float()
    return deltas


def _base_list(tuned: Any) -> str:
    return re.escape(block_list_name(tuned.get_base_model()))


def save_adapter(tuned: Any, folder: Path) -> None:
    """Save as an ordinary PEFT LoRA adapter, loadable by `PeftModel.from_pretrained`.

    A `core` adapter is written with B R as its B, so that PEFT alone can read it.

    Raises `RunFolderError` if it cannot be written.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = {
        name: value
        for name, value in get_peft_model_state_dict(tuned).items()
        if not name.endswith((".core.weight", ".lora_B.outer"))
    }
    for name, module in tuned.named_modules():
        if isinstance(module, CoreMap):
            state[name.removesuffix(f".{ADAPTER}") + ".weight"] = module.weight.detach()
    with saving(folder):
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
        tuned.peft_config[ADAPTER].save_pretrained(folder)
