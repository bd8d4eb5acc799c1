"""The proxy: the small model that clients get, and how what it learns is lifted back to the LLM."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.plan import BlockPlan, BlockTensors
from fedproxy_secure.data.chat.derived import keep_format
from fedproxy_secure.data.chat.formats import stored_value
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import without_library_bars
from fedproxy_secure.runtime.files.saving import saving

Lift = Callable[[BlockTensors], Mapping[tuple[int, str], torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The small model that clients get, and how a difference of its weights becomes one of the LLM's.

    Args:
        model: a causal LM that transformers can load from its folder, because clients run no code from it.
        plan: which LLM block each proxy block stands for, whether a copy or not; None if proxy blocks do
            not stand for LLM blocks. Fidelity is then not measured block by block.
        lifting: from what tuning added to the proxy, `(proxy block, weight name in the block) -> float32
            tensor` shaped like that weight, to what is added to the LLM, keyed and shaped alike for the
            LLM's blocks. It may close over secrets of the server: factors, index maps, rotations. None:
            each proxy block's difference is added to its LLM block unchanged.
        own_states: whether the hidden states of the finished proxy are in other coordinates than the LLM's.
        finish: changes the model in place, after healing and before clients get it, because healing may
            train a form that transformers cannot load, such as factors of a map. It may first be called
            with a copy, to measure that; the last call is with the healed model. None: no change.
        importance: one value for each LLM block; () if the choice of blocks did not use importance.
        details: further facts about the proxy for the record of the run (`plan.json`); plain JSON values.

    Raises `ModelError` without a plan and without a lifting, for importance that is not finite, or for
    details that are not plain JSON values.
    """

    model: nn.Module
    plan: BlockPlan | None = None
    lifting: Lift | None = None
    own_states: bool = False
    finish: Callable[[nn.Module], None] | None = None
    importance: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan is None and self.lifting is None:
            raise ModelError("proxy: has no block plan and no lifting; needs one to be plugged back")
        object.__setattr__(self, "importance", tuple(map(float, self.importance)))
        if not all(map(math.isfinite, self.importance)):  # JSON has no other numbers
            raise ModelError(f"proxy: importance={self.importance!r:.80}: must be finite numbers")
        try:  # fails now, not when the record is written after the healing
            json.dumps(dict(self.details), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ModelError(f"proxy: details: must be plain JSON values: {error}") from error

    @property
    def kept(self) -> tuple[int, ...]:
        """The LLM block whose hidden states each proxy block passes on; () if it passes on other states."""
        return () if self.plan is None or self.own_states else self.plan.kept

    def finished(self) -> Proxy:
        """Apply `finish` to the model, in place, and return the proxy as clients get it."""
        if self.finish is None:
            return self
        self.finish(self.model)
        return replace(self, finish=None)

    def lift(self, tensors: BlockTensors) -> dict[tuple[int, str], torch.Tensor]:
        """Return what to add to the LLM's blocks for these differences of the proxy's blocks."""
        if self.lifting is not None:
            return dict(self.lifting(tensors))
        assert self.plan is not None  # checked when made
        return self.plan.lift(tensors)


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder (config, safetensors, tokenizer), without subfolders, as proxies need.

    The chat format of the tokenizer's template is stored as strings, because clients run no template. It is
    derived here if that was not done when the LLM was loaded.

    Raises `RunFolderError` if it cannot be written.
    """
    if stored_value(tokenizer) is None:
        keep_format(tokenizer)
    with saving(folder):
        with without_library_bars():
            model.save_pretrained(folder)  # type: ignore[operator]
        # several chat templates would go into a folder of their own
        tokenizer.save_pretrained(folder, save_jinja_files=not isinstance(tokenizer.chat_template, dict))
