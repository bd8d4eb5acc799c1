"""The adversary's proxy: to run, to differentiate, and to name each number of an update.

    with white_box.opened(view) as box:
        box.set(view.adapters[0])
        losses = box.losses(records)

A process loads a proxy once and lends it to one attack after the other, only by `opened`. After the block
the adapter is what it was before, and the box no longer gives access to the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from attacks.base import Budget, NotApplicable
from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.models.adapters import attach, get_vector, set_vector, trained_parameters
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.models.llm import blocks_of, load_llm, weights_written_ns
from fedproxy_secure.record.view import View

AT_ONCE = 64  # records whose loss is read in one pass
ROWS_A_PASS = 2048


@dataclass(frozen=True, kw_only=True)
class SharedInput:
    """The names and PEFT layers of a block's adapted maps that read the same input; may be empty."""

    names: tuple[str, ...]
    layers: tuple[Any, ...]


class WhiteBox:
    """The proxy with the run's PEFT adapter, and its tokenizer; `opened` lends one for a view."""

    def __init__(self, tuned: nn.Module, tokenizer: Any) -> None:
        self._tuned: nn.Module | None = tuned
        self.tokenizer = tokenizer
        self.names = [n for n, p in tuned.named_parameters() if p.requires_grad]
        self.shapes = [tuple(p.shape) for p in trained_parameters(tuned)]
        self.vocabulary = int(tuned.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def tuned(self) -> nn.Module:
        """The model. Raises `RuntimeError` after the block that it was lent for."""
        if self._tuned is None:
            raise RuntimeError("white box: its `with` block has ended; open it again")
        return self._tuned

    def close(self) -> None:
        """Give the model back; the box cannot be used any more."""
        self._tuned = None
        self.__dict__.pop("groups", None)  # they hold the model's layers

    def set(self, adapter: np.ndarray) -> None:
        """Set the adapter vector, float32 [d]."""
        set_vector(self.tuned, adapter)

    def pieces(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return a flat vector split into tensors by parameter name, float64."""
        tensors, at = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = int(np.prod(shape))
            tensors[name] = vector[at : at + size].reshape(shape).astype(np.float64)
            at += size
        return tensors

    def gradient(self, items: Sequence[Encoded]) -> np.ndarray:
        """Return the gradient of the clients' loss on these records at the current adapter, float32 [d]."""
        batch = training_batch(items, pad_id=self.tokenizer.pad_token_id, device="cpu")
        parameters = trained_parameters(self.tuned)
        grads = torch.autograd.grad(batch_loss(self.tuned, batch), parameters)
        return torch.cat([g.reshape(-1).float() for g in grads]).numpy()

    def losses(self, items: Sequence[Encoded]) -> np.ndarray:
        """Return each record's loss in nats per response token, float64 [n]."""
        return np.array([float(tokens.mean()) for tokens in self.token_losses(items)])

    @torch.inference_mode()
    def token_losses(self, items: Sequence[Encoded]) -> list[np.ndarray]:
        """Return the loss of each response token, nats, as one float64 [tokens] array for each record."""
        losses = []
        for at in range(0, len(items), AT_ONCE):
            pad_id = self.tokenizer.pad_token_id
            batch = training_batch(items[at : at + AT_ONCE], pad_id=pad_id, device="cpu")
            positions = batch.response.any(dim=0).nonzero().flatten()
            inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
            logits = self.tuned(**inputs, logits_to_keep=positions).logits
            for row, ids, is_response in zip(
                logits, batch.ids, batch.response[:, positions] > 0, strict=True
            ):
                targets = ids[positions + 1][is_response]
                nll = nn.functional.cross_entropy(row[is_response].double(), targets, reduction="none")
                losses.append(nll.numpy())
        return losses

    def shared_input(self, block: int) -> SharedInput:
        """Return the adapted maps of a block that read the same input as the first of them.

        These are queries, keys and values, or the first maps of the MLP where attention is not adapted.
        Raises `NotApplicable` if the block has none.
        """
        if not self.groups[block].names:
            raise NotApplicable(f"block {block} of the proxy is not adapted")
        return self.groups[block]

    @cached_property
    def adapted(self) -> tuple[int, ...]:
        """The blocks that have adapted maps; there is at least one."""
        return tuple(i for i, group in enumerate(self.groups) if group.names)

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether the first adapted block's `shared_input` depends only on the token at its own position.

        This is so for queries, keys and values of block 0, which read embeddings.
        """
        pair = self.block_inputs(torch.tensor([[3, 2], [4, 2]]), self.adapted[0])
        return torch.equal(pair[0, 1], pair[1, 1])

    @property
    def config(self) -> Any:
        """The model's Hugging Face config."""
        return self._base().config

    @cached_property
    def groups(self) -> list[SharedInput]:
        """The `shared_input` of every block."""
        return self._find_groups()

    @torch.inference_mode()
    def _find_groups(self) -> list[SharedInput]:
        from peft.tuners.lora import LoraLayer

        # inputs are kept until all are compared: a freed tensor's memory may be taken by the next
        seen: dict[int, list[tuple[str, Any, torch.Tensor]]] = {}
        handles = []
        base = self._base()
        for index, block in enumerate(blocks_of(base)):
            for name, module in block.named_modules():
                if isinstance(module, LoraLayer):

                    def note(m: Any, args: Any, _i: int = index, _n: str = name) -> None:
                        seen.setdefault(_i, []).append((_n, m, args[0]))

                    handles.append(cast(nn.Module, module).register_forward_pre_hook(note))
        try:
            base(input_ids=torch.zeros((1, 2), dtype=torch.int64), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        groups = []
        for index in range(len(blocks_of(base))):
            calls = seen.get(index, [])
            first = [(n, m) for n, m, read in calls if read.data_ptr() == calls[0][2].data_ptr()]
            groups.append(SharedInput(names=tuple(n for n, _ in first), layers=tuple(m for _, m in first)))
        return groups

    def _base(self) -> Any:
        return self.tuned.get_base_model()  # type: ignore[operator]

    @torch.inference_mode()
    def block_inputs(self, ids: torch.Tensor, block: int, *, cache: Any = None) -> torch.Tensor:
        """Return what the maps of `shared_input(block)` read, float32 [n, tokens, k].

        Token ids are [n, tokens]. Blocks from `block` on are not run. With a `cache` (of transformers) the
        ids follow the tokens in it.
        """
        inputs: list[torch.Tensor] = []

        def stop(_module: Any, args: Any) -> None:
            inputs.append(args[0].float())
            raise _Reached

        handle = self.shared_input(block).layers[0].register_forward_pre_hook(stop)
        try:
            self._base()(input_ids=ids, use_cache=cache is not None, past_key_values=cache)
        except _Reached:
            pass
        finally:
            handle.remove()
        return inputs[0]

    @torch.inference_mode()
    def next_inputs(
        self, prefixes: torch.Tensor, tokens: torch.Tensor, block: int, *, budget: Budget
    ) -> Iterator[torch.Tensor]:
        """Yield what a block reads after each prefix [n, L] for each next token [m], float32 [rows, k].

        They come prefix by prefix, at most `ROWS_A_PASS` at a time. Raises `OutOfTime` between passes.
        """
        from transformers import DynamicCache

        for part in prefixes.split(max(1, ROWS_A_PASS // len(tokens))):
            prefix_cache = DynamicCache()
            self.block_inputs(part, block, cache=prefix_cache)
            for chunk in tokens.split(ROWS_A_PASS):  # keys and values of a prefix are computed once
                budget.check()
                cache = copy.deepcopy(prefix_cache) if len(chunk) < len(tokens) else prefix_cache
                cache.batch_repeat_interleave(len(chunk))
                yield self.block_inputs(chunk.repeat(len(part))[:, None], block, cache=cache)[:, 0]

    def token_inputs(self) -> np.ndarray:
        """Return the input of the first adapted block for every token, float32 [V, positions, k].

        There is one position, unless the model adds learnt positions to embeddings. Without `reads_tokens`
        this is only an approximation: the block's input for the token repeated.
        """
        config = self._base().config
        absolute = config.model_type in ("gpt2", "opt", "gpt_neo")
        length = min(64, int(config.max_position_embeddings)) if absolute else 1
        parts = []
        for ids in torch.arange(self.vocabulary).split(256):
            rows = ids[:, None].expand(-1, length).contiguous()
            parts.append(self.block_inputs(rows, self.adapted[0]).numpy())
        return np.concatenate(parts)


class _Reached(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class HeldProxy:
    """The proxy and adapter that an adversary holds.

    `written_ns` is when the folder's weights were written, so that a new model in the same folder is not
    mistaken for the old one.
    """

    folder: Path
    written_ns: int
    adapter: AdapterConfig
    blocks: tuple[int, ...] | None
    seed: int


def held_proxy(view: View) -> HeldProxy:
    """Return the proxy of a view's run. Raises `NotApplicable` if the view holds none."""
    if view.proxy is None or view.settings is None:
        raise NotApplicable("this view holds no proxy")
    s = view.settings
    return HeldProxy(
        folder=view.proxy,
        written_ns=weights_written_ns(view.proxy),
        adapter=s.adapter,
        blocks=s.blocks,
        seed=s.seed,
    )


@contextmanager
def opened(view: View, adapter: np.ndarray | None = None) -> Iterator[WhiteBox]:
    """Lend the proxy of a view's run for a `with` block; such blocks may be nested.

    Args:
        view: the view that holds the proxy.
        adapter: float32 [d], set when the block begins; None: the adapter as it is before any training.

    Raises `NotApplicable` if the view holds no proxy.

    Guarantees: every block begins with the adapter that it asks for, whatever others did before, and after
    it the model is as it was.
    """
    with lent(held_proxy(view), adapter) as box:
        yield box


@contextmanager
def lent(proxy: HeldProxy, adapter: np.ndarray | None = None) -> Iterator[WhiteBox]:
    """Lend the proxy that `held_proxy` returned, as `opened` does."""
    model, tokenizer, untrained = _loaded(proxy)
    with model.lent(untrained if adapter is None else adapter) as tuned:
        box = WhiteBox(tuned, tokenizer)
        try:
            yield box
        finally:
            box.close()


@lru_cache(maxsize=2)
def _loaded(proxy: HeldProxy) -> tuple[LentModel, Any, np.ndarray]:
    """Return the model, its tokenizer, and the adapter before any training, float32 [d]."""
    model, tokenizer = load_llm(proxy.folder, device="cpu", dtype="float32")
    tuned = attach(model, proxy.adapter, seed=proxy.seed, blocks=proxy.blocks).eval()
    return LentModel(tuned), tokenizer, get_vector(tuned)
