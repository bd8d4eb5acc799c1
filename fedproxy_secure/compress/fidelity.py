"""How close a proxy is to its LLM: KL, CKA per block, perplexity on public text; what it holds verbatim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.models.llm import blocks_of

BATCH_WINDOWS = 16


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Numbers over `tokens` positions of public text.

    `kl_nats`: mean KL(LLM || proxy) of next-token distributions. `cka`: linear CKA in [0, 1] of the
    outputs of each proxy block and its LLM original, in order; () where proxy blocks have no original.
    `agreement`: share of positions where both predict the same token. Perplexities of both.
    """

    tokens: int
    kl_nats: float
    agreement: float
    cka: tuple[float, ...]
    llm_perplexity: float
    proxy_perplexity: float


def verbatim_share(llm: nn.Module, proxy: nn.Module, plan: BlockPlan | None) -> float:
    """Return the share of the LLM's parameters that the proxy holds bit for bit, [0, 1].

    With a plan, blocks are compared with their originals and everything else by name. Without one, an
    LLM tensor counts as held if any tensor of the proxy equals it. Tied tensors count once.
    """
    tensors = {id(p): p for p in llm.parameters()}
    held = _equal_anywhere(llm, proxy) if plan is None else _equal_in_place(llm, proxy, plan)
    return sum(tensors[i].numel() for i in held) / sum(p.numel() for p in tensors.values())


def _equal_in_place(llm: nn.Module, proxy: nn.Module, plan: BlockPlan) -> set[int]:
    """Return the ids of the LLM's tensors that equal the proxy's at the place the plan gives them."""
    mine = dict(proxy.named_parameters())
    blocks, originals = blocks_of(proxy), blocks_of(llm)
    in_blocks = {id(p) for block in originals for p in block.parameters()}
    pairs = [
        (dict(blocks[i].named_parameters()).get(name), p)
        for i, at in enumerate(plan.kept)
        for name, p in originals[at].named_parameters()
    ]
    pairs += [(mine.get(name), p) for name, p in llm.named_parameters() if id(p) not in in_blocks]
    return {id(p) for q, p in pairs if q is not None and torch.equal(q, p)}


def _equal_anywhere(llm: nn.Module, proxy: nn.Module) -> set[int]:
    """Return the ids of the LLM's tensors that equal some tensor of the proxy."""
    mine: dict[torch.Size, list[nn.Parameter]] = {}
    for q in proxy.parameters():
        mine.setdefault(q.shape, []).append(q)
    return {id(p) for p in llm.parameters() if any(torch.equal(q, p) for q in mine.get(p.shape, ()))}


@torch.inference_mode()
def fidelity(llm: nn.Module, proxy: nn.Module, plan: BlockPlan | None, windows: torch.Tensor) -> Fidelity:
    """Compare a proxy with its LLM on token windows, int64 [n, tokens] without padding.

    Args:
        plan: which LLM block each proxy block stands for; None: CKA is not measured.
    """
    kept = () if plan is None else plan.kept
    device = next(llm.parameters()).device
    kl = agree = llm_nll = proxy_nll = 0.0
    llm_states: list[list[torch.Tensor]] = []
    proxy_states: list[list[torch.Tensor]] = []
    for batch in windows.split(BATCH_WINDOWS):
        ids = batch.to(device)
        p, p_states = _forward(llm, ids)
        q, q_states = _forward(proxy, ids)
        kl += float((p.exp() * (p - q)).sum())
        agree += float((p.argmax(-1) == q.argmax(-1)).sum())
        targets = ids[:, 1:, None]
        llm_nll -= float(p[:, :-1].gather(-1, targets).sum())
        proxy_nll -= float(q[:, :-1].gather(-1, targets).sum())
        llm_states.append([p_states[i] for i in kept])
        proxy_states.append(q_states)
    positions, predicted = windows.numel(), windows.shape[0] * (windows.shape[1] - 1)
    cka = tuple(
        linear_cka(torch.cat([s[i] for s in llm_states]), torch.cat([s[i] for s in proxy_states]))
        for i in range(len(kept))
    )
    return Fidelity(
        tokens=positions,
        kl_nats=max(0.0, kl / positions),
        agreement=agree / positions,
        cka=cka,
        llm_perplexity=float(torch.tensor(llm_nll / predicted).exp()),
        proxy_perplexity=float(torch.tensor(proxy_nll / predicted).exp()),
    )


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the linear CKA of two sets of states, [n, a] and [n, b] (Kornblith et al. 2019).

    It is 1 for states that are equal up to rotation and scale.
    """
    x = (x - x.mean(0)).double()
    y = (y - y.mean(0)).double()
    cross = (x.T @ y).square().sum()
    own = (x.T @ x).square().sum().sqrt() * (y.T @ y).square().sum().sqrt()
    return float(cross / own) if own > 0 else 0.0


def _forward(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return log-probabilities [b, t, V] and every block's output, [b * t, hidden]."""
    states: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: object, out: object) -> None:
        h = out[0] if isinstance(out, tuple) else out
        assert isinstance(h, torch.Tensor)
        states.append(h.float().flatten(0, 1))

    handles = [b.register_forward_hook(keep) for b in blocks_of(model)]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits.float().log_softmax(-1), states
