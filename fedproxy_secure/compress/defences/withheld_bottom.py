"""`withheld_bottom`: the LLM's first blocks stay with the owner; one trained block stands in for them.

Distillation rebuilds missing first blocks with more difficulty than missing last ones (SOLID, arXiv
2410.11182), and a small trained replacement serves clients nearly as well (ScaleOT, as its harmonisers).
The replacement starts as the mean of the blocks that it stands for, which is no copy of any, and learns
from public text, in healing, to pass on the states that they would. What clients learn in it is not lifted,
because it corresponds to no single block of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedproxy_secure.compress.base import Compression
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedproxy_secure.compress.proxy import Proxy
    from fedproxy_secure.config import CompressConfig


class WithheldBottom(Compression):
    """One replacement and the last blocks, together as many as `drop_blocks` keeps at the same ratio.

    Guarantees: no number of the first `n + 1` blocks is in the proxy, where n is the number of blocks that
    the ratio removes. The other blocks, embeddings and head are exact copies until they are healed.
    """

    name = "withheld_bottom"
    title = "first blocks withheld"
    needs_healing = True

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        import torch

        from fedproxy_secure.compress.plan import BlockPlan, blocks_to_remove
        from fedproxy_secure.compress.proxy import Proxy
        from fedproxy_secure.models.llm import blocks_of, with_blocks

        originals = blocks_of(llm)
        withheld = blocks_to_remove(len(originals), compress.remove_ratio) + 1
        if withheld == 1:
            raise ConfigError(
                f"compress.remove_ratio={compress.remove_ratio}: withholds no block of "
                f"{len(originals)}; must be higher"
            )
        kept = tuple(range(withheld - 1, len(originals)))
        model = with_blocks(llm, list(kept), share=True).eval()
        with torch.no_grad():
            for name, parameter in blocks_of(model)[0].named_parameters():
                values = [originals[i].get_parameter(name).float() for i in range(withheld)]
                parameter.data = torch.stack(values).mean(0).to(parameter.dtype)
        plan = BlockPlan(llm_blocks=len(originals), kept=kept)

        def lift(tensors: Mapping[tuple[int, str], torch.Tensor]) -> dict[tuple[int, str], torch.Tensor]:
            return plan.lift({key: delta for key, delta in tensors.items() if key[0] > 0})

        return Proxy(model=model, plan=plan, lifting=lift, details={"withheld": withheld})


WITHHELD_BOTTOM = WithheldBottom()
