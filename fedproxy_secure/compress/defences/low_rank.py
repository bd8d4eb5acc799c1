"""`low_rank`: every block stays, and each of its linear maps becomes the product of two thin factors.

The factors are those that change the map's outputs on public text least: with E[x x^T] = S S^T, the first
singular directions of W S, times S^-1 (Wang et al. 2024, SVD-LLM, arXiv 2403.12403, Eq. 5 and 6). A
client's difference is added to the product, and so to the LLM's own map: both have the same shape.
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


class LowRank(Compression):
    """Maps of rank r, whose factors have `1 - remove_ratio` times the numbers of the maps.

    The embedding matrix and the head lose rank too: the option `embeddings` is the share of their numbers
    to remove, by default half of `remove_ratio`, because they tolerate less. With 0 they stay unchanged.

    Guarantees: no linear map in the proxy equals one of the LLM's, and no embedding matrix does unless
    `embeddings` is 0. A client still learns the best approximation of each map at that rank. Files are not
    smaller: a factored map has no format of its own in transformers, so the products are written.
    """

    name = "low_rank"
    title = "linear maps of low rank"
    options = ("embeddings",)

    def check_settings(self, compress: CompressConfig) -> None:
        super().check_settings(compress)
        share = compress.options.get("embeddings", 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ConfigError(f"compress.options.embeddings={share}: must be a number, 0 <= embeddings < 1")

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        """Return the proxy; healing trains the factors, so that the rank stays."""
        from torch.nn.utils import parametrize

        from fedproxy_secure.compress.defences.embeddings import reduce_embeddings
        from fedproxy_secure.compress.defences.maps import make_ordinary
        from fedproxy_secure.compress.defences.moments import is_transposed, linear_maps, second_moments
        from fedproxy_secure.compress.plan import BlockPlan
        from fedproxy_secure.compress.proxy import Proxy
        from fedproxy_secure.models.llm import blocks_of, sharing_copy

        model = sharing_copy(llm).eval()
        blocks, ranks = blocks_of(model), {}
        for index, moments in second_moments(llm, windows):
            for name, linear in linear_maps(blocks[index]).items():
                weight: Any = linear.weight
                transposed = is_transposed(linear)
                matrix = weight.detach().T if transposed else weight.detach()
                rank = rank_for(matrix.shape, compress.remove_ratio)
                left, right = factors(matrix, moments[name], rank)
                ranks[name] = rank
                pair = (right.T, left.T) if transposed else (left, right)
                thin = [x.to(weight.dtype).contiguous() for x in pair]
                parametrize.register_parametrization(linear, "weight", _product(*thin), unsafe=True)
        details: dict[str, Any] = {"ranks": ranks}
        share = float(compress.options.get("embeddings", compress.remove_ratio / 2))
        if share > 0:
            embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
            rank = rank_for(embedding.weight.shape, share)
            details["ranks"] = {**ranks, "embeddings": rank}
            reduce_embeddings(llm, model, windows, rank)
        return Proxy(
            model=model,
            plan=BlockPlan(llm_blocks=len(blocks), kept=tuple(range(len(blocks)))),
            finish=make_ordinary,
            details=details,
        )


def rank_for(shape: tuple[int, ...], remove_ratio: float) -> int:
    """Return the rank at which the factors of an [out, in] map have `1 - remove_ratio` times its numbers.

    >>> rank_for((576, 1536), 0.5)
    209
    """
    out, inputs = shape
    return max(1, int((1 - remove_ratio) * out * inputs / (out + inputs)))


def factors(matrix: torch.Tensor, moment: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return L, float64 [out, rank], and R, [rank, in], with the least error on a map's inputs.

    Args:
        matrix: the map W, [out, in].
        moment: E[x x^T] of its inputs, float64 [in, in], positive definite.
        rank: at most the smaller side of W.

    Guarantees: L R minimises the trace of (W - L R) E[x x^T] (W - L R)^T over all pairs of that rank.
    """
    import torch

    root = torch.linalg.cholesky(moment)
    left, values, right = torch.linalg.svd(matrix.double() @ root, full_matrices=False)
    scale = values[:rank].sqrt()
    # R root = diag(scale) V^T
    thin = torch.linalg.solve_triangular(root.T, right[:rank].T, upper=True).T
    return left[:, :rank] * scale, scale[:, None] * thin


def _product(left: torch.Tensor, right: torch.Tensor) -> nn.Module:
    """Return a parametrisation of a weight as `left @ right`, with these initial factors."""
    from torch import nn

    class Product(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ right

        def right_inverse(self, _weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left, right

    return Product()


LOW_RANK = LowRank()
