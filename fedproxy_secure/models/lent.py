"""One model that several parts of a process use in turn, each inside a `with` block.

Loading a model takes seconds and memory, so all clients of a process train one copy. Each user chooses the
model's adapter, and the model is restored afterwards.

    with shared.lent(adapter) as tuned:
        train(tuned, ...)
        update = get_vector(tuned) - adapter

Guarantees: inside the block the trained parameters are the chosen adapter. After the block, even if it
failed, they, the buffers and the evaluation mode are restored, and no gradient is left. One thread uses the
model at a time; its own blocks may be nested. Not guaranteed: that frozen weights stay unchanged (this
module does not change them, and a copy would double the memory), or anything for a caller that keeps the
model beyond its block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedproxy_secure.models.adapters import get_vector, set_vector, tensor_sizes, trained_parameters


class LentModel:
    """A model with an adapter that is used only inside `lent` blocks.

    Args:
        tuned: the PEFT model that `attach` returns; from now on only used through `lent`.
    """

    def __init__(self, tuned: nn.Module) -> None:
        self._tuned = tuned
        self._lock = threading.RLock()
        self.sizes: tuple[int, ...] = tuple(tensor_sizes(tuned))

    @contextmanager
    def lent(self, adapter: np.ndarray | None = None) -> Iterator[nn.Module]:
        """Yield the model with this adapter, float32 [d], or unchanged; restore it afterwards.

        Raises `ModelError` for an adapter of another length.
        """
        with self._lock:
            vector, mode = get_vector(self._tuned), self._tuned.training
            buffers = {name: (b, b.detach().clone()) for name, b in self._tuned.named_buffers()}
            try:
                if adapter is not None:
                    set_vector(self._tuned, adapter)
                yield self._tuned
            finally:
                set_vector(self._tuned, vector)
                self._put_back(buffers)
                self._tuned.train(mode)
                for p in trained_parameters(self._tuned):
                    p.grad = None

    @torch.no_grad()
    def _put_back(self, buffers: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Restore each buffer, `(itself, a copy of its values)` by dotted name."""
        for name, (buffer, values) in buffers.items():
            owner, _, leaf = name.rpartition(".")
            module = self._tuned.get_submodule(owner)
            if getattr(module, leaf, None) is not buffer:  # a model may put another tensor in its place
                setattr(module, leaf, buffer)
            if not torch.equal(buffer, values):
                buffer.copy_(values)
