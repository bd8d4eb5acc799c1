"""A language model and a tokenizer small enough to build in every test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedproxy_secure.models.llm import blocks_of

VOCABULARY = 3 + 256


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after `<pad>`, `<s>` and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_llama(blocks: int = 4, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of hidden size 16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny(folder: Path, blocks: int = 4, seed: int = 0) -> Path:
    """The tiny model and tokenizer as a Hugging Face folder."""
    tiny_llama(blocks, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_records(folder: Path, clients: int = 3, records: int = 12) -> str:
    """JSONL files of a two-choice task per client; returns the source pattern of client `{i}`."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in range(clients):
        for split in ("train", "test"):
            rows = [
                {"text": f"{split} {client} {i}", "choices": ["no", "yes"], "label": (i + client) % 2}
                for i in range(records)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{client}.{split}.jsonl").write_text(text)
    return str(folder)


def tiny_settings(folder: Path, clients: int = 3, **changes: Any) -> dict[str, Any]:
    """Raw settings of a federation of seconds, on files below `folder`."""
    save_tiny(folder / "llm")
    root = write_records(folder / "data", clients)
    public = folder / "public.txt"
    public.write_text("some public text " * 200)
    raw: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(folder / "llm"), "device": "cpu"},
        "data": {
            "root": root,
            "public_text": str(public),
            "max_tokens": 64,
            "clients": [
                {"name": f"c{i}", "task": "classification", "source": f"{{data}}/{i}.{{split}}.jsonl"}
                for i in range(clients)
            ],
        },
        "compress": {"calibration_sequences": 2},
        "adapter": {"rank": 2, "alpha": 4},
        "local": {"steps": 2, "batch_size": 4},
        "federate": {"rounds": 3},
    }
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return raw


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have equal parameters, bit for bit."""
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def public_windows(count: int = 24) -> torch.Tensor:
    """Return random token ids that stand for windows of public text, int64 [count, 16]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 60, (count, 16), generator=generator)


def louder(model: nn.Module) -> nn.Module:
    """Scale a random model's weights up, so that a missing block changes its outputs."""
    for block in blocks_of(model):
        for p in block.parameters():
            if p.dim() == 2:
                p.data *= 5
    return model
