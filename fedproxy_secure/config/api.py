"""Settings of the owner's API: what customers are told of the fused LLM, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedproxy_secure.config.sections import Positive, Section

Answers = Literal["text", "top_k", "logits"]
ANSWERS: tuple[Answers, ...] = ("text", "top_k", "logits")  # each tells more than the one before
TOKENS_A_QUERY = 64  # what a query may have on average where `tokens` is left out; A12's have as many


class ApiConfig(Section):
    """The owner's API: what customers are told of the fused LLM, and how often. Stands on every report.

    A run trains the same whatever stands here. It is what attacks on the fused LLM are told, so that their
    numbers hold for an API that tells no more, and `api ask` tells no more.

    `answers` says what follows each token of a text: `logits` of all tokens, `top_k`: the `top_k` likeliest
    tokens with their probabilities, or `text`: the likeliest token alone. `noise` is the standard
    deviation, in nats, of a perturbation of each logit. It depends on a secret key and on the text up to
    there, so that asking again brings the same answer while `noise` stays the same. `queries` is how many
    texts a customer may ask in all, `tokens` how many tokens they may have together; left out: 64 for each
    query, or no limit without `queries`.
    """

    answers: Answers = "logits"
    top_k: Annotated[int, Field(ge=1, le=100)] = 20
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    queries: Positive | None = None
    tokens: Positive | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens that a customer's texts may have together; None: no limit."""
        if self.tokens is not None:
            return self.tokens
        return None if self.queries is None else self.queries * TOKENS_A_QUERY

    @property
    def limited(self) -> bool:
        """Whether the number of a customer's queries or tokens has a limit."""
        return self.token_limit is not None

    @property
    def open(self) -> bool:
        """Whether it tells all logits as they are, to any number of texts: nothing is held back."""
        return self.answers == "logits" and not self.noise and not self.limited

    def texts_of(self, tokens: int) -> int | None:
        """Return how many texts of so many tokens each a customer may ask; None: no limit."""
        limits = [] if self.queries is None else [self.queries]
        limits += [] if self.token_limit is None else [self.token_limit // tokens]
        return min(limits, default=None)

    @property
    def says(self) -> str:
        """What is assumed of the API, in a sentence or two for reports."""
        told = {
            "logits": "all logits of the next token",
            "top_k": f"the {self.top_k} likeliest next tokens with their probabilities",
            "text": "the likeliest next token alone",
        }[self.answers]
        noisy = f", under fixed noise of {self.noise:g} nats a logit" if self.noise else ""
        limits = [] if self.queries is None else [f"{self.queries:,} texts"]
        limits += [] if self.token_limit is None else [f"{self.token_limit:,} tokens"]
        many = f"at most {' and '.join(limits)} in all" if limits else "as many texts as it likes"
        holds = (
            "" if self.open else " What attacks say of the fused LLM holds for an API that tells no more."
        )
        return f"API (assumed): after each token a customer is told {told}{noisy}; {many}.{holds}"
