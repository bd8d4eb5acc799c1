"""The fused LLM behind its API: it answers texts with what its policy discloses.

One **query** is one text. Its answer is what the policy (`api` in the run's settings) discloses after each
of its tokens: all logits (serving software calls these prompt log-probabilities), the likeliest tokens, or
only the likeliest one. With an API that answers only after the last token, an attacker would need one query
per token. Every text is counted once; a repeated text is answered from the customer's own cache.

Answers come from the owner's own code (`fedproxy_secure.serve.disclosure`). The key of its noise is a fixed
substitute for the owner's secret key, so that the same seed gives the same finding; no attack reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from attacks.base import Inconclusive
from fedproxy_secure.config import ApiConfig
from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.models.passes import vocabulary_size, windows_a_pass
from fedproxy_secure.serve.disclosure import ApiAnswer, joined, tell

Mode = Literal["true", "shuffled", "noise"]
EXTRACTION = (
    ("MITRE ATLAS", "5", "AML.T0024.002"),
    ("OWASP LLM", "2025", "LLM10"),
    ("NIST AI RMF", "1.0", "MEASURE 2.7"),
    ("EU AI Act", "2024/1689", "Art. 15(5)"),
)
OPEN = ApiConfig()
NOISE_KEY = Secret(digest(b"the key of the noise in evaluations"))
NOTES_BYTES = 2**28  # of cached answers; other answers are computed again, which costs no query


class OverBudget(Inconclusive):
    """The query would exceed the budget."""


class Api:
    """A model folder that only answers queries, by a policy, and at most `limit` texts in all.

    Args:
        folder: the model's folder.
        limit: the most texts that the adversary asks; a stricter limit of the policy holds, too.
        policy: what the API discloses; by default all logits.
        mode: `true`, or one of two negative controls: `shuffled` gives every text the answer to another
            text of the same call; a text asked alone gets the answer to itself with its halves swapped;
            that does not count as a query. `noise` answers with noise.
        notes_bytes: the largest size of the customer's cache.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int,
        policy: ApiConfig = OPEN,
        mode: Mode = "true",
        notes_bytes: int = NOTES_BYTES,
    ) -> None:
        self._model, _ = load_llm(folder, dtype="float32")
        self.policy = policy
        self._limit, self._mode, self._notes_bytes = limit, mode, notes_bytes
        self._seen: dict[bytes, int] = {}  # a text, and how many tokens it has
        self._notes: dict[bytes, ApiAnswer] = {}
        self._noted_bytes = 0

    @property
    def asked(self) -> int:
        """The number of queries so far."""
        return len(self._seen)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that it knows, which its public tokenizer reveals."""
        return vocabulary_size(self._model)

    def ask(self, texts: torch.Tensor) -> ApiAnswer:
        """Return what the policy tells after every token of texts, int64 [n, tokens].

        Raises `OverBudget` if that would be more queries than `limit`, or more queries or tokens than the
        policy allows; none of them is answered.
        """
        keys = [row.numpy().tobytes() for row in texts.cpu()]
        requested = self._seen | dict.fromkeys(keys, texts.shape[1])
        self._check(requested)
        self._seen = requested
        if self._mode == "shuffled" and len(texts) == 1:
            texts = texts.roll(texts.shape[1] // 2, dims=1)
            keys = [texts[0].cpu().numpy().tobytes()]
        unknown = [i for i, key in enumerate(keys) if key not in self._notes]
        fresh: dict[bytes, ApiAnswer] = {}
        at_once = windows_a_pass(self._model, texts)
        for at in range(0, len(unknown), at_once):
            part = unknown[at : at + at_once]
            for i, logits in zip(part, self._run(texts[part]), strict=True):
                answer = tell(logits, texts[i], self.policy, NOISE_KEY)
                fresh[keys[i]] = answer
                if self._noted_bytes + answer.nbytes <= self._notes_bytes:
                    self._notes[keys[i]] = answer
                    self._noted_bytes += answer.nbytes
        answers = [self._notes[k] if k in self._notes else fresh[k] for k in keys]
        return joined(answers[-1:] + answers[:-1] if self._mode == "shuffled" else answers)

    def logits(self, texts: torch.Tensor) -> torch.Tensor:
        """Return all logits after each token of texts, float32 [n, tokens, V]; the API must tell them."""
        numbers = self.ask(texts).numbers
        assert numbers is not None
        return numbers

    def _check(self, requested: dict[bytes, int]) -> None:
        """Raise `OverBudget` if these texts are more than the adversary may ask."""
        count_texts, tokens = len(requested), sum(requested.values())
        limits = (
            ("queries", count_texts, self._limit, "the budget"),
            ("queries", count_texts, self.policy.queries, "api.queries"),
            ("tokens", tokens, self.policy.token_limit, "api.tokens"),
        )
        for name, count, most, source in limits:
            if most is not None and count > most:
                raise OverBudget(f"{name}={count}: must be <= {most}, {source}")

    @torch.no_grad()
    def _run(self, texts: torch.Tensor) -> torch.Tensor:
        device = next(self._model.parameters()).device
        if self._mode == "noise":
            generator = torch.Generator().manual_seed(int(texts.sum()))
            shape = (*texts.shape, vocabulary_size(self._model))
            return torch.randn(shape, generator=generator).to(device)
        logits: torch.Tensor = self._model(input_ids=texts.to(device), use_cache=False).logits.float()
        return logits
