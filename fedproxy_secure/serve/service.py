"""The owner's API over a model folder: each query is checked, counted on disk, then answered by the policy.

    api = OwnersApi(Path("runs/x/seed-0/fused"), policy=config.api, ledger=QueryLedger(file=...))
    answers = api.ask("acme", [ids])       # what the policy discloses after each token
    text = api.write("acme", ids, count=20)

It is a Python object, not a server. The service in front of it must authenticate customers, and limit the
size, the rate and the concurrency of requests.

Guarantees: nothing is computed for a query that the ledger has not counted, and nothing is returned that
the policy does not disclose (`disclosure`). A refused query is not counted. A counted query stays counted,
even after an error, an interrupt or a killed process. Not guaranteed: that response times or other side
effects on the machine reveal nothing. The model, its weights and its logits are in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedproxy_secure.config import ApiConfig
from fedproxy_secure.errors import QueryRefused
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.models.passes import vocabulary_size
from fedproxy_secure.serve.disclosure import ApiAnswer, joined, tell
from fedproxy_secure.serve.ledger import QueryLedger, Usage

MOST_TOKENS = 2**14  # in one call, whose answers are in memory together: 3 GiB of SmolLM2's logits


class OwnersApi:
    """A model folder that answers customers' queries only as a policy allows.

    Args:
        folder: the model's folder.
        policy: what answers disclose, and how much a customer may ask.
        ledger: counts what customers have asked so far.
        most_tokens: limit on the tokens of one call, texts and answers together, whatever the policy
            grants.

    Raises `ModelError` for a model that cannot be loaded, `ConfigError` or `RunFolderError` for a ledger
    that cannot be used.
    """

    def __init__(
        self, folder: Path, *, policy: ApiConfig, ledger: QueryLedger, most_tokens: int = MOST_TOKENS
    ) -> None:
        self.policy, self.ledger, self.most_tokens = policy, ledger, most_tokens
        self._key = ledger.noise_key()
        model, self.tokenizer = load_llm(folder, dtype="float32")
        self._model: Any = model
        self._tokens = vocabulary_size(model)
        self._longest: int | None = getattr(self._model.config, "max_position_embeddings", None)

    def asked(self, customer: str) -> Usage:
        """Return a customer's usage so far."""
        return self.ledger.asked(customer)

    @torch.inference_mode()
    def ask(self, customer: str, texts: Sequence[Sequence[int]]) -> list[ApiAnswer]:
        """Return what the policy discloses after each token of each text.

        Args:
            customer: the customer's name.
            texts: token ids of each text; each counts as one query and as its number of tokens.

        Raises `QueryRefused` for a text that the model cannot read, for more than `most_tokens` in one
        call, or if a limit would be exceeded; then no text is answered, and none is counted.
        """
        lengths = [len(text) for text in texts]
        self._check_call(max(lengths, default=0), "ask a shorter text")
        self._check_call(sum(lengths), "ask in several calls")
        for text in texts:
            self._check(text, written=0)
        self.ledger.spend(customer, lengths, self.policy)
        answers = []
        for text in texts:
            ids = torch.tensor(text, dtype=torch.int64)
            logits = self._model(input_ids=ids[None].to(self._model.device), use_cache=False).logits[0]
            answers.append(self._answer(logits, ids))
        return answers

    @torch.inference_mode()
    def write(self, customer: str, text: Sequence[int], *, count: int) -> ApiAnswer:
        """Write `count` tokens after a text, each the likeliest; return what the policy discloses of each.

        This is one query, with the text's tokens and `count` more. Raises what `ask` raises.
        """
        from transformers import DynamicCache

        if count < 1:
            raise QueryRefused(f"tokens to write={count}: must be >= 1")
        self._check_call(len(text) + count, "ask a shorter text or for fewer tokens")
        self._check(text, written=count)
        self.ledger.spend(customer, [len(text) + count], self.policy)
        ids, cache, answers = list(text), DynamicCache(), list[ApiAnswer]()
        inputs = ids
        for _ in range(count):
            output = self._model(
                input_ids=torch.tensor([inputs], device=self._model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            context = torch.tensor(ids, dtype=torch.int64)
            answers.append(self._answer(output.logits[0], context, start=len(ids) - 1).part(0))
            inputs = [int(answers[-1].likeliest)]
            ids = ids + inputs
        return joined(answers)

    def _answer(self, logits: torch.Tensor, ids: torch.Tensor, *, start: int = 0) -> ApiAnswer:
        return tell(logits, ids, self.policy, self._key, start=start)

    def _check_call(self, tokens: int, remedy: str) -> None:
        """Raise `QueryRefused` for a call that would keep this process busy for too long."""
        if tokens > self.most_tokens:
            raise QueryRefused(
                f"tokens={tokens} in one call: must be <= {self.most_tokens}; {remedy}, or give OwnersApi "
                "a larger most_tokens"
            )

    def _check(self, text: Sequence[int], *, written: int) -> None:
        """Raise `QueryRefused` for a text that the model cannot read."""
        if len(text) == 0:
            raise QueryRefused("text: has no token; must have at least one")
        outside = [t for t in text if not 0 <= t < self._tokens]
        if outside:
            raise QueryRefused(f"token={outside[0]}: must be >= 0 and < {self._tokens}, the model's tokens")
        if self._longest is not None and len(text) + written > self._longest:
            raise QueryRefused(
                f"tokens={len(text) + written}: must be <= {self._longest}, what the model reads; "
                "ask a shorter text"
            )
