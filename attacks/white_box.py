"""The proxy as an adversary holds it: run it, differentiate it, know what each number of an update is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.base import Budget, NotApplicable
from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.federate.adapters import ADAPTER, attach, set_vector, trained_parameters
from fedproxy_secure.llm import blocks_of, load_llm, weights_written_ns
from fedproxy_secure.record.view import View

ROWS_A_PASS = 2048
RECORDS_A_PASS = 16  # whose gradients are taken together


@dataclass(frozen=True, kw_only=True)
class SharedInput:
    """Adapted maps of one block that read the same input. `names`: dotted names; `layers`: PEFT's.

    Both are empty for a block without adapted maps.
    """

    names: tuple[str, ...]
    layers: tuple[Any, ...]


class WhiteBox:
    """The proxy with the run's adapter; `load` makes one from a view, once a process."""

    def __init__(self, tuned: nn.Module, tokenizer: Any) -> None:
        self.tuned, self.tokenizer = tuned, tokenizer
        self.names = [n for n, p in tuned.named_parameters() if p.requires_grad]
        self.shapes = [tuple(p.shape) for p in trained_parameters(tuned)]
        self.vocabulary = int(tuned.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    def set(self, adapter: np.ndarray) -> None:
        """Take the adapter vector, float32 [d]."""
        set_vector(self.tuned, adapter)

    def pieces(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """A flat vector's tensors by parameter name, float64."""
        made, at = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = int(np.prod(shape))
            made[name] = vector[at : at + size].reshape(shape).astype(np.float64)
            at += size
        return made

    def gradient(self, items: Sequence[Encoded]) -> np.ndarray:
        """Gradient of the clients' loss on these records at the current adapter, float32 [d]."""
        batch = training_batch(items, pad_id=self.tokenizer.pad_token_id, device="cpu")
        parameters = trained_parameters(self.tuned)
        grads = torch.autograd.grad(batch_loss(self.tuned, batch), parameters)
        return torch.cat([g.reshape(-1).float() for g in grads]).numpy()

    def record_gradients(self, items: Sequence[Encoded], *, budget: Budget) -> np.ndarray:
        """`gradient` of each record alone, float32 [n, d], in their order; those of like length together.

        Raises `OutOfTime` between two passes once the budget is over.
        """
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        rows = np.empty((len(items), sum(math.prod(shape) for shape in self.shapes)), np.float32)
        for at in range(0, len(order), RECORDS_A_PASS):
            budget.check()
            chosen = order[at : at + RECORDS_A_PASS]
            rows[chosen] = self._gradients([items[i] for i in chosen])
        return rows

    def _gradients(self, items: Sequence[Encoded]) -> np.ndarray:
        """In one pass. Padding stands on the right, where a causal model does not look: no mask needed."""
        batch = training_batch(items, pad_id=self.tokenizer.pad_token_id, device="cpu")
        positions = batch.response.any(dim=0).nonzero().flatten()
        frozen, trained = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for name, p in self.tuned.named_parameters():
            (trained if p.requires_grad else frozen)[name] = p.detach()

        def loss(
            adapter: dict[str, torch.Tensor], ids: torch.Tensor, response: torch.Tensor
        ) -> torch.Tensor:
            inputs = {"input_ids": ids[None], "use_cache": False, "logits_to_keep": positions}
            logits = functional_call(self.tuned, {**frozen, **adapter}, (), inputs).logits[0]
            nll = nn.functional.cross_entropy(logits.float(), ids[positions + 1], reduction="none")
            return (nll * response[positions]).sum() / response.sum()

        with sdpa_kernel(SDPBackend.MATH):  # the faster ones do not know how to work record by record
            found = vmap(grad(loss), in_dims=(None, 0, 0))(trained, batch.ids, batch.response)
        return torch.cat([found[name].flatten(1).float() for name in trained], dim=1).numpy()

    def losses(self, items: Sequence[Encoded], *, batch_size: int = 64) -> np.ndarray:
        """Loss of each record, nats a response token, float64 [n]."""
        return np.array([float(p.mean()) for p in self.token_losses(items, batch_size=batch_size)])

    @torch.inference_mode()
    def token_losses(self, items: Sequence[Encoded], *, batch_size: int = 64) -> list[np.ndarray]:
        """Negative log-likelihood of every response token, a float64 array a record."""
        made: list[np.ndarray] = []
        for at in range(0, len(items), batch_size):
            part = items[at : at + batch_size]
            batch = training_batch(part, pad_id=self.tokenizer.pad_token_id, device="cpu")
            logits = self.tuned(
                input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
            ).logits.double()
            nll = -logits[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
            for row, wanted in zip(nll, batch.response, strict=True):
                made.append(row[wanted > 0].numpy())
        return made

    def shared_input(self, block: int) -> SharedInput:
        """The adapted maps of a block that read the same as the first of them: queries, keys and values, or
        the first maps of the MLP where attention is not adapted.

        Raises `NotApplicable` if the block has none.
        """
        if not self.groups[block].names:
            raise NotApplicable(f"block {block} of the proxy is not adapted")
        return self.groups[block]

    @cached_property
    def adapted(self) -> tuple[int, ...]:
        """The blocks that have adapted maps; never empty."""
        return tuple(i for i, group in enumerate(self.groups) if group.names)

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether the first adapted block's `shared_input` depends on the token at its place alone.

        So it is for queries, keys and values of block 0: they read embeddings.
        """
        pair = self.block_inputs(torch.tensor([[3, 2], [4, 2]]), self.adapted[0])
        return torch.equal(pair[0, 1], pair[1, 1])

    @property
    def config(self) -> Any:
        """The model's Hugging Face config."""
        return self._base().config

    @cached_property
    def groups(self) -> list[SharedInput]:
        """`shared_input` of every block."""
        return self._find_groups()

    @torch.inference_mode()
    def _find_groups(self) -> list[SharedInput]:
        from peft.tuners.lora import LoraLayer

        # inputs are kept until all are compared: a freed one's place may be taken by the next
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
        """What the maps of `shared_input(block)` read, float32 [n, tokens, k], for token ids [n, tokens].

        Blocks from `block` on are not run. With a `cache` (of transformers) ids follow what is in it.
        """
        found: list[torch.Tensor] = []

        def stop(_module: Any, args: Any) -> None:
            found.append(args[0].float())
            raise _Reached

        handle = self.shared_input(block).layers[0].register_forward_pre_hook(stop)
        try:
            self._base()(input_ids=ids, use_cache=cache is not None, past_key_values=cache)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    @torch.inference_mode()
    def next_inputs(self, prefixes: torch.Tensor, tokens: torch.Tensor, block: int) -> torch.Tensor:
        """What a block reads at the position after each prefix [n, L] for each token [m]: [n, m, k].

        Keys and values of the prefixes are computed once.
        """
        from transformers import DynamicCache

        made = []
        at_once = max(1, ROWS_A_PASS // len(tokens))
        for part in prefixes.split(at_once):
            cache = DynamicCache()
            self.block_inputs(part, block, cache=cache)
            cache.batch_repeat_interleave(len(tokens))
            ids = tokens.repeat(len(part))[:, None]
            states = self.block_inputs(ids, block, cache=cache)
            made.append(states[:, 0].view(len(part), len(tokens), -1))
        return torch.cat(made)

    def token_inputs(self) -> np.ndarray:
        """What the first adapted block reads for every token of the vocabulary, float64 [V, positions, k].

        One position, unless the model adds learnt positions to embeddings. Where not `reads_tokens`, it is
        what the block reads for the token repeated, a likeness only.
        """
        config = self._base().config
        absolute = config.model_type in ("gpt2", "opt", "gpt_neo")
        length = min(64, int(config.max_position_embeddings)) if absolute else 1
        made = []
        for ids in torch.arange(self.vocabulary).split(256):
            rows = ids[:, None].expand(-1, length).contiguous()
            made.append(self.block_inputs(rows, self.adapted[0]).numpy())
        return np.concatenate(made).astype(np.float64)


class _Reached(Exception):
    pass


def load(view: View) -> WhiteBox:
    """The proxy and adapter of a view's run. Raises `NotApplicable` if the view holds no proxy."""
    if view.proxy is None or view.settings is None:
        raise NotApplicable("this view holds no proxy")
    s = view.settings
    return _load(str(view.proxy), weights_written_ns(view.proxy), s.adapter, s.blocks, s.seed)


@lru_cache(maxsize=2)
def _load(
    folder: str, written: int, adapter: AdapterConfig, blocks: tuple[int, ...] | None, seed: int
) -> WhiteBox:
    """`written`: when the folder was, so that another run's model in its place is not taken for it."""
    model, tokenizer = load_llm(Path(folder), device="cpu", dtype="float32")
    return WhiteBox(attach(model, adapter, seed=seed, blocks=blocks).eval(), tokenizer)


def frozen_input_map(layer: Any) -> np.ndarray:
    """The A of a PEFT layer, float64 [r, k]."""
    weight: np.ndarray = layer.lora_A[ADAPTER].weight.detach().double().numpy()
    return weight
