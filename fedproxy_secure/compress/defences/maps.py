"""The parts of a decoder block that a compression may change, and whether it knows them.

Low rank and rounding treat any linear map alike. Removing channels and heads, or rotating hidden states,
requires knowing what every part of a block does with its input. These functions know the blocks of Llama
and of the families that differ from it in biases alone: Mistral and Qwen2.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.models.llm import blocks_of

FAMILIES = ("Llama", "Mistral", "Qwen2")
READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")  # before the attention, and before the channels
_PARTS = {"self_attn": "Attention", "mlp": "MLP", **dict.fromkeys(NORMS, "RMSNorm")}


def norm_before(reader: str) -> str:
    """Return the name of the norm whose output a map of `READERS` reads."""
    return NORMS[0] if reader.startswith("self_attn") else NORMS[1]


def require_known_blocks(llm: nn.Module, kind: str) -> None:
    """Raise `ConfigError` unless the LLM is of `FAMILIES` and its blocks are those of transformers."""
    family = type(llm).__name__.removesuffix("ForCausalLM")
    is_known = family in FAMILIES and all(_is_known(block, family) for block in blocks_of(llm))
    if not is_known:
        raise ConfigError(
            f"compress.kind={kind}: the LLM is a {type(llm).__name__}; must be one of {', '.join(FAMILIES)}"
        )


def _is_known(block: Any, family: str) -> bool:
    if any(type(getattr(block, name, None)).__name__ != family + part for name, part in _PARTS.items()):
        return False
    maps = [block.get_submodule(name) for name in (*READERS, *WRITERS)]
    return all(isinstance(m, nn.Linear) for m in maps)


def set_weight(linear: Any, weight: Any, bias: Any = None) -> None:
    """Give a linear map new values of any shape, in memory of its own; set a bias only if it has one."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype).contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None and bias is not None:
        linear.bias = nn.Parameter(bias.to(linear.bias.dtype).contiguous(), requires_grad=False)


def make_ordinary(model: nn.Module) -> None:
    """Replace each weight that a parametrisation computes by the computed values, in place."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            computed: Any = module
            for parameter in computed.parametrizations.parameters():
                parameter.requires_grad_(True)  # otherwise torch turns the weight into a buffer
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            computed.weight.requires_grad_(False)
