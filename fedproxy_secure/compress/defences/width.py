"""`width`: every block stays, with fewer channels and fewer heads.

The channels of the feed-forward part, and the groups of heads that share keys and values, are ranked by how
much of the block's output on public text goes through them. The map that reads the kept ones is fitted
anew, by least squares, to its original outputs (as in Optimal Brain Compression, Frantar & Alistarh 2022,
arXiv 2208.11580, for a whole set at once).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedproxy_secure.compress.base import Compression
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedproxy_secure.compress.proxy import Lift, Proxy
    from fedproxy_secure.config import CompressConfig

_HEADS, _KEYS, _CHANNELS = "heads", "keys", "channels"
# map -> the index set of its kept outputs, that of its kept inputs; None: the whole hidden state
_CUT = {
    "self_attn.q_proj": (_HEADS, None),
    "self_attn.k_proj": (_KEYS, None),
    "self_attn.v_proj": (_KEYS, None),
    "self_attn.o_proj": (None, _HEADS),
    "mlp.gate_proj": (_CHANNELS, None),
    "mlp.up_proj": (_CHANNELS, None),
    "mlp.down_proj": (None, _CHANNELS),
}


@dataclass(frozen=True, kw_only=True)
class KeptWidth:
    """What a block keeps: sorted indices, int64, of outputs of queries and keys, and of channels."""

    heads: torch.Tensor
    keys: torch.Tensor
    channels: torch.Tensor


class Width(Compression):
    """Blocks with `1 - remove_ratio` times the numbers, the same number of channels and heads in each.

    Needs an LLM of Llama's architecture. The hidden size stays, and with it embeddings, norms and head.

    Guarantees: the kept rows of five of seven maps of a block are the LLM's own, and count as held
    verbatim. A difference is lifted exactly, to the rows and columns that were kept: cut out of the LLM
    again, it equals the proxy's difference.
    """

    name = "width"
    title = "fewer channels and heads"

    def whole(self, compress: CompressConfig) -> str:
        return "" if compress.remove_ratio else "as it is"

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        from fedproxy_secure.compress.defences.maps import require_known_blocks, set_weight
        from fedproxy_secure.compress.defences.moments import second_moments
        from fedproxy_secure.compress.plan import BlockPlan
        from fedproxy_secure.compress.proxy import Proxy
        from fedproxy_secure.models.llm import blocks_of, sharing_copy

        require_known_blocks(llm, self.name)
        groups, channels = sizes(llm, compress.remove_ratio)
        model = sharing_copy(llm).eval()
        blocks, kept_widths = blocks_of(model), []
        for index, moments in second_moments(llm, windows):
            block: Any = blocks[index]
            chosen = _chosen(block, moments, groups, channels)
            kept_widths.append(chosen)
            for name, (out, inputs) in _CUT.items():
                linear = block.get_submodule(name)
                weight, bias = linear.weight.detach(), linear.bias
                if out is not None:
                    rows = getattr(chosen, out)
                    weight, bias = weight[rows], None if bias is None else bias[rows]
                if inputs is not None:
                    weight = fitted(weight, moments[name], getattr(chosen, inputs))
                set_weight(linear, weight, bias)
            block.mlp.intermediate_size = channels
        config: Any = model.config
        per_group = config.num_attention_heads // config.num_key_value_heads
        config.head_dim = block.self_attn.head_dim
        config.num_attention_heads, config.num_key_value_heads = groups * per_group, groups
        config.intermediate_size = channels
        return Proxy(
            model=model,
            plan=BlockPlan(llm_blocks=len(blocks), kept=tuple(range(len(blocks)))),
            lifting=index_maps(llm, kept_widths),
            details={"key_value_heads": groups, "channels": channels},
        )


def sizes(llm: Any, remove_ratio: float) -> tuple[int, int]:
    """Return how many groups of heads and how many channels each block keeps; both are at least 1.

    The share of groups is the nearest to `1 - remove_ratio`, the larger of two equally near; the number of
    channels makes up for that rounding.

    Raises `ConfigError` where no channel would be left, or where a ratio above 0 would remove nothing.
    """
    from fedproxy_secure.compress.defences.maps import READERS, WRITERS
    from fedproxy_secure.models.llm import blocks_of

    block: Any = blocks_of(llm)[0]
    attention = sum(block.get_submodule(n).weight.numel() for n in (*READERS[:3], WRITERS[0]))
    a_channel = sum(block.get_submodule(n).weight.numel() for n in (*READERS[3:], WRITERS[1]))
    all_groups, all_channels = llm.config.num_key_value_heads, llm.config.intermediate_size
    groups = min(all_groups, max(1, int((1 - remove_ratio) * all_groups + 0.5)))
    budget = (1 - remove_ratio) * (attention + a_channel) - attention * groups / all_groups
    channels = min(all_channels, int(budget / (a_channel / all_channels) + 0.5))
    if channels < 1:
        raise ConfigError(f"compress.remove_ratio={remove_ratio}: leaves no channel; must be lower")
    if remove_ratio > 0 and (groups, channels) == (all_groups, all_channels):
        raise ConfigError(f"compress.remove_ratio={remove_ratio}: removes nothing; must be 0, or higher")
    return groups, channels


def fitted(weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the map of the kept inputs whose outputs come nearest to those of `weight` on all inputs.

    Args:
        weight: [out, in].
        moment: E[x x^T] of the inputs, float64 [in, in], positive definite.
        kept: indices of inputs, int64 [k].

    Returns:
        float64 [out, k]: W C[:, kept] C[kept, kept]^-1, with C the moment; W if all inputs are kept.
    """
    import torch

    if len(kept) == len(moment):
        return weight.double()
    right = moment[:, kept].T @ weight.double().T
    solved: torch.Tensor = torch.linalg.solve(moment[kept][:, kept], right)
    return solved.T


def index_maps(llm: nn.Module, kept: list[KeptWidth]) -> Lift:
    """Return the lifting that puts a proxy's differences at the rows and columns that they came from."""
    from fedproxy_secure.models.llm import blocks_of

    shapes = [
        {name: block.get_parameter(f"{name}.weight").shape for name in _CUT} for block in blocks_of(llm)
    ]

    def lift(tensors: Mapping[tuple[int, str], torch.Tensor]) -> dict[tuple[int, str], torch.Tensor]:
        lifted = {}
        for (index, weight_name), delta in tensors.items():
            name = weight_name.removesuffix(".weight")
            full = delta.new_zeros(shapes[index][name])
            out, inputs = _CUT[name]
            if out is not None:
                full[getattr(kept[index], out).to(delta.device)] = delta
            elif inputs is not None:
                full[:, getattr(kept[index], inputs).to(delta.device)] = delta
            lifted[index, weight_name] = full
        return lifted

    return lift


def _chosen(block: Any, moments: Mapping[str, torch.Tensor], groups: int, channels: int) -> KeptWidth:
    import torch

    attention, size = block.self_attn, block.self_attn.head_dim
    per_group = attention.num_key_value_groups * size  # outputs of queries
    head_energy = _energy(attention.o_proj.weight, moments["self_attn.o_proj"])
    by_group = head_energy.view(-1, per_group).sum(1)
    best = by_group.topk(groups).indices.sort().values
    channel_energy = _energy(block.mlp.down_proj.weight, moments["mlp.down_proj"])

    def spans(width: int) -> torch.Tensor:
        return (best[:, None] * width + torch.arange(width, device=best.device)).flatten()

    return KeptWidth(
        heads=spans(per_group),
        keys=spans(size),
        channels=channel_energy.topk(channels).indices.sort().values,
    )


def _energy(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Return, for each input, the mean square of what it alone adds to the outputs; float64 [in]."""
    energy: torch.Tensor = weight.detach().double().square().sum(0) * moment.diagonal()
    return energy


WIDTH = Width()
