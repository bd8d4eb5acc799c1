"""What an API discloses of a model's logits: all of them, the likeliest tokens, or the likeliest one.

A policy's `answers` and `noise` are applied here and nowhere else, both for the service that customers use
and for the API that attacks query.

Guarantees: an `ApiAnswer` is computed from the perturbed logits (`noise`) and keeps only what the policy
discloses: with `text` it holds token ids and no other number, with `top_k` no number about a token that it
does not name. Its tensors own their memory, so they give no access to the other logits. Not guaranteed:
anything about a caller that holds the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedproxy_secure.config import Answers, ApiConfig
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.serve.noise import noise


@dataclass(frozen=True, kw_only=True)
class ApiAnswer:
    """An API's answer after each of some tokens, whose shape is the leading shape of its tensors.

    Args:
        answers: the kind of answer.
        tokens: next tokens, the likeliest first, int64 [..., k], or [..., 1] for `text`; None for `logits`.
        numbers: for `logits` the logits, float32 [..., V]; for `top_k` log-probabilities in nats, float32
            [..., k]; None for `text`.
    """

    answers: Answers
    tokens: torch.Tensor | None = None
    numbers: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The number of bytes of its tensors."""
        return sum(part.nbytes for part in (self.tokens, self.numbers) if part is not None)

    @property
    def likeliest(self) -> torch.Tensor:
        """The likeliest next token, int64 [...], which every kind of answer contains."""
        if self.tokens is not None:
            return self.tokens[..., 0]
        assert self.numbers is not None
        return self.numbers.argmax(-1)

    def part(self, index: int | slice | torch.Tensor) -> ApiAnswer:
        """Return the part at an index along the first dimension."""
        return ApiAnswer(
            answers=self.answers,
            tokens=None if self.tokens is None else self.tokens[index],
            numbers=None if self.numbers is None else self.numbers[index],
        )


def tell(
    logits: torch.Tensor, ids: torch.Tensor, policy: ApiConfig, key: Secret | None = None, *, start: int = 0
) -> ApiAnswer:
    """Return the answer that a policy allows from the logits after the tokens of a text.

    Args:
        logits: float [n - start, V], after each token of the text from token `start` on.
        ids: the whole text's tokens, int64 [n].
        policy: what the answer may contain.
        key: the secret key of the noise; needed if the policy has noise.
        start: index of the first token that the logits follow.

    Raises `ValueError` if the policy has noise and there is no key.
    """
    logits = logits.float()
    if policy.noise:
        if key is None:
            raise ValueError(f"noise={policy.noise}: needs a key")
        drawn = noise(key, ids.cpu().numpy(), level=policy.noise, size=logits.shape[-1], start=start)
        logits = logits + torch.from_numpy(drawn).to(logits.device)
    if policy.answers == "logits":
        return ApiAnswer(answers="logits", numbers=logits.clone())
    if policy.answers == "text":
        return ApiAnswer(answers="text", tokens=logits.argmax(-1, keepdim=True))
    best = logits.log_softmax(-1).topk(min(policy.top_k, logits.shape[-1]), dim=-1)
    return ApiAnswer(answers="top_k", tokens=best.indices, numbers=best.values)


def joined(parts: list[ApiAnswer]) -> ApiAnswer:
    """Join answers of the same kind and shape along a new first dimension."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    numbers = [part.numbers for part in parts if part.numbers is not None]
    return ApiAnswer(
        answers=parts[0].answers,
        tokens=torch.stack(tokens) if tokens else None,
        numbers=torch.stack(numbers) if numbers else None,
    )
