"""Recognise the blocks of a model that can run in one step on packed rows, and run them so.

    with fast_blocks(model, keep):
        logits = model(..., packing=pack, logits_to_keep=keep).logits

It supports blocks of `FAMILIES` as transformers made them, in float32 on the CPU, whose linear maps are
plain or have LoRA; those of a mixed model (`models.mixed`) multiply by their weights in bfloat16. In all
other cases the block's own forward runs: trained base weights, dropout, hooks inside a block, autocast,
function transforms, long rows, a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import block_list_name, blocks_of
from fedproxy_secure.models.mixed import is_mixed
from fedproxy_secure.models.packing.attention import LONGEST_DENSE
from fedproxy_secure.models.packing.llama_block import LinearMap, LlamaBlock, Norm, block_output
from fedproxy_secure.models.packing.packs import Pack
from fedproxy_secure.models.packing.row_attention import RowLayout, row_layout

FAMILIES = ("Llama", "Qwen2")  # their blocks differ in biases alone
_PARTS = {
    "self_attn": "Attention",
    "mlp": "MLP",
    "input_layernorm": "RMSNorm",
    "post_attention_layernorm": "RMSNorm",
}
_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KNOWN = {"packing", "position_ids", "position_embeddings"}  # what a block may be called with
_Layouts = dict[tuple[int, int, int], RowLayout]


@contextmanager
def fast_blocks(model: nn.Module, keep: torch.Tensor | None = None) -> Iterator[None]:
    """Run each block of `model` that is recognised in one step, until the end of `with`.

    Entering is cheap. A model without a recognised block runs as usual. One thread at a time may use it.

    Args:
        model: a causal LM, or a PEFT model of one.
        keep: int64; the tokens of the pack whose logits are needed. The last block then skips work for all
            others, so the model is correct only for `logits_to_keep=keep`. None: all tokens.
    """
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    blocks = _recognised_blocks(base)
    only = None if keep is None or not _may_skip(base, blocks) else keep.unique()
    layouts: _Layouts = {}
    for block in blocks:
        skips = only if block is blocks[-1] else None
        block.__dict__["forward"] = partial(_forward, block, block.forward, layouts, skips)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def _recognised_blocks(base: nn.Module) -> list[Any]:
    try:
        blocks = blocks_of(base)
    except ModelError:  # a model of another kind
        return []
    return [] if _has_any_global_hook() else [block for block in blocks if _recognised(block)]


def _recognised(block: Any) -> bool:
    """Return whether a block is as transformers made it, without hooks on its parts."""
    family = type(block).__name__.removesuffix("DecoderLayer")
    module = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    if family not in FAMILIES or type(block).__module__ != module:
        return False
    if any(type(getattr(block, name)).__name__ != family + kind for name, kind in _PARTS.items()):
        return False
    if type(block.mlp.act_fn).__name__ != "SiLUActivation":
        return False
    if getattr(block.self_attn, "sliding_window", None) is not None:
        return False
    return not any("forward" in m.__dict__ or (m is not block and _watched(m)) for m in block.modules())


def _watched(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)


def _may_skip(base: nn.Module, blocks: list[Any]) -> bool:
    """Return whether no hook can see the last block's output for tokens without logits."""
    if not blocks or type(base).__name__.removesuffix("ForCausalLM") not in FAMILIES:
        return False
    owner = base.get_submodule(block_list_name(base).rpartition(".")[0])
    if any(_watched(m) for m in (blocks[-1], owner, *owner.children())):
        return False
    return blocks[-1] is blocks_of(base)[-1]


def _forward(
    block: Any,
    forward: Callable[..., torch.Tensor],
    layouts: _Layouts,
    only: torch.Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the block's output for its input, both [1, tokens, h]; `forward` is the block's own."""
    maps = _maps(block, args[0]) if _fits(block, args, kwargs) else None
    norms = (_norm(block.input_layernorm), _norm(block.post_attention_layernorm))
    if maps is None or _trained(maps, norms):
        return forward(*args, **kwargs)
    pack, d = kwargs["packing"], block.self_attn.head_dim
    heads, keys = (len(m.weight) // d for m in maps[:2])
    key = (id(pack), heads, keys)
    if key not in layouts:
        layouts[key] = row_layout(pack, heads, keys)
    cos, sin = kwargs["position_embeddings"]
    parts = LlamaBlock(
        maps=maps,
        norms=norms,
        cos=cos[0],
        sin=sin[0],
        layout=layouts[key],
        scaling=block.self_attn.scaling,
        only=only,
    )
    return block_output(args[0].squeeze(0), parts).unsqueeze(0)


def _fits(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a block is called with only float32 tokens of a pack of short rows, on the CPU."""
    pack = kwargs.get("packing")
    if len(args) != 1 or not isinstance(pack, Pack) or pack.shape[1] > LONGEST_DENSE:
        return False
    if any(
        value is not None and value is not False for name, value in kwargs.items() if name not in _KNOWN
    ):
        return False
    if block.training and (block.gradient_checkpointing or block.self_attn.attention_dropout):
        return False
    if torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    hidden = args[0]
    supported = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    return bool(supported and hidden.shape[:2] == pack.ids.shape)


def _maps(block: Any, hidden: torch.Tensor) -> tuple[LinearMap, ...] | None:
    """Return the block's seven maps, or None if one of them is more than a linear map with LoRA."""
    maps, mixed = [], is_mixed(block)
    for name in _MAPS:
        m = getattr(block.self_attn if hasattr(block.self_attn, name) else block.mlp, name)
        parts = (m.weight, m.bias, None, None, 1.0) if type(m) is nn.Linear else _lora_parts(m, hidden)
        if parts is None:
            return None
        weight, bias, a, b, scale = parts
        # rounded in each pass, which is cheap beside the products; a stored copy could be out of date
        half = weight.bfloat16() if mixed else None
        maps.append(LinearMap(weight=weight, bias=bias, a=a, b=b, scale=scale, half=half))
    return tuple(maps)


def _lora_parts(m: nn.Module, hidden: torch.Tensor) -> tuple[Any, ...] | None:
    from fedproxy_secure.models.lora_maps import FusedLoraLinear  # PEFT, which a plain model does without

    return m._parts(hidden) if type(m) is FusedLoraLinear else None


def _norm(module: Any) -> Norm:
    return Norm(weight=module.weight, epsilon=module.variance_epsilon)


def _trained(maps: tuple[LinearMap, ...], norms: tuple[Norm, Norm]) -> bool:
    """Return whether a gradient is needed that is not computed here, or a weight is not float32."""
    frozen = [*(n.weight for n in norms), *(t for m in maps for t in (m.weight, m.bias) if t is not None)]
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in frozen)
    return needs_gradient or any(t.dtype != torch.float32 for t in frozen)
