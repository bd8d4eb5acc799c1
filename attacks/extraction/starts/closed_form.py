"""Closed-form starts: linear maps beside blocks, by least squares, without a step of gradient descent.

Ghosted Layers (arXiv 2605.15491) fits one linear map at the place of missing blocks to the states behind
them. A client does not have these states, so each of its two ways uses what it has:

    linear      without queries: each filler adds what a neighbouring block adds, as a linear function of
                the hidden state. The neighbour (below, above, the mean of both) and a factor are those with
                the lowest next-token loss on public text.
    ghosted     with queries that return all logits: the LLM's last hidden states follow from its logits,
                since the head is a linear map with far more outputs than inputs, and a linear map after the
                last block is fitted to them. It needs no missing block.

Logits are read through the client's own head. If it is not the LLM's, the resulting states are those with
which the client's head comes nearest to the LLM's logits, as intended.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from attacks.extraction.starts.fillers import Gaps, Start, grown
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.passes import windows_a_pass

Neighbour = Literal["below", "above", "mean"]
FACTORS = (-0.5, -0.25, 0.25, 0.5, 1.0)  # factors of a neighbour's change; 0 is a zero filler
RIDGES = (1e-5, 1e-3, 1e-1)  # of the mean variance of a coordinate
MOST_ROWS = 2**14  # tokens that a fit reads; more would change its 10^2 to 10^3 inputs' weights little


class Mapped(nn.Module):
    """A block with an affine map added to its output h: it gives h + W h + c, W and c zero at first.

    It takes the block's place in a model and may be trained. Attributes other than its own are those of the
    block inside.

    Args:
        block: a decoder block, which is not copied.
        width: the hidden size.
    """

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.block = block
        like = next(block.parameters())
        self.map = nn.Linear(width, width, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, hidden: torch.Tensor, *args: Any, **more: Any) -> Any:
        """Return what the block returns, its hidden state float [..., width] mapped."""
        output = self.block(hidden, *args, **more)
        if isinstance(output, tuple):
            return (output[0] + self.map(output[0]), *output[1:])
        return output + self.map(output)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of this module, or of the block inside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set W, [width, width], and c, [width]."""
        self.map.weight.copy_(weight)
        self.map.bias.copy_(bias)


def ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W, float32 [b, a], and c, [b], for which W x + c is nearest to y in mean square.

    Args:
        x, y: rows of inputs [n, a] and of targets [n, b].
        penalty: on squares of W, in units of the mean variance of a coordinate of x; above 0 any n will do.
    """
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    moments = x.T @ x
    unit = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    moments = moments + penalty * moments.diagonal().mean().clamp_min(1e-30) * unit
    weight = torch.linalg.solve(moments, x.T @ (y - mean_y)).T
    return weight.float(), (mean_y - weight @ mean_x).float()


def linearly_filled(
    proxy: nn.Module, gaps: Gaps, texts: torch.Tensor, loss: Callable[[nn.Module], float]
) -> Start:
    """Return the proxy with each gap filled by blocks that add what a neighbour adds, linearly.

    Args:
        proxy: the proxy.
        gaps: where blocks are missing.
        texts: public text to fit on, int64 [n, tokens].
        loss: next-token loss of a model on other public text, by which neighbour and factor are chosen.

    Guarantees: by `loss` the result is no worse than zero fillers, whose factor is 0, where those change
    nothing. No query is made.
    """
    depth = len(blocks_of(proxy))
    changes = [ridge(x, y - x, RIDGES[1]) for x, y in _passed(proxy, texts)]
    model, blocks = grown(proxy, gaps, "zero")
    _wrap(model, blocks)
    fillers = [b for b in blocks_of(model) if isinstance(b, Mapped)]
    above = [gap for gap, missing in enumerate(gaps) for _ in range(missing)]
    kinds: tuple[Neighbour, ...] = ("below", "above", "mean")
    best, chosen = loss(model), (kinds[-1], 0.0)

    def put(kind: Neighbour, factor: float) -> None:
        for filler, gap in zip(fillers, above, strict=True):
            below_it, above_it = changes[max(gap - 1, 0)], changes[min(gap, depth - 1)]
            share = {"below": 1.0, "above": 0.0, "mean": 0.5}[kind]
            parts = zip(below_it, above_it, strict=True)
            weight, bias = (factor * (share * a + (1 - share) * b) for a, b in parts)
            filler.fit(weight, bias)

    for kind, factor in itertools.product(kinds, FACTORS):
        put(kind, factor)
        current = loss(model)
        if current < best:
            best, chosen = current, (kind, factor)
    put(*chosen)
    return model, list(fillers)


def ghosted(
    start: Start,
    texts: torch.Tensor,
    logits: Sequence[torch.Tensor] | Iterator[torch.Tensor],
    loss: Callable[[nn.Module], float],
) -> Start:
    """Return a start with a linear map after its last block, fitted to the LLM's last hidden states.

    Args:
        start: a model and its fillers; it is copied.
        texts: texts that were asked about, int64 [n, tokens].
        logits: the LLM's logits after each of their tokens, in order, float [k, tokens, V] each; no more of
            them are taken than a fit reads.
        loss: loss of a model on answers to other queries, by which the penalty is chosen.

    Guarantees: by `loss` the result is no worse than `start`. Exact, up to rounding, where the LLM is the
    model with a linear map after its last block and there are more tokens than hidden numbers.
    """
    model, fillers = copy.deepcopy(start)
    head = cast(Any, model).get_output_embeddings()
    base = _before_norm(model)
    parts: list[torch.Tensor] = []
    for part in logits:  # asked for as they are needed
        parts.append(_states_of(head, part))
        if sum(map(len, parts)) >= MOST_ROWS:
            break
    llm_states = torch.cat(parts)[:MOST_ROWS]
    states = torch.cat([y for _, y in _passed(model, texts, last=True)])[: len(llm_states)]
    targets = base(states, llm_states)
    at = len(blocks_of(model)) - 1
    mapped = Mapped(blocks_of(model)[at], states.shape[1])
    blocks_of(model)[at] = mapped
    best, chosen = loss(model), (torch.zeros_like(mapped.map.weight), torch.zeros_like(mapped.map.bias))
    for penalty in RIDGES:
        fitted = ridge(states, targets - states, penalty)
        mapped.fit(*fitted)
        current = loss(model)
        if current < best:
            best, chosen = current, fitted
    mapped.fit(*chosen)
    kept = [mapped if f is mapped.block else f for f in fillers]
    return model, kept if any(f is mapped for f in kept) else [*kept, mapped.map]


def _states_of(head: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a head, float32 [tokens, h], with which it comes nearest to logits.

    Log-probabilities are logits less a number a token, so both are centred over the vocabulary.
    """
    table: Any = head.weight
    weight = table.detach().double()
    shifted = logits.flatten(0, -2).to(weight.device).double()
    bias: Any = getattr(head, "bias", None)
    if bias is not None:
        shifted = shifted - bias.detach().double()
    weight = weight - weight.mean(0)
    shifted = shifted - shifted.mean(-1, keepdim=True)
    moments = weight.T @ weight
    unit = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    moments = moments + 1e-9 * moments.diagonal().mean() * unit
    states: torch.Tensor = torch.linalg.solve(moments, weight.T @ shifted.T).T.float()
    return states


def _before_norm(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function (states, normed) -> states whose norm is `normed` and whose scale is as before.

    A norm forgets the scale, so the scale of the model's own state is kept.
    """
    norm = last_norm(model)
    gain: Any = norm.weight
    shift: Any = getattr(norm, "bias", None)
    centres = isinstance(norm, nn.LayerNorm)

    def undo(states: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        around = states.mean(-1, keepdim=True) if centres else torch.zeros_like(states[:, :1])
        scale = (states - around).square().mean(-1, keepdim=True).sqrt()
        plain = normed if shift is None else normed - shift.detach()
        small = gain.detach().abs() < 1e-6
        return around + scale * plain / torch.where(small, torch.ones_like(gain), gain.detach())

    return undo


def last_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the head.

    Raises `ValueError` if there is no module of that kind beside the list of blocks.
    """
    inside = {id(m) for block in blocks_of(model) for m in block.modules()}
    norms: list[nn.Module] = [
        m
        for name, m in model.named_modules()
        if id(m) not in inside
        and name.rpartition(".")[2] in ("norm", "ln_f", "final_layer_norm", "final_layernorm")
        and isinstance(getattr(m, "weight", None), nn.Parameter)
    ]
    if len(norms) != 1:
        raise ValueError(f"{type(model).__name__}: has {len(norms)} norms before the head; must have 1")
    return norms[0]


@torch.inference_mode()
def _passed(
    model: nn.Module, texts: torch.Tensor, *, last: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each block's inputs and outputs, float32 [rows, h]; of the last block alone with `last`."""
    texts = texts[: -(-MOST_ROWS // texts.shape[1])]
    chosen = list(blocks_of(model))[-1:] if last else list(blocks_of(model))
    seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in chosen]

    def keep(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], out: Any) -> None:
            state = out[0] if isinstance(out, tuple) else out
            seen[index][0].append(args[0].float().flatten(0, -2))
            seen[index][1].append(state.float().flatten(0, -2))

        return hook

    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(chosen)]
    try:
        for part in texts.split(windows_a_pass(model, texts)):
            model(input_ids=part.to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(torch.cat(x)[:MOST_ROWS], torch.cat(y)[:MOST_ROWS]) for x, y in seen]


def _wrap(model: nn.Module, fillers: Sequence[nn.Module]) -> None:
    """Put a map beside each filler, in place."""
    width = int(cast(Any, model).get_input_embeddings().weight.shape[1])
    filler_ids = {id(f) for f in fillers}
    blocks = blocks_of(model)
    for at, block in enumerate(blocks):
        if id(block) in filler_ids:
            blocks[at] = Mapped(block, width)
