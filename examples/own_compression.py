"""A compression of your own: drop blocks, then round the weights of those that are left.

Clients then hold few of the LLM's weights as they are. What they learn is still a difference of the same
shape, so it is added to the LLM's own unrounded blocks. To let the command line and the cells of a matrix
find it, name it in the `pyproject.toml` of your package:

    [project.entry-points."fedproxy_secure.compressions"]
    rounded_blocks = "own_compression:ROUNDED_BLOCKS"

Then `compress: {kind: rounded_blocks, options: {bits: 4}}` in any settings, or sweep the bits in a matrix:

    matrix:
      compressions:
        - {kind: drop_blocks}
        - {kind: rounded_blocks, options: {bits: 4}}
"""

from dataclasses import replace

import torch

import fedproxy_secure as fp
from fedproxy_secure.config import CompressConfig
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.models.llm import blocks_of


class RoundedBlocks(fp.Compression):
    """Each row of a linear map becomes multiples of its largest weight over `2 ** (bits - 1) - 1`."""

    name = "rounded_blocks"
    title = "blocks dropped, the others rounded"
    options = ("bits",)

    def check_settings(self, compress: CompressConfig) -> None:
        super().check_settings(compress)
        bits = compress.options.get("bits", 4)
        if bits not in range(2, 9):
            raise ConfigError(f"compress.options.bits={bits}: must be from 2 to 8")

    def build(
        self, llm: torch.nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int
    ) -> fp.Proxy:
        proxy = fp.build_proxy(
            llm,
            remove_ratio=compress.remove_ratio,
            importance=compress.importance,
            windows=windows,
            seed=seed,
        )
        bits = int(compress.options.get("bits", 4))
        with torch.no_grad():
            for weight in blocks_of(proxy.model).parameters():
                if weight.dim() == 2:
                    step = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
                    weight.copy_((weight / step).round() * step)
        return replace(proxy, details={"bits": bits})


ROUNDED_BLOCKS = RoundedBlocks()
