"""Rounds without messages: a small random proxy, clients' updates by the project's own training, views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attacks import white_box
from attacks.base import Truth
from attacks.white_box import WhiteBox
from fedproxy_secure.config import (
    AdapterConfig,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import PublicSettings, Sums, View
from tests.support.tiny import VOCABULARY, tiny_tokenizer

START, FIRST_TOKEN = 1, 3


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A proxy in a folder, the run's settings, and the adapter that round 0 broadcast, float32 [d]."""

    proxy: Path
    settings: PublicSettings
    start: np.ndarray

    def opened(self) -> AbstractContextManager[WhiteBox]:
        """The proxy as an adversary has it, with the adapter of round 0."""
        return white_box.opened(self.view({}), self.start)

    def update(self, items: Sequence[Encoded], *, seed: int = 0) -> np.ndarray:
        """What a client with these records sends, float32 [d]."""
        with self.opened() as box:
            train(
                box.tuned,
                items,
                steps=self.settings.local.steps,
                local=self.settings.local,
                pad_id=0,
                rng=np.random.default_rng(seed),
                subject="lab",
            )
            return get_vector(box.tuned) - self.start

    def view(self, updates: Mapping[str, np.ndarray], *, summed: bool = False) -> View:
        """The server's view of round 0: each update, or their sum alone."""
        adapters = {0: self.start}
        if updates:
            adapters[1] = self.start + np.mean(list(updates.values()), axis=0)
        names = tuple(updates)
        sums = {0: Sums(clients=names, segments={"update": np.sum(list(updates.values()), axis=0)})}
        return View(
            threat_model="server",
            settings=self.settings,
            adapters=adapters,
            updates={} if summed else {(0, n): u for n, u in updates.items()},
            sums=sums if summed else {},
            cohorts={0: names},
            proxy=self.proxy,
        )


def make_lab(
    folder: Path,
    *,
    hidden: int = 64,
    blocks: int = 2,
    adapter: Mapping[str, Any] | None = None,
    local: Mapping[str, Any] | None = None,
    seed: int = 0,
    **more: Any,
) -> Lab:
    """A random Llama of 259 tokens; the adapter has moved a little, as after a round."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    settings = PublicSettings(
        seed=seed,
        d=0,
        adapter=AdapterConfig(**{"rank": 16, "alpha": 32} | dict(adapter or {})),
        local=LocalConfig(**{"steps": 1, "optimizer": "sgd", "learning_rate": 0.1} | dict(local or {})),
        fusion=FusionConfig(rule="fedavg"),
        federate=FederateConfig(rounds=1),
        protect=ProtectConfig(),
        privacy=PrivacyConfig(),
        max_tokens=24,
        blocks=None,
        clients=("c0",),
    )
    settings = PublicSettings(**{**vars(settings), **more})
    with white_box.opened(View(threat_model="lab", settings=settings, proxy=folder)) as box:
        fresh = get_vector(box.tuned)
    moved = np.random.default_rng(seed).normal(0, 0.02, len(fresh)).astype(np.float32)
    return Lab(proxy=folder, settings=settings, start=fresh + moved)


def records(rng: np.random.Generator, count: int, *, tokens: int, length: int) -> tuple[Encoded, ...]:
    """Records of `length` tokens, the start token first, out of `tokens` others."""
    pool = rng.choice(np.arange(FIRST_TOKEN, VOCABULARY), size=tokens, replace=False)
    rows = rng.choice(pool, size=(count, length - 1)).tolist()
    return tuple(Encoded(ids=(START, *row), response_start=length // 2) for row in rows)


def truth_of(updates: Mapping[str, np.ndarray], items: Mapping[str, Sequence[Encoded]]) -> Truth:
    """Every client drew all of its records in round 0."""
    return Truth(
        clients={
            name: PrivateState(
                client=name,
                train=tuple(items[name]),
                holdout=(),
                canaries=(),
                rounds={0: PrivateRound(update=update, used=np.arange(len(items[name])))},
            )
            for name, update in updates.items()
        }
    )
