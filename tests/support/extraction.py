"""Models, texts and answers of the extraction tests."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from attacks.base import Truth
from tests.support.tiny import VOCABULARY

KEPT = (0, 3)
NO_CLIENTS = Truth(clients={})


def texts(count, tokens=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, size=(count, tokens)))


@torch.no_grad()
def outputs(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def gpt2(blocks):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=blocks, n_head=2, n_positions=64, initializer_range=0.2
    )
    return GPT2LMHeadModel(config).eval()


def qwen2(blocks):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval()
