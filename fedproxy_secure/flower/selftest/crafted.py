"""Proxies crafted for an attack: other weights behind the same files, and tokens that are traps."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import shared_proxy

HIDDEN, VOCABULARY = 128, 1536  # of the demo LLM
RANK = 2  # of the stage's adapters


@torch.no_grad()
def set_traps(model: nn.Module, tokens: tuple[int, ...]) -> None:
    """Give each of `tokens` a unit vector and all others zeros, from which no adapter gets a gradient."""
    weight = cast(Any, model).get_input_embeddings().weight
    weight.zero_()
    for place, token in enumerate(tokens):
        weight[token, place] = 1.0


def trap_columns(job: FederationJob, proxy: Path, moved: np.ndarray) -> np.ndarray:
    """Return how far each trap's column moved in the LoRA factors A that read embeddings, float64 [2]."""
    distances, at = np.zeros(2), 0
    with shared_proxy(job, proxy).model.lent() as tuned:
        sizes = {n: p.numel() for n, p in tuned.named_parameters() if p.requires_grad}
    for name, size in sizes.items():
        if ".lora_A." in name and any(f".{m}_proj." in name for m in "qkv"):
            distances += np.abs(moved[at : at + size].reshape(RANK, HIDDEN)[:, :2]).sum(axis=0)
        at += size
    return distances


@torch.no_grad()
def spoil(model: nn.Module, token: int) -> None:
    """Make a token's embedding NaN; the head, which the demo LLM ties to it, stays as it was."""
    causal_lm = cast(Any, model)
    causal_lm.config.tie_word_embeddings = False
    causal_lm.lm_head.weight = nn.Parameter(causal_lm.lm_head.weight.clone())
    causal_lm.get_input_embeddings().weight[token] = float("nan")


@torch.no_grad()
def overflow(model: nn.Module, token: int) -> None:
    """Make attention overflow where a token stands; every weight stays finite, and other tokens run."""
    parts = cast(Any, model)
    embeddings = parts.get_input_embeddings().weight
    embeddings[:, 0] = 0.0
    embeddings[token] = 0.0
    embeddings[token, 0] = 1.0
    attention = parts.model.layers[0].self_attn
    for part in (attention.q_proj, attention.k_proj):
        part.weight[:, 0] = 1e30


@torch.no_grad()
def nudge(model: nn.Module, _tokenizer: object) -> None:
    """Add 1 to the first parameter (the embeddings), which changes everything that reads them."""
    next(model.parameters()).add_(1.0)


def adapter_of(proxy: Path, base: Path) -> dict[str, bytes]:
    """Return the files of a LoRA adapter without effect on the model in `base`, and of its tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        adapter = Path(name) / "adapter_model.safetensors"
        layer = "base_model.model.model.layers.0.self_attn.q_proj"
        zeros = {f"{layer}.lora_A.weight": (1, HIDDEN), f"{layer}.lora_B.weight": (HIDDEN, 1)}
        save_file({k: np.zeros(shape, np.float32) for k, shape in zeros.items()}, adapter)
        weights = adapter.read_bytes()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["q_proj"],
        "layers_to_transform": [0],
    }
    tokenizer = {f.name: f.read_bytes() for f in proxy.glob("tokenizer*")}
    return {
        "adapter_config.json": json.dumps(settings).encode(),
        "adapter_model.safetensors": weights,
        **tokenizer,
    }


def sha256_of(files: Mapping[str, bytes]) -> str:
    """Return the hash that `folder_sha256` gives a folder with these files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name]
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()
