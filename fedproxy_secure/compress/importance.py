"""How much each block of the LLM matters, measured on public text by the server alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedproxy_secure.models.llm import blocks_of, with_blocks
from fedproxy_secure.models.passes import windows_a_pass

BATCH_WINDOWS = 16
DIVERGENCE_WINDOWS = 4
TRIALS = 12  # blocks tried at each step, those of least Block Influence


@torch.inference_mode()
def block_influence(model: nn.Module, windows: torch.Tensor) -> list[float]:
    """Return the Block Influence of every block: `BI_i = 1 - E[cos(h_in(i), h_out(i))]` (Eq. 4).

    Args:
        model: causal LM.
        windows: token ids, int64 [n, tokens], public text without padding.

    Returns one value in [0, 2] per block, larger for a block that turns its input more.
    """
    device = next(model.parameters()).device
    blocks = blocks_of(model)
    totals = torch.zeros(len(blocks), dtype=torch.float64)

    def watch(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            h_in = args[0] if args else kwargs["hidden_states"]
            h_out = out[0] if isinstance(out, tuple) else out
            cosine = nn.functional.cosine_similarity(h_in.double(), h_out.double(), dim=-1)
            totals[index] += (1 - cosine).sum().cpu()

        return hook

    handles = [b.register_forward_hook(watch(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        for batch in windows.split(BATCH_WINDOWS):
            model(input_ids=batch.to(device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    influence: list[float] = (totals / windows.numel()).tolist()
    return influence


@torch.inference_mode()
def greedy_divergence(model: nn.Module, windows: torch.Tensor, keep: int) -> list[float]:
    """Drop blocks one at a time, each time the one without which predictions stay closest to the model's.

    Closeness is KL(LLM || remaining blocks) of next-token distributions, over a few windows spread through
    the text. Each step tries only the blocks of least Block Influence, because every trial is a full pass.

    Args:
        model: causal LM.
        windows: token ids, int64 [n, tokens], public text without padding.
        keep: how many blocks stay.

    Returns, per block, an importance: the step at which it was dropped, and the number of blocks for those
    that stay.
    """
    blocks = len(blocks_of(model))
    influence = block_influence(model, windows)
    few = windows[:: max(1, len(windows) // DIVERGENCE_WINDOWS)][:DIVERGENCE_WINDOWS]
    parts = few.to(next(model.parameters()).device).split(windows_a_pass(model, few))
    targets = [_log_probabilities(model, part) for part in parts]

    def divergence(remaining: list[int]) -> float:
        small = with_blocks(model, remaining, share=True)
        return sum(
            float(
                nn.functional.kl_div(_log_probabilities(small, part), p, reduction="sum", log_target=True)
            )
            for part, p in zip(parts, targets, strict=True)
        )

    kept = list(range(blocks))
    importance = [float(blocks)] * blocks
    for step in range(blocks - keep):
        candidates = sorted(kept, key=lambda i: influence[i])[:TRIALS]
        scored = [(divergence([i for i in kept if i != candidate]), candidate) for candidate in candidates]
        dropped = min(scored)[1]
        kept.remove(dropped)
        importance[dropped] = float(step)
    return importance


def _log_probabilities(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().log_softmax(-1)


def gradient_fidelity(model: nn.Module, windows: torch.Tensor, kept: list[int]) -> float:
    """Return the cosine of the LLM's and a proxy's loss gradients on shared blocks, on public text.

    What a client learns on the proxy is a sum of such gradients; the cosine measures how far the LLM itself
    would have moved in the same direction. It is 1 for the whole LLM.

    Args:
        model: the LLM, causal LM; its parameters' `requires_grad` is restored.
        windows: token ids, int64 [n, tokens].
        kept: LLM blocks that the proxy keeps.
    """
    return _cosine(
        _block_gradients(model, windows, kept, range_kept=None),
        _block_gradients(model, windows, kept, range_kept=kept),
    )


def greedy_gradient_fidelity(model: nn.Module, windows: torch.Tensor, keep: int) -> list[float]:
    """Drop blocks one at a time, each time the block whose removal hurts gradient fidelity least.

    Each step tries only the blocks of least Block Influence, because every trial is a pass and a backward
    pass over all windows. The arguments are those of `greedy_divergence`.

    Returns, per block, an importance: the step at which it was dropped, and the number of blocks for those
    that stay.
    """
    blocks = len(blocks_of(model))
    kept = list(range(blocks))
    influence = block_influence(model, windows)
    full = _block_gradients(model, windows, kept, range_kept=None)
    importance = [float(blocks)] * blocks
    for step in range(blocks - keep):
        scored = []
        for candidate in sorted(kept, key=lambda i: influence[i])[:TRIALS]:
            remaining = [i for i in kept if i != candidate]
            part = _block_gradients(model, windows, remaining, range_kept=remaining)
            scored.append((_cosine({k: v for k, v in full.items() if k[0] != candidate}, part), candidate))
        dropped = max(scored)[1]
        kept.remove(dropped)
        importance[dropped] = float(step)
    return importance


def _block_gradients(
    model: nn.Module, windows: torch.Tensor, of: list[int], range_kept: list[int] | None
) -> dict[tuple[int, str], torch.Tensor]:
    """Return gradients of the weight matrices of LLM blocks `of`, float32, running only `range_kept`.

    With None for `range_kept`, all blocks are run.
    """
    from fedproxy_secure.models.llm import block_list_name

    device = next(model.parameters()).device
    name = block_list_name(model)
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    everything = blocks_of(model)
    weights = {(i, n): p for i in of for n, p in everything[i].named_parameters() if p.dim() == 2}
    flags = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in model.parameters():
            p.requires_grad_(False)
        for p in weights.values():
            p.requires_grad_(True)
        if range_kept is not None:
            setattr(owner, last, nn.ModuleList(everything[i] for i in range_kept))
        # bfloat16, as on a GPU, keeps too few bits for sums of many passes
        totals = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in weights.items()}
        for batch in windows.split(windows_a_pass(model, windows)):
            ids = batch.to(device)
            logits = model(input_ids=ids, use_cache=False).logits.float()
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
            )
            for key, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                totals[key] += g
        return totals
    finally:
        setattr(owner, last, everything)
        for p, flag in flags.items():
            p.requires_grad_(flag)


def _cosine(a: dict[tuple[int, str], torch.Tensor], b: dict[tuple[int, str], torch.Tensor]) -> float:
    keys = [k for k in a if k in b]
    dot = sum(float((a[k].double() * b[k].double()).sum()) for k in keys)
    norm_a = sum(float(a[k].double().square().sum()) for k in keys) ** 0.5
    norm_b = sum(float(b[k].double().square().sum()) for k in keys) ** 0.5
    return dot / (norm_a * norm_b) if norm_a and norm_b else 0.0
