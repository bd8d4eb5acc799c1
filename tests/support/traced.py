"""Traced proxies for tests: a tiny proxy with marks, and what joins colluders' rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedproxy_secure.crypto.primitives import derive
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.tracing.copies import copy_of, make_marks
from fedproxy_secure.tracing.key import trace_key
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.tensor_file import as_bytes
from tests.support.parts import packed
from tests.support.tiny import save_tiny


@dataclass(frozen=True, kw_only=True)
class TracedProxy:
    """A proxy's folder, its marks and the key beside it."""

    folder: Path
    marks: Marks
    key: Secret

    def files(self, client: str) -> dict[str, bytes]:
        """A client's copy, as it is sent."""
        name, content = copy_of(self.folder, self.marks, self.key, client)
        return {**packed(self.folder), name: content}

    def write(self, client: str, folder: Path) -> Path:
        """A client's copy in a folder."""
        folder.mkdir()
        for name, data in self.files(client).items():
            (folder / name).write_bytes(data)
        return folder


def traced_proxy(place: Path) -> TracedProxy:
    """The tiny LLM as a traced proxy below `place`."""
    folder = save_tiny(place / "proxy")
    return TracedProxy(folder=folder, marks=make_marks(folder), key=trace_key(folder, make=True))


def key_number(number: int) -> Secret:
    """A key for tests that draw many."""
    return derive(Secret(bytes(32)), info=f"test {number}".encode())


def marks_like_a_real_llm(rows: int = 13, width: int = 128, seed: int = 0) -> Marks:
    """Marks on rows as training leaves those that no text reads: long, alike, and different in detail."""
    import base64

    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=width) * 0.28 + rng.normal(size=(rows, width)) * 0.011
    agreed = base64.b64encode(as_bytes(numbers, "F32")).decode()
    return Marks(
        tensor="model.embed_tokens.weight", rows=tuple(range(rows)), width=width, kind="F32", agreed=agreed
    )


def tuned(model: torch.nn.Module, windows: torch.Tensor, *, steps: int, rate: float, batch: int) -> None:
    """Train all parameters of a model, in place, by AdamW with weight decay."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = windows[torch.randint(len(windows), (batch,), generator=generator)]
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
