"""The starts of an adversary, by name, and the recipes to train them.

If the proxy lacks blocks, the gaps that its kind leaves (`shapes`) are filled. If it has all blocks, but
narrower ones, they are widened. A proxy of low rank, rounded or rotated is a start as it is: it is an
ordinary model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from attacks.extraction.starts.closed_form import linearly_filled
from attacks.extraction.starts.fillers import Gaps, Start, grown, shapes
from attacks.extraction.starts.widened import widened
from attacks.extraction.verbatim import held, read_tensors
from fedproxy_secure.models.llm import blocks_of, load_llm

Trained = Literal["fillers", "all"]
LEAK_NOISES = (0.1, 0.3, 1.0, 3.0, 10.0)  # in standard deviations of a tensor
LEAK_LOSS = 0.5  # nats per token by which the noise makes the LLM worse than the proxy


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A start by its name; `make` builds it, or returns the one that was built before."""

    name: str
    make: Callable[[], Start]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a start is trained: only the fillers or all weights, and the highest learning rate."""

    trained: Trained
    rate: float

    @property
    def name(self) -> str:
        """The recipe in a few words."""
        return f"{'fillers' if self.trained == 'fillers' else 'all weights'} at {self.rate:g}"

    def modules(self, start: Start) -> list[nn.Module]:
        """Return the modules of a start that are trained; [] if it has no fillers to train."""
        model, fillers = start
        return list(fillers) if self.trained == "fillers" else [model]


@dataclass(frozen=True, kw_only=True)
class Won:
    """A model that an adversary submits.

    Args:
        name: how it was made.
        start: the model, and its fillers.
        loss: its loss on held-out texts, in nats per token, by which it was chosen.
    """

    name: str
    start: Start
    loss: float

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.start[0]

    @property
    def offer(self) -> Offer:
        """The model as a start of further training."""
        return Offer(name=self.name, make=lambda: self.start)


FILLERS = Recipe(trained="fillers", rate=3e-3)
ALL = Recipe(trained="all", rate=3e-4)
FEW_RECIPES = (FILLERS, Recipe(trained="all", rate=1e-3), ALL)
MORE_RECIPES = (*FEW_RECIPES, Recipe(trained="fillers", rate=1e-3), Recipe(trained="all", rate=1e-4))


def offers(
    proxy: nn.Module,
    missing: int,
    *,
    sizes: Mapping[str, int],
    texts: torch.Tensor,
    loss: Callable[[nn.Module], float],
    seed: int,
    gaps: Sequence[Gaps] = (),
) -> tuple[Offer, ...]:
    """Return the starts that take no query, first the one that behaves like the proxy.

    Args:
        proxy: the proxy.
        missing: how many blocks it has less than the LLM, >= 0.
        sizes: sizes of the LLM's blocks, by their names in its configuration.
        texts: public text that closed forms are fitted on, int64 [n, tokens].
        loss: next-token loss on other public text.
        seed: seed of random weights.
        gaps: where blocks may be missing; by default `shapes`. Only copies are put into all of them: zero
            fillers are the same in each, and a closed form keeps a model as large as the LLM.
    """
    as_it_is = Offer(name="the proxy", make=lambda: (proxy, []))
    wide = widened(proxy, sizes, seed=seed)
    base, prefix = (proxy, "") if wide is None else (wide, "widened, ")
    if missing == 0:
        return (as_it_is,) if wide is None else (Offer(name="widened", make=lambda: (wide, [])), as_it_is)
    starts: list[Offer] = []
    for number, gaps_here in enumerate(gaps or shapes(len(blocks_of(base)), missing)):
        suffix = f", gaps {'-'.join(map(str, gaps_here))}" if number else ""
        if number == 0:
            fitted = cache(partial(linearly_filled, base, gaps_here, texts, loss))
            starts.append(Offer(name=f"{prefix}zero fillers", make=partial(grown, base, gaps_here, "zero")))
            starts.append(Offer(name=f"{prefix}linear fillers", make=fitted))
            starts.append(Offer(name=f"{prefix}averages", make=partial(grown, base, gaps_here, "average")))
        starts.append(Offer(name=f"{prefix}copies{suffix}", make=partial(grown, base, gaps_here, "copy")))
    return (*starts, as_it_is)


def leaked(proxy: nn.Module, llm: Path, *, loss: Callable[[nn.Module], float], seed: int) -> Offer:
    """Return the start of the positive control: the LLM with noise on the blocks the proxy does not hold.

    Each tensor's noise is the first of `LEAK_NOISES`, times the tensor's own standard deviation, that makes
    the LLM clearly worse than the proxy, or else the last. So the start is farther away than the proxy, and
    nothing of the LLM's shape is missing: only learning goes back from there.

    Args:
        proxy: the proxy.
        llm: folder of the LLM.
        loss: next-token loss of a model on public text.
        seed: seed of the noise.
    """
    original, _ = load_llm(llm, dtype="float32")
    match = held(proxy.state_dict(), read_tensors(llm))
    dropped = [blocks_of(original)[i] for i in range(match.depth) if i not in match.kept]
    weights = [w for block in dropped for w in block.parameters()]
    generator = torch.Generator().manual_seed(seed)
    bar, before = loss(proxy) + LEAK_LOSS, 0.0
    with torch.no_grad():
        noise = [w.std(correction=0) * torch.randn(w.shape, generator=generator) for w in weights]
        for scale in LEAK_NOISES:
            for weight, tensor_noise in zip(weights, noise, strict=True):
                weight.add_(tensor_noise, alpha=scale - before)
            before = scale
            if loss(original) >= bar:
                break
    return Offer(name="the LLM's own blocks, with noise", make=lambda: (original, dropped))
