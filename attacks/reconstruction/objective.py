"""The objective of A4: the angle between a sequence's gradient and an update, and the text's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.models.adapters import split_like, trained_parameters

LM_WEIGHT = 0.02


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The public shape of a record: how many tokens it has, and where its response starts."""

    tokens: int
    response_start: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The objective for one update at one adapter, over some of the vocabulary's tokens.

    Args:
        box: the proxy, with that adapter.
        target: the update's negative in the shapes of the trained tensors.
        pool: the tokens that a sequence may have, int64 [m].
        lengths: the sequence's shape.
    """

    box: WhiteBox
    target: tuple[torch.Tensor, ...]
    pool: torch.Tensor
    lengths: Lengths

    @classmethod
    def of(
        cls, box: WhiteBox, adapter: np.ndarray, update: np.ndarray, named: np.ndarray, lengths: Lengths
    ) -> Objective:
        """Set the box's adapter, float32 [d], and return the objective for an update [d].

        `named`: the tokens of the pool, int64 [m].
        """
        box.set(adapter)
        target = tuple(-t for t in split_like(box.tuned, update))
        return cls(box=box, target=target, pool=torch.from_numpy(named), lengths=lengths)

    @property
    def words(self) -> torch.Tensor:
        """The embeddings of the m candidate tokens, float32 [m, h]."""
        model: Any = self.box.tuned
        words: torch.Tensor = model.get_input_embeddings().weight.detach()[self.pool]
        return words

    @property
    def start(self) -> int | None:
        """The token with which the tokenizer begins every text; None if it has none."""
        token: int | None = self.box.tokenizer.bos_token_id
        return token

    def distance(self, embedded: torch.Tensor, ids: torch.Tensor, *, create: bool) -> torch.Tensor:
        """Return 1 - cos(gradient, target) of embeddings [n, h] whose next tokens are `ids` [n].

        `create`: whether the distance can be differentiated in turn.
        """
        model: Any = self.box.tuned
        logits = model(inputs_embeds=embedded[None], use_cache=False).logits[0]
        at = torch.arange(self.lengths.response_start - 1, self.lengths.tokens - 1)
        loss = torch.nn.functional.cross_entropy(logits[at], ids[at + 1])
        grads = torch.autograd.grad(loss, trained_parameters(model), create_graph=create)
        dot = torch.stack([(g * t).sum() for g, t in zip(grads, self.target, strict=True)]).sum()
        gradient_norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        target_norm = torch.stack([t.square().sum() for t in self.target]).sum().sqrt()
        return 1 - dot / (gradient_norm * target_norm + 1e-12)

    def nearest(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return the pool's token nearest in angle to each embedding, int64 [n], after the start token."""
        unit = torch.nn.functional.normalize
        ids = self.pool[(unit(embedded, dim=1) @ unit(self.words, dim=1).T).argmax(dim=1)]
        if self.start is not None:
            ids[0] = self.start
        return ids

    def cost(self, ids: torch.Tensor) -> tuple[float, float]:
        """Return a sequence's distance plus its weighted loss as text, and the cosine of its gradient."""
        model: Any = self.box.tuned
        table = model.get_input_embeddings().weight.detach()
        distance = float(self.distance(table[ids], ids, create=False).detach())
        fluency = self.box.losses([Encoded(ids=tuple(ids.tolist()), response_start=1)])[0]
        return distance + LM_WEIGHT * float(fluency), 1 - distance
