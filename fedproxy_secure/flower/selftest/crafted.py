"""Proxies made for a purpose: other weights behind the same files, tokens that set traps."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord
from safetensors.numpy import save_file
from torch import nn

from fedproxy_secure.federate.client import shared_model
from fedproxy_secure.federate.job import FederationJob

HIDDEN, VOCABULARY = 128, 1536  # of the demo LLM
RANK = 2  # of the stage's adapters


@torch.no_grad()
def set_traps(model: nn.Module, tokens: tuple[int, ...]) -> None:
    """Embeddings of zeros, which no adapter gets a gradient from, but a unit vector for each token."""
    weight = cast(Any, model).get_input_embeddings().weight
    weight.zero_()
    for place, token in enumerate(tokens):
        weight[token, place] = 1.0


def trap_columns(job: FederationJob, proxy: Path, moved: np.ndarray) -> np.ndarray:
    """How far the column of each trap moved in the A of maps that read embeddings, float64 [2]."""
    found, at = np.zeros(2), 0
    for name, parameter in shared_model(job, proxy).model.named_parameters():
        if not parameter.requires_grad:
            continue
        size = parameter.numel()
        if ".lora_A." in name and any(f".{m}_proj." in name for m in "qkv"):
            found += np.abs(moved[at : at + size].reshape(RANK, HIDDEN)[:, :2]).sum(axis=0)
        at += size
    return found


@torch.no_grad()
def spoil(model: nn.Module, token: int) -> None:
    """Make a token's embedding no number; the head, which the demo LLM ties to it, stays as it was."""
    untied = cast(Any, model)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.clone())
    untied.get_input_embeddings().weight[token] = float("nan")


@torch.no_grad()
def overflow(model: nn.Module, token: int) -> None:
    """Let attention overflow where a token stands; every weight is finite, and other tokens run as ever."""
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
    """Other weights, in everything that reads embeddings."""
    next(model.parameters()).add_(1.0)


def adapter_of(proxy: Path, base: Path) -> ConfigRecord:
    """Files of a LoRA adapter that changes nothing, on the model in `base`, with the proxy's tokenizer."""
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
    return ConfigRecord(
        {
            "adapter_config.json": json.dumps(settings).encode(),
            "adapter_model.safetensors": weights,
            **tokenizer,
        }
    )


def sha256_of(files: ConfigRecord) -> str:
    """As `folder_sha256` would have it."""
    total = hashlib.sha256()
    for name in sorted(files):
        content = cast(bytes, files[name])
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()
