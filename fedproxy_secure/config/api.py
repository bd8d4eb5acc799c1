"""Settings of the owner's API: what customers are told of the fused LLM, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedproxy_secure.config.sections import Positive, Section

Answers = Literal["text", "top_k", "logits"]
ANSWERS: tuple[Answers, ...] = ("text", "top_k", "logits")  # each tells more than the one before
TOKENS_A_QUERY = 64  # average allowance per query if `tokens` is left out; queries of A12 are this long


class ApiConfig(Section):
    """The owner's API: what it returns to customers about the fused LLM, and how often they may query it.

    The section does not change training. It limits what attacks on the fused LLM receive, so that their
    numbers hold for an API that returns no more, and it limits `api ask`. Every report states it.

    `answers` is what the API returns after each token of a text: `logits` (the logits of all tokens),
    `top_k` (the `top_k` likeliest tokens with their probabilities) or `text` (only the likeliest token).
    `noise` is the standard deviation, in nats, of the noise added to each logit. The noise is a function of
    a secret key and the text so far: repeating a query gives the same answer as long as `noise` is not
    changed. `queries` is how many texts a customer may send in total, and `tokens` how many tokens those
    texts may have together. If `tokens` is left out, it is 64 per query, or unlimited without `queries`.
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
        """Whether the API returns all logits unchanged and without a limit: nothing is held back."""
        return self.answers == "logits" and not self.noise and not self.limited

    def texts_of(self, tokens: int) -> int | None:
        """Return how many texts of so many tokens each a customer may ask; None: no limit."""
        limits = [] if self.queries is None else [self.queries]
        limits += [] if self.token_limit is None else [self.token_limit // tokens]
        return min(limits, default=None)

    @property
    def says(self) -> str:
        """What is assumed of the API, in a sentence or two for reports."""
        answers = {
            "logits": "all logits of the next token",
            "top_k": f"the {self.top_k} likeliest next tokens with their probabilities",
            "text": "only the likeliest next token",
        }[self.answers]
        noisy = f", with fixed noise of {self.noise:g} nats on each logit" if self.noise else ""
        limits = [] if self.queries is None else [f"{self.queries:,} texts"]
        limits += [] if self.token_limit is None else [f"{self.token_limit:,} tokens"]
        many = f"at most {' and '.join(limits)} per customer" if limits else "without a query limit"
        holds = (
            ""
            if self.open
            else " Results of attacks on the fused LLM hold only for an API that returns no more than this."
        )
        return f"API (assumed): after each token it returns {answers}{noisy}; {many}.{holds}"
