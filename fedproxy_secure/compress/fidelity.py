"""How close a proxy is to its LLM: KL, CKA per block, perplexity on public text."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.compress.verbatim import verbatim_share
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.passes import windows_a_pass

CKA_TOKENS = 2048  # the states of more would fill the memory: of 16 blocks of width 4096 these are 1 GiB


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Numbers over `tokens` positions of public text.

    `kl_nats`: mean KL(LLM || proxy) of next-token distributions. `cka`: linear CKA in [0, 1] of the
    outputs of each proxy block and its LLM original, in order; () where proxy blocks have no original. Of
    more than `CKA_TOKENS` positions it takes as many whole windows as fit in (at least one), evenly spread.
    `agreement`: share of positions where both predict the same token. Perplexities of both.
    """

    tokens: int
    kl_nats: float
    agreement: float
    cka: tuple[float, ...]
    llm_perplexity: float
    proxy_perplexity: float


def fidelity_record(llm: nn.Module, proxy: Proxy, windows: torch.Tensor) -> dict[str, Any]:
    """Return a proxy's fidelity and the share of its LLM that it holds bit for bit, as plain values.

    The share is that of the proxy as clients would get it now: of one that is not finished, a finished copy
    is measured.

    Comparisons keep them on disk: whoever changes how they are measured must raise `VERSION` in
    `experiments.sweeps.prepared_proxies`.

    Raises `ModelError` for a model so broken that its perplexity is not finite.
    """
    fidelity_numbers = fidelity(llm, proxy.model, proxy.plan, windows)
    perplexities = {"LLM": fidelity_numbers.llm_perplexity, "proxy": fidelity_numbers.proxy_perplexity}
    for model_name, perplexity in perplexities.items():
        if not isfinite(perplexity):
            remedy = "; lower compress.remove_ratio, or compress otherwise" if model_name == "proxy" else ""
            raise ModelError(
                f"the {model_name} is broken: its perplexity on public text is {perplexity}{remedy}"
            )
    held = proxy if proxy.finish is None else replace(proxy, model=deepcopy(proxy.model)).finished()
    share = verbatim_share(llm, held.model, proxy.plan)
    return {"fidelity": asdict(fidelity_numbers), "verbatim_share": share}


@torch.inference_mode()
def fidelity(llm: nn.Module, proxy: nn.Module, plan: BlockPlan | None, windows: torch.Tensor) -> Fidelity:
    """Compare a proxy with its LLM on token windows, int64 [n, tokens] without padding.

    Args:
        plan: which LLM block each proxy block stands for; with None, CKA is not measured.
    """
    kept = () if plan is None else plan.kept
    device = next(llm.parameters()).device
    kl = agree = llm_nll = proxy_nll = 0.0
    alike, chosen, read = [LinearCka() for _ in kept], _spread(*windows.shape), 0
    for batch in windows.split(windows_a_pass(llm, windows)):
        ids = batch.to(device)
        p, p_states = predictions_and_states(llm, ids)
        q, q_states = predictions_and_states(proxy, ids)
        agree += float((p.argmax(-1) == q.argmax(-1)).sum())
        targets = ids[:, 1:, None]
        llm_nll -= float(p[:, :-1].gather(-1, targets).sum())
        proxy_nll -= float(q[:, :-1].gather(-1, targets).sum())
        kl += float(nn.functional.kl_div(q, p, reduction="sum", log_target=True))
        compared = chosen[(chosen >= read) & (chosen < read + len(ids))] - read
        for i, (at, cka) in enumerate(zip(kept, alike, strict=True)):
            cka.add(p_states[at][compared].flatten(0, 1), q_states[i][compared].flatten(0, 1))
        read += len(ids)
    positions, predicted = windows.numel(), windows.shape[0] * (windows.shape[1] - 1)
    return Fidelity(
        tokens=positions,
        kl_nats=max(0.0, kl / positions),
        agreement=agree / positions,
        cka=tuple(cka.value() for cka in alike),
        llm_perplexity=float(torch.tensor(llm_nll / predicted).exp()),
        proxy_perplexity=float(torch.tensor(proxy_nll / predicted).exp()),
    )


class LinearCka:
    """Measure how alike two models' hidden states are, by linear CKA (Kornblith et al. 2019).

    States are added in parts, all of which are kept in memory.

    It is 1 for states that are equal up to rotation and scale. It is computed from products of states of
    the same set, [n, n], so that its cost grows with the hidden size and not with its square.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add states of the two sets, [n, a] and [n, b]."""
        self._parts.append((x, y))

    def value(self) -> float:
        """Return the linear CKA of all states so far, [0, 1]."""
        grams = []
        for parts in zip(*self._parts, strict=True):
            states = torch.cat(parts).double()
            states -= states.mean(0)
            grams.append(states @ states.T)
        norms = grams[0].norm() * grams[1].norm()
        return float((grams[0] * grams[1]).sum() / norms) if norms > 0 else 0.0


def _spread(windows: int, tokens: int) -> torch.Tensor:
    """Return which windows CKA compares, evenly spread over all, int64 ascending.

    They are whole windows because many LLMs have a state at the first position that is a hundred times as
    large as any other. It must have the same weight as in all windows.
    """
    count = min(windows, max(1, CKA_TOKENS // tokens))
    return torch.arange(count) * windows // count
