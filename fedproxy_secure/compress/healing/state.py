"""Healing on disk: an unfinished one with the optimiser's moments, a finished one with the healed weights.

It is one safetensors file, replaced as a whole at every save. Only the server may read it: the moments
depend on the LLM.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.files.names import HEALING
from fedproxy_secure.runtime.files.whole import replacing

log = logging.getLogger(__name__)


class HealingState:
    """Healing progress saved in a folder, so that a killed healing goes on.

    Without a folder nothing is saved. A file that was written with another `key` is ignored.
    """

    def __init__(self, folder: Path | None, *, key: str) -> None:
        self._path = None if folder is None else folder / HEALING
        self._key = key

    def finished(self, parameters: list[nn.Parameter]) -> dict[str, Any] | None:
        """Give the parameters the healed weights, mapped from the file; return the result, or None."""
        metadata, tensors = self._read("weight")
        if metadata is None or "result" not in metadata:
            return None
        for p, value in zip(parameters, tensors, strict=True):
            p.data = value.to(p.device)
            p.requires_grad_(False)
        result: dict[str, Any] = json.loads(metadata["result"])
        return result

    def restore(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
    ) -> tuple[int, tuple[float, float], float] | None:
        """Restore the state; return the steps done, the first distances and the seconds, or None."""
        metadata, weights = self._read("weight")
        if metadata is None:
            return None
        moments = [self._read(name)[1] for name in ("first", "second")]
        steps = int(metadata["steps"])
        for p, weight, first, second in zip(parameters, weights, *moments, strict=True):
            p.data = weight.to(p.device).clone()
            optimizer.state[p] = {
                "step": torch.tensor(float(steps), device=p.device),  # where a fused step reads it
                "exp_avg": first.to(p.device).clone(),
                "exp_avg_sq": second.to(p.device).clone(),
            }
        kl, states = json.loads(metadata["before"])
        return steps, (kl, states), float(metadata["seconds"])

    def save(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        steps: int,
        before: tuple[float, float],
        seconds: float,
    ) -> None:
        """Write an unfinished state atomically, without waiting for the disk."""
        state = [optimizer.state[p] for p in parameters]
        tensors = {
            **{f"weight.{i}": p.detach() for i, p in enumerate(parameters)},
            **{f"first.{i}": s["exp_avg"] for i, s in enumerate(state)},
            **{f"second.{i}": s["exp_avg_sq"] for i, s in enumerate(state)},
        }
        metadata = {"steps": str(steps), "before": json.dumps(before), "seconds": repr(seconds)}
        self._write(tensors, metadata, durable=False)

    def finish(self, parameters: list[nn.Parameter], result: dict[str, Any]) -> None:
        """Write the result atomically."""
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(parameters)}
        self._write(tensors, {"result": json.dumps(result)}, durable=True)

    def _write(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str], *, durable: bool) -> None:
        if self._path is None:
            return
        contiguous = {n: t.contiguous() for n, t in tensors.items()}
        try:
            with replacing(self._path, private=True, durable=durable) as partial:
                save_file(contiguous, partial, {**metadata, "key": self._key})
        except SafetensorError as error:  # such as for a full disk
            raise RunFolderError(f"{self._path}: cannot be written: {error}") from error

    def _read(self, name: str) -> tuple[dict[str, str] | None, list[torch.Tensor]]:
        """Return the file's metadata, and its tensors `name.0`, `name.1` and so on, in order.

        The metadata is None for a file of other inputs or one that a power cut has damaged: healing then
        begins anew.
        """
        if self._path is None or not self._path.exists():
            return None, []
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return None, []
                count = sum(key.startswith(f"{name}.") for key in file.keys())  # noqa: SIM118 - no dict
                return metadata, [file.get_tensor(f"{name}.{i}") for i in range(count)]
        except Exception as error:  # safetensors has an error of its own for a damaged file
            log.warning("%s: is damaged, healing begins anew: %s", self._path, error)
            return None, []
