"""`quantised`: the kept blocks, their weights rounded to a few bits.

Blocks are dropped first, as `drop_blocks` drops them; `remove_ratio: 0` keeps all. Then the weights of each
row are rounded in groups, each to multiples of its own step. Healing trains the weights behind the
rounding and passes gradients straight through it (Bengio et al. 2013, arXiv 1308.3432), so that clients
still get rounded weights. They train adapters on top, as QLoRA does (Dettmers et al. 2023, arXiv
2305.14314); what they learn is added to the LLM's own weights, which are not rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedproxy_secure.compress.base import Compression
from fedproxy_secure.config import CompressConfig
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedproxy_secure.compress.proxy import Proxy

BITS = 4  # bits of a weight
GROUP = 64  # how many weights share a step


class Quantised(Compression):
    """Weights of `bits` bits (2 to 8), in blocks and embeddings; norms stay as they are.

    Guarantees: every weight is an integer of `bits` bits times its group's step. Not guaranteed: that the
    LLM's weights stay hidden; each lies within half a step of the client's. Files are not smaller: a proxy
    is written in an ordinary floating-point format, which clients accept.
    """

    name = "quantised"
    title = "weights of a few bits"
    options = ("bits",)

    def check_settings(self, compress: CompressConfig) -> None:
        super().check_settings(compress)
        bits = compress.options.get("bits", BITS)
        if isinstance(bits, bool) or bits not in range(2, 9):
            raise ConfigError(f"compress.options.bits={bits}: must be an integer from 2 to 8")

    def whole(self, compress: CompressConfig) -> str:
        bits = compress.options.get("bits", BITS)
        return "" if compress.remove_ratio else f"with weights of {bits} bits"

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        from dataclasses import replace

        import torch
        from torch.nn.utils import parametrize

        from fedproxy_secure.compress.defences.maps import make_ordinary
        from fedproxy_secure.compress.defences.moments import linear_maps
        from fedproxy_secure.compress.drop_blocks import DROP_BLOCKS
        from fedproxy_secure.models.llm import blocks_of

        bits = int(compress.options.get("bits", BITS))
        proxy = DROP_BLOCKS.build(llm, compress, windows=windows, seed=seed)
        for block in blocks_of(proxy.model):
            for linear in linear_maps(block).values():
                parametrize.register_parametrization(linear, "weight", _rounding(bits))
        with torch.no_grad():
            model: Any = proxy.model
            for outer in (model.get_input_embeddings(), model.get_output_embeddings()):
                outer.weight.data = rounded(outer.weight, bits)  # rounding a tied head twice is harmless
        return replace(proxy, finish=make_ordinary, details={"bits": bits})


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a weight matrix, [rows, columns], rounded to `bits` bits, in its own dtype.

    A step is the largest absolute value of a group over `2 ** (bits - 1) - 1`, so that rounding twice
    changes at most the last digit of a float. The last group of a row may be smaller.
    """
    import torch

    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % GROUP)).reshape(rows, -1, GROUP)
    step = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    values = torch.where(step > 0, (padded / step.clamp_min(1e-30)).round() * step, padded)
    return values.reshape(rows, -1)[:, :columns].to(weight.dtype).contiguous()


def _rounding(bits: int) -> nn.Module:
    """Return a parametrisation that rounds a weight and passes its gradient straight through."""
    from torch import nn

    class Rounding(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + (rounded(weight.detach(), bits) - weight.detach())

    return Rounding()


QUANTISED = Quantised()
