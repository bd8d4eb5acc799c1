"""How close a proxy is to its LLM: KL, CKA per block, perplexity on public text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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


def fidelity_record(llm: nn.Module, proxy: Proxy, windows: torch.Tensor) -> dict[str, Any]:
    """Return a proxy's fidelity and the share of its LLM that it holds bit for bit, as plain values.

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
    share = verbatim_share(llm, proxy.model, proxy.plan)
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
    alike = [LinearCka() for _ in kept]
    for batch in windows.split(windows_a_pass(llm, windows)):
        ids = batch.to(device)
        p, p_states = predictions_and_states(llm, ids)
        q, q_states = predictions_and_states(proxy, ids)
        agree += float((p.argmax(-1) == q.argmax(-1)).sum())
        targets = ids[:, 1:, None]
        llm_nll -= float(p[:, :-1].gather(-1, targets).sum())
        proxy_nll -= float(q[:, :-1].gather(-1, targets).sum())
        kl += float(nn.functional.kl_div(q, p, reduction="sum", log_target=True))
        for i, (at, cka) in enumerate(zip(kept, alike, strict=True)):
            cka.add(p_states[at].flatten(0, 1), q_states[i].flatten(0, 1))
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
    """Linear CKA of two sets of states that arrive in parts (Kornblith et al. 2019); only sums are kept.

    It is 1 for states that are equal up to rotation and scale. States are shifted by the first part's mean,
    so that subtracting the means at the end loses little precision.
    """

    def __init__(self) -> None:
        self._count = 0
        self._shift: torch.Tensor | None = None
        self._sum: torch.Tensor
        self._products: torch.Tensor  # of both sets' states side by side, [a + b, a + b]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add states of the two sets, [n, a] and [n, b]."""
        states = torch.cat([x, y], dim=1).double()
        if self._shift is None:
            self._width, self._shift = x.shape[1], states.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = states.new_zeros(states.shape[1], states.shape[1])
        states -= self._shift
        self._count += len(states)
        self._sum += states.sum(0)
        self._products.addmm_(states.T, states)

    def value(self) -> float:
        """Return the linear CKA of all states so far, [0, 1]."""
        centred = self._products - torch.outer(self._sum, self._sum) / self._count
        a = self._width
        cross = centred[:a, a:].square().sum()
        norms = centred[:a, :a].norm() * centred[a:, a:].norm()
        return float(cross / norms) if norms > 0 else 0.0
