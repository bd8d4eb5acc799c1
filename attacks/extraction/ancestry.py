"""Does a model descend from an LLM, even if its weights were rotated, permuted and trained further?

After AWM (arXiv 2510.06738): weights of a descendant can be disguised, but only by changes that keep the
model's function. This module undoes, or is invariant to, these disguises:

    rotation of the hidden state, permutation and signs of its numbers
        Both models have the same tokens, so the rotation between them is the one that brings one matrix of
        embeddings nearest to the other (orthogonal Procrustes). AWM solves a linear assignment problem for
        permutation and signs here; a rotation includes both.
    permutation of channels and of heads, rotation of queries and keys
        A map that reads the hidden state, W [out, h], counts as its kernel W^T W [h, h], one that writes it
        as W W^T. Neither changes under orthogonal maps of the other side.
    gains of norms multiplied into the maps behind them
        are multiplied into the maps here, too.
    scale
        Kernels are compared by unbiased CKA (Song et al. 2012; Kornblith et al. 2019), which is about 0 for
        independent ones, and does not see it.
    blocks left out or added
        are matched one to one by a linear assignment problem, so that block plans need not be known.

Guarantees: the score does not change, up to rounding, under these disguises of a Llama-type suspect. Not
guaranteed: that it sees through an invertible map between two linear ones that is not orthogonal, such as
one between values and attention's output; through another tokenizer; or through the training of all weights
until they are far from the LLM's. A threshold is not part of the theory: a score is judged beside those of
models that are known to be strangers. How likely a stranger scores as high rests on an assumption on the
form of their scores: without one, n strangers show no chance below 1 / (n + 1).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student_t
from torch import nn

from attacks.extraction.lessons import newborn
from attacks.extraction.starts.fillers import WRITERS
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import blocks_of, load_llm

FEWEST = 3  # strangers that must be named before anybody is accused
LEAST = 0.5  # far from both in tests: strangers stay below a quarter there, descendants above three
Kernels = dict[str, torch.Tensor]  # name of a map in its block -> kernel, float32 [h, h]
_ATTENTION = ("attn", "attention")


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """How much a suspect's weights are an LLM's, beside models that are known to be strangers.

    Args:
        score: mean unbiased CKA over matched blocks, at most 1; about 0 for independent weights.
        pairs: (suspect's block, LLM's block) as matched, in order.
        strangers: scores of models that are not related to the LLM, at least 2.
        untrained: whether some of these have random weights, because fewer than `FEWEST` were named.
    """

    score: float
    pairs: tuple[tuple[int, int], ...]
    strangers: tuple[float, ...]
    untrained: bool

    @property
    def chance(self) -> float:
        """How likely one more model like the strangers would score as high, *if* their scores are normal.

        By Student's t for one more number of a sample: few strangers give a large chance. If all scores
        agree, their spread is unknown and the chance is 1. With skewed scores the true chance is higher.
        """
        mean, spread = float(np.mean(self.strangers)), float(np.std(self.strangers, ddof=1))
        if spread < 1e-9:
            return 1.0
        distance = (self.score - mean) / (spread * math.sqrt(1 + 1 / len(self.strangers)))
        return float(student_t.sf(distance, len(self.strangers) - 1))

    @property
    def by_rank(self) -> float:
        """The same chance without a form of the scores, if a stranger and the suspect are exchangeable.

        It is at least 1 / (n + 1) for n strangers.
        """
        return (1 + sum(s >= self.score for s in self.strangers)) / (len(self.strangers) + 1)

    def alike(self, error: float) -> bool:
        """Return whether it reaches `LEAST` and is above all strangers, with at most this `chance`."""
        return self.score >= LEAST and self.score > max(self.strangers) and self.chance <= error

    def descends(self, error: float) -> bool:
        """Return whether it is `alike` and all strangers were named.

        Trained models score above random weights, so random weights justify no accusation.
        """
        return self.alike(error) and not self.untrained


def ancestry(
    suspect: Path, llm: Path, *, strangers: tuple[Path, ...] = (), untrained: int = 3, seed: int = 0
) -> Ancestry:
    """Compare a suspect with an LLM by their weights alone: no text is needed, and nothing is trained.

    Args:
        suspect, llm: folders of models with the same tokens.
        strangers: folders of unrelated models of the same tokens; with fewer than `FEWEST`, models of the
            suspect's shape with random weights are added, which trained strangers may score above.
        untrained: how many strangers there are at least if models with random weights are added.
        seed: of random weights.

    Raises `ModelError` if the models have other numbers of tokens, or a stranger is named twice.
    """
    places = [folder.resolve() for folder in strangers]
    _check_distinct(strangers, places)
    a, b = (load_llm(folder, dtype="float32")[0] for folder in (suspect, llm))
    score, pairs = likeness(a, b)
    scores, digests = [], []
    for number, folder in enumerate(strangers, 1):
        model = load_llm(folder, dtype="float32")[0]
        digests.append(_digest(model))
        _check_distinct(strangers[:number], digests)
        scores.append(likeness(model, b)[0])
    added = max(0, max(untrained, FEWEST) - len(scores)) if len(scores) < FEWEST else 0
    # drawn, since an LLM may have begun with the weights of a small seed such as 0
    seeds = np.random.default_rng(seed).integers(2**31, size=added)
    scores += [likeness(newborn(a, int(drawn)), b)[0] for drawn in seeds]
    return Ancestry(score=score, pairs=pairs, strangers=tuple(scores), untrained=added > 0)


def _check_distinct(strangers: Sequence[Path], marks: Sequence[object]) -> None:
    """Raise `ModelError` if two strangers have the same mark: one model's score counts once."""
    first: dict[object, Path] = {}
    for folder, mark in zip(strangers, marks, strict=True):
        if mark in first:
            raise ModelError(f"stranger {folder}: is the same model as {first[mark]}; name each one once")
        first[mark] = folder


def _digest(model: nn.Module) -> str:
    """Return a hash of a model's weights, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def likeness(a: nn.Module, b: nn.Module) -> tuple[float, tuple[tuple[int, int], ...]]:
    """Return the score of two models, symmetric up to rounding, and the blocks that were matched.

    Memory: 4 h^2 bytes for each linear map of both models, with h the hidden size.

    Raises `ModelError` if their embeddings have other numbers of tokens.
    """
    x, y = (cast(Any, m).get_input_embeddings().weight.detach().double() for m in (a, b))
    if len(x) != len(y):
        raise ModelError(f"suspect or stranger: has {len(x)} tokens, the LLM {len(y)}; must have the same")
    turn = turning(x, y)
    suspect_kernels = [_kernels(block, turn) for block in blocks_of(a)]
    llm_kernels = [_kernels(block) for block in blocks_of(b)]
    table = np.array([[_alike(p, q) for q in llm_kernels] for p in suspect_kernels])
    rows, columns = linear_sum_assignment(-table)
    pairs = tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True))
    return float(table[rows, columns].mean()), pairs


def turning(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the Q with orthonormal rows or columns, [a, b], for which x Q is nearest to y.

    Args:
        x, y: embeddings of the same tokens, float64 [V, a] and [V, b]; token means are taken off.
    """
    u, _, vt = torch.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)), full_matrices=False)
    turn: torch.Tensor = u @ vt
    return turn


def centred(kernel: torch.Tensor) -> torch.Tensor:
    """Return a kernel over n >= 4 things without its diagonal, U-centred and of norm 1, float64 [n, n].

    Inner products of U-centred kernels (Szekely and Rizzo 2014) are n (n - 3) times the unbiased estimate
    of HSIC. Of norm 1 they are the unbiased CKA: 1 for a kernel and its multiple, and 0 on average for
    independent ones, which the biased form is not where n is small beside the number of features. 0 where
    a kernel is constant.
    """
    n = len(kernel)
    kernel = kernel - torch.diag(kernel.diagonal())
    rows = kernel.sum(0) / (n - 2)
    kernel = kernel - rows[:, None] - rows[None, :] + kernel.sum() / ((n - 1) * (n - 2))
    kernel = kernel - torch.diag(kernel.diagonal())
    norm = kernel.norm()
    return kernel / norm if norm > 1e-12 else torch.zeros_like(kernel)


def _alike(a: Kernels, b: Kernels) -> float:
    """Return the mean unbiased CKA over the maps that two blocks share; 0 if they share none."""
    shared = [float(a[name].flatten() @ b[name].flatten()) for name in a if name in b]
    return float(np.mean(shared)) if shared else 0.0


def _kernels(block: nn.Module, turn: torch.Tensor | None = None) -> Kernels:
    """Return the centred kernel of each linear map of a block over the hidden numbers it reads or writes.

    Args:
        block: a decoder block.
        turn: what turns its hidden state to the other model's, float64 [h, other h]; None: nothing.
    """
    norms = [m for m in block.children() if _is_norm(m)]
    kernels: Kernels = {}
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            continue
        matrix = weight.detach().double()
        if type(module).__name__ == "Conv1D":  # GPT-2's maps are stored transposed
            matrix = matrix.T
        if name.rpartition(".")[2] in WRITERS:
            matrix = matrix.T
        elif norms:
            norm: Any = norms[0] if any(part in name for part in _ATTENTION) else norms[-1]
            matrix = matrix * norm.weight.detach().double()
        matrix = matrix if turn is None else matrix @ turn
        kernels[name] = centred(matrix.T @ matrix).float()
    return kernels


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm with gains: one vector of weights."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1
