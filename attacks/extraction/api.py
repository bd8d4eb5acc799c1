"""The fused LLM as a customer reaches it: texts go in, logits come out, and every text is counted.

One **query** is one text. Its answer is the logits after each of its tokens, which serving software calls
prompt log-probabilities. An API that answers only after the last token would need as many queries as texts
have tokens. A text that was asked before is answered from the customer's own notes and not counted again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from attacks.base import Inconclusive
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.models.passes import vocabulary_size, windows_a_pass

Mode = Literal["true", "shuffled", "noise"]
EXTRACTION = (
    ("MITRE ATLAS", "5", "AML.T0024.002"),
    ("OWASP LLM", "2025", "LLM10"),
    ("NIST AI RMF", "1.0", "MEASURE 2.7"),
    ("EU AI Act", "2024/1689", "Art. 15(5)"),
)
NOTES_BYTES = 2**28  # answers kept; the others are computed again, which costs time but no query


class OverBudget(Inconclusive):
    """The query would exceed the budget."""


class Api:
    """A model folder that only answers queries, at most `limit` texts in all.

    Args:
        folder: the model's folder.
        limit: the most texts that are answered.
        mode: `true`, or one of two negative controls: `shuffled` gives every text the answer to another
            text of the same call, `noise` answers with noise.
        notes_bytes: the most that the customer's notes take.
    """

    def __init__(
        self, folder: Path, *, limit: int, mode: Mode = "true", notes_bytes: int = NOTES_BYTES
    ) -> None:
        self._model, _ = load_llm(folder, dtype="float32")
        self._limit, self._mode, self._notes_bytes = limit, mode, notes_bytes
        self._seen: set[bytes] = set()
        self._notes: dict[bytes, torch.Tensor] = {}
        self._noted_bytes = 0

    @property
    def asked(self) -> int:
        """The number of queries so far."""
        return len(self._seen)

    def ask(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the logits after every token, float32 [n, tokens, V], for token ids, int64 [n, tokens].

        Raises `OverBudget` if that would be more queries than `limit`; none of them is answered.
        """
        keys = [row.numpy().tobytes() for row in texts.cpu()]
        wanted = self._seen | set(keys)
        if len(wanted) > self._limit:
            raise OverBudget(f"queries={len(wanted)}: must be <= {self._limit}, the budget")
        self._seen = wanted
        unknown = [i for i, key in enumerate(keys) if key not in self._notes]
        fresh: dict[bytes, torch.Tensor] = {}
        at_once = windows_a_pass(self._model, texts)
        for at in range(0, len(unknown), at_once):
            part = unknown[at : at + at_once]
            for i, logits in zip(part, self._run(texts[part]), strict=True):
                fresh[keys[i]] = logits
                if self._noted_bytes + logits.nbytes <= self._notes_bytes:
                    self._notes[keys[i]] = logits.clone()
                    self._noted_bytes += logits.nbytes
        answers = torch.stack([self._notes[k] if k in self._notes else fresh[k] for k in keys])
        return answers.roll(1, dims=0) if self._mode == "shuffled" else answers

    @torch.no_grad()
    def _run(self, texts: torch.Tensor) -> torch.Tensor:
        device = next(self._model.parameters()).device
        if self._mode == "noise":
            generator = torch.Generator().manual_seed(int(texts.sum()))
            shape = (*texts.shape, vocabulary_size(self._model))
            return torch.randn(shape, generator=generator).to(device)
        logits: torch.Tensor = self._model(input_ids=texts.to(device), use_cache=False).logits.float()
        return logits
