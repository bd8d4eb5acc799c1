"""Gradients of a model's own weights, without an adapter: the setting in which DAGER was published."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attacks.base import Budget
from attacks.reconstruction.candidates import Candidates, token_scores
from attacks.reconstruction.row_spaces import Spaces
from attacks.reconstruction.sequences import ONE_STEP, search
from attacks.reconstruction.spans import in_span
from attacks.white_box import WhiteBox
from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import blocks_of, load_llm
from tests.support.tiny import VOCABULARY, tiny_tokenizer

Kind = Literal["gpt2", "llama", "demo"]


@dataclass(frozen=True, kw_only=True)
class Open:
    """A model with its own weights, and the same one as an adversary holds it, with an idle adapter."""

    model: nn.Module
    box: WhiteBox

    def spaces(self, items: Sequence[Encoded], block: int) -> Spaces:
        """Return the rows of one SGD step's gradient that hold what a block's attention reads."""
        names = self.box.shared_input(block).names
        weights = [blocks_of(self.model)[block].get_submodule(name).weight for name in names]
        batch = training_batch(items, pad_id=self.box.tokenizer.pad_token_id, device="cpu")
        gradients = torch.autograd.grad(batch_loss(self.model, batch), weights)
        hidden = int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        # GPT-2 keeps its maps transposed, [in, out]
        rows = [g if g.shape[1] == hidden else g.T for g in gradients]
        return Spaces(matrices=(torch.cat(rows).double().numpy(),), maps=(None,))

    def recovered(
        self, items: Sequence[Encoded], *, longest: int
    ) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
        """Return the tokens that A2's check names, bool [V], and the sequences that A3 makes of them."""
        inputs = self.box.token_inputs()
        candidates = Candidates.from_inputs(inputs, (None,), exact=self.box.reads_tokens)
        raw = token_scores(candidates, self.spaces(items, 0))
        named = in_span(raw, positions=inputs.shape[1])
        if not named.any():
            return named, ()
        sequences, _, _ = search(
            self.box,
            self.spaces(items, 1),
            1,
            np.flatnonzero(named).tolist(),
            tolerance=ONE_STEP,
            longest=longest,
            budget=Budget(),
        )
        return named, sequences


def open_model(kind: Kind, *, hidden: int = 64, seed: int = 0) -> Open:
    """Return a random GPT-2 or Llama of 259 tokens and two blocks, or the embedded demo LLM."""
    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tokenizer: Any = tiny_tokenizer()
    model: nn.Module
    if kind == "gpt2":
        size = {"n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 32}
        off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **size, **off, **ends)
        )
    elif kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                initializer_range=0.2,
                **ends,
            )
        )
    else:
        model, tokenizer = load_llm("demo", device="cpu", dtype="float32")
    model = model.eval()
    held = attach(copy.deepcopy(model), AdapterConfig(rank=1), seed=seed).eval()
    return Open(model=model.requires_grad_(True), box=WhiteBox(held, tokenizer))
