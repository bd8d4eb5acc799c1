"""`rotated`: blocks whose hidden states are secretly rotated; the plug-back undoes the rotation.

A rotation Q of the residual stream, and a new order of each block's channels, change every weight of a
model but not its predictions (as QuaRot uses it, arXiv 2404.00456). The gains of the norms are first
multiplied into the maps that read the norms' outputs, because gains do not commute with a rotation. With
`W` a map that reads, `g` the gains before it and `V` a map that writes, clients hold `W diag(g) Q` and
`Q^T V`. Both are linear in W and V, so a difference is rotated back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedproxy_secure.compress.base import Compression
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from fedproxy_secure.compress.plan import BlockPlan
    from fedproxy_secure.compress.proxy import Lift, Proxy
    from fedproxy_secure.config import CompressConfig

_GATED = ("mlp.gate_proj", "mlp.up_proj")  # their outputs are channels, which `mlp.down_proj` reads


class Rotated(Compression):
    """`drop_blocks`, then a rotation that follows from the LLM's weights and is never sent.

    Needs an LLM of Llama's architecture. A head tied to the embedding matrix becomes a matrix of its own,
    because the last norm's gains are multiplied into it.

    Guarantees: clients' predictions are the unrotated proxy's, up to rounding; no weight is held verbatim.
    Nothing else is protected: extraction needs no more than the proxy's predictions, and anyone who has a
    public base of the LLM can compute Q from the two embedding matrices (AWM, arXiv 2510.06738). The
    rotation hides weights, not what they do.
    """

    name = "rotated"
    title = "blocks dropped, hidden states rotated"
    own_states = True

    def whole(self, compress: CompressConfig) -> str:
        return "" if compress.remove_ratio else "with its hidden states rotated"

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        """Return the proxy. It is healed unrotated; the rotation comes last."""
        from dataclasses import replace

        import torch

        from fedproxy_secure.compress.defences.maps import NORMS, require_known_blocks
        from fedproxy_secure.compress.drop_blocks import DROP_BLOCKS
        from fedproxy_secure.models.llm import blocks_of

        require_known_blocks(llm, self.name)
        proxy = DROP_BLOCKS.build(llm, compress, windows=windows, seed=seed)
        blocks: list[Any] = list(blocks_of(proxy.model))
        if any(not bool(b.get_submodule(n).weight.all()) for b in blocks for n in NORMS):
            raise ConfigError(
                f"compress.kind={self.name}: a norm of the LLM has a gain of 0; must have none"
            )
        hidden, channels = blocks[0].mlp.down_proj.weight.shape
        rng = owners_stream(llm, seed=seed)
        rotation = random_rotation(hidden, rng)
        orders = [torch.from_numpy(rng.permutation(channels)) for _ in blocks]
        # healing may change gains, so the lifting reads those that were multiplied in
        gains: dict[tuple[int, str], torch.Tensor] = {}
        assert proxy.plan is not None  # `drop_blocks` has one

        def finish(model: nn.Module) -> None:
            gains.update(rotate(model, rotation, orders))

        lifting = _rotating_back(proxy.plan, rotation, orders, gains)
        return replace(proxy, finish=finish, lifting=lifting, own_states=self.own_states)


def owners_stream(llm: nn.Module, *, seed: int) -> np.random.Generator:
    """Return a generator seeded by all of the LLM's weights, so nobody without them can reproduce it.

    Clients know the run's seed, so no secret can come from it. They do not know the LLM's weights, and the
    owner has them again whenever a run is resumed.
    """
    import hashlib

    import numpy as np

    from fedproxy_secure.models.cache import raw_bytes

    digest = hashlib.sha256(f"fedproxy-secure rotation {seed}".encode())
    for parameter in llm.parameters():
        digest.update(raw_bytes(parameter))
    return np.random.default_rng(int.from_bytes(digest.digest(), "big"))


def random_rotation(size: int, rng: np.random.Generator) -> torch.Tensor:
    """Return an orthogonal matrix, float64 [size, size], uniformly random (Haar)."""
    import torch

    q, r = torch.linalg.qr(torch.from_numpy(rng.normal(size=(size, size))))
    rotation: torch.Tensor = q * r.diagonal().sign()
    return rotation


def rotate(
    model: nn.Module, rotation: torch.Tensor, orders: list[torch.Tensor]
) -> dict[tuple[int, str], torch.Tensor]:
    """Rotate a Llama's hidden states and reorder its channels, in place; its predictions do not change.

    Args:
        model: a causal LM of `FAMILIES`.
        rotation: orthogonal, float64 [hidden, hidden].
        orders: for each block a permutation of its channels, int64 [channels].

    Returns:
        the gains that were multiplied into maps, float64 [hidden], by (block, name of its norm).
    """
    import torch

    from fedproxy_secure.compress.defences.maps import NORMS, READERS, WRITERS, norm_before, set_weight
    from fedproxy_secure.models.llm import block_list_name, blocks_of

    causal_lm: Any = model
    q = rotation.to(next(model.parameters()).device)
    with torch.no_grad():
        embedding, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
        last: Any = model.get_submodule(f"{block_list_name(model).rpartition('.')[0]}.norm")
        table, top = embedding.weight.detach().double(), head.weight.detach().double()
        embedding.weight = torch.nn.Parameter((table @ q).to(embedding.weight.dtype), requires_grad=False)
        set_weight(head, (top * last.weight.double()) @ q)
        _set_to_one(last)
        causal_lm.config.tie_word_embeddings = False
        gains: dict[tuple[int, str], torch.Tensor] = {}
        for index, (block, order) in enumerate(zip(blocks_of(model), orders, strict=True)):
            before = {
                name: block.get_parameter(f"{name}.weight").detach().double().clone() for name in NORMS
            }
            gains |= {(index, name): gain for name, gain in before.items()}
            for name in READERS:
                linear: Any = block.get_submodule(name)
                weight, bias = (
                    (linear.weight.detach().double() * before[norm_before(name)]) @ q,
                    linear.bias,
                )
                if name in _GATED:
                    weight, bias = weight[order], None if bias is None else bias[order]
                set_weight(linear, weight, bias)
            for name in WRITERS:
                linear = block.get_submodule(name)
                weight = q.T @ linear.weight.detach().double()
                bias = None if linear.bias is None else q.T @ linear.bias.detach().double()
                set_weight(linear, weight[:, order] if name == WRITERS[1] else weight, bias)
            for name in NORMS:
                _set_to_one(block.get_submodule(name))
    return gains


def _rotating_back(
    plan: BlockPlan,
    rotation: torch.Tensor,
    orders: list[torch.Tensor],
    gains: Mapping[tuple[int, str], torch.Tensor],
) -> Lift:
    """Return the lifting that undoes `rotate` for a difference and then lifts it as the plan does."""
    import torch

    from fedproxy_secure.compress.defences.maps import READERS, WRITERS, norm_before

    def lift(tensors: Mapping[tuple[int, str], torch.Tensor]) -> dict[tuple[int, str], torch.Tensor]:
        unrotated = {}
        for (index, weight_name), delta in tensors.items():
            name, value = weight_name.removesuffix(".weight"), delta.double()
            q, inverse_order = rotation.to(delta.device), orders[index].argsort().to(delta.device)
            if name in READERS:
                value = (value @ q.T) / gains[index, norm_before(name)].to(delta.device)
                value = value[inverse_order] if name in _GATED else value
            else:
                value = q @ value
                value = value[:, inverse_order] if name == WRITERS[1] else value
            unrotated[index, weight_name] = value.to(torch.float32)
        return plan.lift(unrotated)

    return lift


def _set_to_one(norm: Any) -> None:
    import torch

    norm.weight = torch.nn.Parameter(torch.ones_like(norm.weight), requires_grad=False)


ROTATED = Rotated()
