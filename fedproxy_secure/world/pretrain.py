"""Pre-train the demo LLM on the synthetic world's public texts, with stochastic depth.

A model trained from scratch on little data uses every block, so dropping one ruins it; large models
trained on much data do not behave so. Stochastic depth (each step skips a random set of blocks;
Huang et al. 2016, LayerDrop: Fan et al. 2020) restores what FedProxy relies on: neighbouring blocks
speak the same language and the network survives without some of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedproxy_secure.world.stories import stories

log = logging.getLogger(__name__)

VOCABULARY = 1536
BLOCKS = 8
HIDDEN = 128
CONTEXT = 256
SEQUENCE_TOKENS = 128
BATCH_SEQUENCES = 16
LEARNING_RATE = 3e-3
MAX_SKIP_RATE = 0.5


def train_tokenizer(seed: int, texts: int = 6000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of `VOCABULARY` entries; digits are always single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = stories(seed)
    tokenizer.train_from_iterator((next(stream) for _ in range(texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def new_demo_llm(seed: int) -> LlamaForCausalLM:
    """Return the untrained demo LLM: Llama type, 8 blocks, hidden 128, 1.8 M parameters, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=352,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def packed_batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Yield endless int64 batches [BATCH_SEQUENCES, SEQUENCE_TOKENS] of stories joined by `</s>`."""
    stream = stories(seed)
    ids: list[int] = []
    need = BATCH_SEQUENCES * SEQUENCE_TOKENS
    while True:
        while len(ids) < need:
            for encoded in tokenizer([next(stream) for _ in range(64)])["input_ids"]:
                ids += [tokenizer.bos_token_id, *encoded, tokenizer.eos_token_id]
        yield torch.tensor(ids[:need]).view(BATCH_SEQUENCES, SEQUENCE_TOKENS)
        ids = ids[need:]


def kept_blocks(rng: np.random.Generator, blocks: int) -> list[int]:
    """Return the blocks that a step runs: each is skipped at one rate, drawn from [0, .5] for the step."""
    rate = rng.uniform(0, MAX_SKIP_RATE)
    return [i for i in range(blocks) if rng.random() >= rate] or [int(rng.integers(blocks))]


def pretrain(
    *, steps: int, seed: int, on_step: Callable[[int, float], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model from nothing; the same seed gives the same weights.

    Runs on one torch thread, because sums over several threads depend on their number.
    `on_step(step, loss)` is called after every step; the loss is in nats per token.
    """
    torch.set_num_threads(1)
    tokenizer, model = train_tokenizer(seed), new_demo_llm(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.02 + 0.98 * (1 - s / steps))
    )
    batches, rng = packed_batches(tokenizer, seed + 1), np.random.default_rng(seed + 2)
    all_blocks = model.model.layers
    model.train()
    for step in range(steps):
        ids = next(batches)
        model.model.layers = nn.ModuleList(all_blocks[i] for i in kept_blocks(rng, BLOCKS))
        logits = model(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
    model.model.layers = all_blocks
    return model.eval(), tokenizer


def save_demo_llm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model and its tokenizer as an ordinary Hugging Face folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
