"""Small random LLMs, proxies of them, and differences for tests of compressions."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.defences.maps import NORMS
from fedproxy_secure.compress.defences.moments import linear_maps
from fedproxy_secure.config import CompressConfig
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import VOCABULARY

WINDOWS = torch.randint(3, VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(0))


def llm(seed=0, *, tied=False, key_value_heads=2):
    """A random Llama with grouped heads, gains of norms that are not all one, and biases nowhere."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    with torch.no_grad():
        for block in blocks_of(model):
            for name in NORMS:
                block.get_submodule(name).weight.uniform_(0.5, 1.5)
        model.model.norm.weight.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def unfinished(kind, model, *, remove_ratio=0.5, **options):
    compress = CompressConfig(kind=kind, remove_ratio=remove_ratio, options=options)
    return compression_of(compress).build(model, compress, windows=WINDOWS, seed=0)


def proxy_of(kind, model, **settings):
    return unfinished(kind, model, **settings).finished()


def logits(model, windows=WINDOWS):
    with torch.inference_mode():
        return model(input_ids=windows).logits


def random_deltas(model, seed=0, scale=0.01):
    drawn = torch.Generator().manual_seed(seed)
    return {
        (i, f"{name}.weight"): scale * torch.randn(linear.weight.shape, generator=drawn)
        for i, block in enumerate(blocks_of(model))
        for name, linear in linear_maps(block).items()
    }
