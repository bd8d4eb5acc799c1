"""What a method starts from, and the steps that methods share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import Config
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.results import Accuracy, MethodResult
from fedproxy_secure.experiments.stages import (
    Materials,
    evaluate,
    make_fused_llm,
    make_proxy,
    prepare,
    tune,
)
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, tensor_sizes
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.runtime.randomness import stream


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The owner's LLM, every client's records, and how to train, fuse and evaluate with one seed.

    Args:
        folder: where models that clients load are written; it goes when the method has ended.
        ratio: share of the LLM that its proxy does without; None for a method that needs no proxy.
    """

    config: Config
    materials: Materials
    seed: int
    ratio: float | None
    folder: Path

    @classmethod
    def load(cls, config: Config, *, seed: int, ratio: float | None, folder: Path) -> Inputs:
        """Load what the settings name. Raises `ModelError` or `DataError` if that fails."""
        return cls(config=config, materials=prepare(config), seed=seed, ratio=ratio, folder=folder)

    @property
    def remove_ratio(self) -> float:
        """The share of the LLM that its proxy does without. Raises `ConfigError` without one."""
        if self.ratio is None:
            raise ConfigError("this method: needs a remove ratio; set needs_ratio=True on it")
        return self.ratio

    @property
    def llm(self) -> nn.Module:
        """The owner's LLM."""
        return self.materials.llm

    def proxy(self) -> Proxy:
        """The proxy of the settings' compression at the remove ratio."""
        return make_proxy(self.config, self.materials, seed=self.seed, remove_ratio=self.remove_ratio)

    def federate(
        self, model: nn.Module, settings: Config, *, blocks: tuple[int, ...] | None = None
    ) -> tuple[nn.Module, int]:
        """Tune `model` (changed in place) with all clients under these settings.

        Args:
            settings: as `Method.federation` gives them.
            blocks: which of the model's blocks get an adapter; None: those of the settings.

        Returns the model with its tuned adapter, and the payload that one client sends in one round, bytes.
        """
        job = FederationJob.from_config(settings, seed=self.seed, blocks=blocks)
        place = self.folder / "model"
        save_model(model, self.materials.tokenizer, place)
        tuned = tune(job, model, place)
        return tuned, protection_of(job.protect).upload_bytes(job, tensor_sizes(tuned))

    def train_pooled(self, model: nn.Module) -> nn.Module:
        """Tune an adapter on all tasks' records together, as many steps as all their clients take."""
        config, tasks = self.config, self.materials.tasks
        tuned = attach(model, config.adapter, seed=self.seed)
        train(
            tuned,
            [
                item
                for task in tasks
                for item in encode_records(
                    task.train, self.materials.tokenizer, max_tokens=config.data.max_tokens
                ).items
            ],
            steps=config.federate.rounds * config.local.steps * len(tasks),
            local=config.local,
            pad_id=self.materials.tokenizer.pad_token_id,
            rng=stream(self.seed, "centralised", *(t.name for t in tasks)),
            who="centralised training",
        )
        return tuned

    def evaluate(self, model: nn.Module) -> Mapping[str, Accuracy]:
        """Return the accuracy on every client's test records, by task."""
        return evaluate(model, self.materials, self.config)

    def plugged_back(self, proxy: Proxy, tuned: nn.Module, *, upload_bytes: int = 0) -> MethodResult:
        """Evaluate the tuned proxy, and the LLM with the proxy's difference plugged back."""
        return MethodResult(
            tuned=self.evaluate(tuned),
            fused=self.evaluate(make_fused_llm(self.materials, proxy, tuned)),
            upload_bytes=upload_bytes,
        )

    def each_task(self) -> list[Inputs]:
        """Return, for each client, the same inputs with its task alone."""
        return [
            replace(self, materials=replace(self.materials, tasks=(task,))) for task in self.materials.tasks
        ]
