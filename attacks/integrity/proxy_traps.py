"""Traps: make a proxy in which only a chosen token moves a chosen number of an adapter.

Each trap changes a loaded proxy in place. From the plainest to the best hidden:

    zeros     all other embeddings are zero; each token has its own number of block 0's input
    column    other embeddings keep all numbers but one for each trap, which is zero in them
    faint     as column, but those numbers are small instead of zero: as small as `check_public_text` lets
              pass, and as large for the token as `check_weights` lets pass
    neuron    embeddings are turned a little; a neuron of block 0's MLP fires for its token and gives
              almost nothing for all others, as in Fowl et al. (arXiv 2110.13057) and PEFTLeak (2506.04453)

`column`, `faint` and `zeros` are read from adapters on queries, keys and values, `neuron` from those on the
MLP's last map. `faint` and `neuron` assume that the server knows the client's checks and that the client
uses the bundled public text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from attacks.base import NotApplicable
from fedproxy_secure.models.llm import Tokenizer, blocks_of
from fedproxy_secure.proxy_intake.public_text import LARGER, LEAST_HEARD, bundled_texts
from fedproxy_secure.proxy_intake.weights import leverage

QUIET = 1.5 * LEAST_HEARD  # relative to other numbers; `faint` keeps some distance from the bound
OWN_SHARE = 0.85  # the most leverage of a chosen token; `check_weights` takes up to .9
MOST_OWN, LEAST_OWN = 0.9, 0.01  # how much of a chosen token's length lies in its own direction
COMMON = 0.5  # share of all tokens' lengths in one direction, which `neuron` needs as a threshold
ASLEEP = 30.0  # below minus this a gate lets 3e-12 through, and AdamW's epsilon outweighs the gradient
_FAINT_ATTENTION = 0.02  # scale of block 0's attention, which would blur what its MLP reads
_FIT_STEPS, _FIT_RATE = 300, 0.1


@dataclass(frozen=True, kw_only=True)
class Trap:
    """One way to make a proxy leak.

    Args:
        name: for reports.
        maps: adapted maps of block 0 whose A moves, `inputs` (what queries, keys and values read) or
            `neurons` (what the MLP's last map reads).
        share: the most traps, relative to the width of the embeddings.
        craft: changes a model in place, for tokens whose traps are the first numbers that the maps read.
    """

    name: str
    maps: str
    share: float
    craft: Callable[[nn.Module, Tokenizer, Sequence[int]], None]


@torch.no_grad()
def zeros(model: nn.Module, _tokenizer: Tokenizer, tokens: Sequence[int]) -> None:
    """Make all embeddings zero, but for a unit vector for each chosen token."""
    weight = _embeddings(model)
    weight.zero_()
    for place, token in enumerate(tokens):
        weight[token, place] = 1.0


@torch.no_grad()
def column(model: nn.Module, _tokenizer: Tokenizer, tokens: Sequence[int]) -> None:
    """Make one number of all embeddings zero for each chosen token, and large in that token's."""
    weight = _embeddings(model)
    weight[:, : len(tokens)] = 0.0
    for place, token in enumerate(tokens):
        _turn(weight, [token], _axis(weight, place), MOST_OWN)


@torch.no_grad()
def faint(model: nn.Module, tokenizer: Tokenizer, tokens: Sequence[int]) -> None:
    """Make one number of all embeddings small for each chosen token, and large in that token's."""
    weight = _embeddings(model)
    count = len(tokens)
    text = cast(Any, tokenizer)(bundled_texts()[0], add_special_tokens=False)["input_ids"]
    typical = weight[text].abs().median(dim=0).values
    target = QUIET * torch.quantile(typical[count:], LARGER)
    weight[:, :count] *= (target / typical[:count].clamp_min(1e-12)).clamp_max(1.0)
    before, own_share = weight[list(tokens)].clone(), MOST_OWN
    while own_share > LEAST_OWN:
        weight[list(tokens)] = before
        for place, token in enumerate(tokens):
            _turn(weight, [token], _axis(weight, place), own_share)
        if float(leverage(weight)[list(tokens)].max()) <= OWN_SHARE:
            return
        own_share *= 0.9


def neuron(model: nn.Module, tokenizer: Tokenizer, tokens: Sequence[int]) -> None:
    """Make one neuron of block 0's MLP for each chosen token fire for it and be zero for all others.

    Raises `NotApplicable` for an MLP that is not gated, or if no direction separates a token from others.
    """
    block = cast(Any, blocks_of(model)[0])
    try:
        gate, up, down, out = (
            block.mlp.gate_proj.weight,
            block.mlp.up_proj.weight,
            block.mlp.down_proj.weight,
            block.self_attn.o_proj.weight,
        )
    except AttributeError as error:
        raise NotApplicable("the model's MLP is not gated: no neuron is built for that") from error
    weight = _embeddings(model)
    with torch.no_grad():
        out *= _FAINT_ATTENTION
        count = len(tokens)
        drawn = torch.randn(weight.shape[1], count + 1, generator=_seeded())
        directions = torch.linalg.qr(drawn).Q.T.to(weight)
        # a direction that all tokens but the chosen have in common
        _turn(weight, list(range(len(weight))), directions[count], COMMON)
        for place, token in enumerate(tokens):
            _turn(weight, [token], directions[place], MOST_OWN)
        read = _mlp_inputs(model, max(tokenizer.get_vocab().values()) + 1)
    rows = _separating(read, tokens)
    with torch.no_grad():
        activations = read @ rows.T
        for place, token in enumerate(tokens):
            fires = float(activations[token, place])
            highest = float(torch.cat([activations[:token, place], activations[token + 1 :, place]]).max())
            if highest >= 0 or fires <= 0:
                raise NotApplicable("no direction tells a chosen token from all others")
            factor = ASLEEP / -highest
            gate[place] = factor * rows[place]
            up[place] = rows[place] / (factor * fires * fires)  # so that the neuron gives 1 for its token
            down[:, place] = 0.0


TRAPS = (
    Trap(name="zeros", maps="inputs", share=1.0, craft=zeros),
    Trap(name="column", maps="inputs", share=0.25, craft=column),
    Trap(name="neuron", maps="neurons", share=0.5, craft=neuron),
    Trap(name="faint", maps="inputs", share=0.25, craft=faint),
)


def _embeddings(model: nn.Module) -> torch.Tensor:
    return cast(torch.Tensor, cast(Any, model).get_input_embeddings().weight)


def _axis(weight: torch.Tensor, place: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(place), weight.shape[1]).to(weight)


def _turn(weight: torch.Tensor, tokens: list[int], direction: torch.Tensor, own_share: float) -> None:
    """Turn tokens' embeddings so that `own` of their length lies in a direction of length 1."""
    rows = weight[tokens]
    remainder = nn.functional.normalize(rows - (rows @ direction)[:, None] * direction, dim=1)
    weight[tokens] = rows.norm(dim=1, keepdim=True) * (
        own_share * direction + (1 - own_share**2) ** 0.5 * remainder
    )


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _mlp_inputs(model: nn.Module, vocabulary: int) -> torch.Tensor:
    """Return the input of block 0's MLP for each token alone, float32 [vocabulary, h]."""
    read: list[torch.Tensor] = []

    def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        read.append(args[0][:, 0].float())

    handle = cast(Any, blocks_of(model)[0]).mlp.register_forward_pre_hook(note)
    try:
        for ids in torch.arange(vocabulary).split(1024):
            model(input_ids=ids[:, None], use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return torch.cat(read)


def _separating(read: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Return a direction for each chosen token, [tokens, h]; only its own input projects above 0."""
    chosen = torch.tensor(tokens)
    scale = read.norm(dim=1).median()
    inputs = read / scale
    rows = (4 * nn.functional.normalize(inputs[chosen], dim=1)).requires_grad_()
    is_own = nn.functional.one_hot(chosen, len(inputs)).bool()
    optimizer = torch.optim.Adam([rows], lr=_FIT_RATE)
    for _ in range(_FIT_STEPS):
        optimizer.zero_grad()
        projections = inputs @ rows.T
        wrong = nn.functional.softplus(4 * (projections + 1)).masked_fill(is_own.T, 0).sum(dim=0) / 4
        missed = nn.functional.softplus(4 * (1 - projections[chosen].diagonal()))
        (wrong + 10 * missed + 0.05 * rows.square().sum(dim=1)).sum().backward()
        optimizer.step()
    return cast(torch.Tensor, rows.detach() / scale)
