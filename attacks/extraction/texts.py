"""Texts that an adversary can have, and texts to judge it by.

The demo LLM's public text is the synthetic world's stories, so whoever recognises its tokenizer can write
more of them. For any other LLM half of an adversary's texts are public English, the world's texts about
real things, and half are sampled from the model in hand, at temperature 1: a model learns nothing new from
its own samples, but keeps what it knows. It is judged on samples of the LLM, which it does not see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import text_ids
from fedproxy_secure.models.llm import Tokenizer, load_tokenizer
from fedproxy_secure.world.real_texts import real_texts
from fedproxy_secure.world.stories import stories


def held_out_texts(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, rng: np.random.Generator
) -> torch.Tensor:
    """Return texts to judge by, int64 [count, tokens]: stories for the demo's tokenizer, else samples."""
    seed = int(rng.integers(2**31))
    if is_demo(tokenizer):
        return story_windows(tokenizer, count=count, tokens=tokens, seed=seed)
    return sampled(model, tokenizer, count=count, tokens=tokens, seed=seed)


def known_texts(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, rng: np.random.Generator
) -> torch.Tensor:
    """Return an adversary's texts, int64 [count, tokens]: stories, else public text and samples in turn."""
    seed = int(rng.integers(2**31))
    if is_demo(tokenizer):
        return story_windows(tokenizer, count=count, tokens=tokens, seed=seed)
    texts = torch.empty((count, tokens), dtype=torch.int64)
    texts[::2] = public_windows(tokenizer, count=(count + 1) // 2, tokens=tokens, seed=seed)
    texts[1::2] = sampled(model, tokenizer, count=count // 2, tokens=tokens, seed=seed)
    return texts


def is_demo(tokenizer: Tokenizer) -> bool:
    """Return whether this is the embedded demo LLM's tokenizer."""
    return bool(tokenizer.get_vocab() == load_tokenizer("demo").get_vocab())


def story_windows(tokenizer: Tokenizer, *, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Return windows of the demo world's stories, int64 [count, tokens].

    Each story stands between a start token and an end token.
    """
    return _windows(stories(seed), tokenizer, count=count, tokens=tokens)


def public_windows(tokenizer: Tokenizer, *, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Return windows of English texts about real things, int64 [count, tokens], as `story_windows`."""
    return _windows(real_texts(seed), tokenizer, count=count, tokens=tokens)


def _windows(texts: Iterable[str], tokenizer: Tokenizer, *, count: int, tokens: int) -> torch.Tensor:
    begin, end = ([] if t is None else [int(t)] for t in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    ids: list[int] = []
    for text in texts:
        if len(ids) >= count * tokens:
            break
        ids += [*begin, *text_ids(text, tokenizer), *end]
    return torch.tensor(ids[: count * tokens], dtype=torch.int64).view(count, tokens)


def sampled(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, seed: int, at_once: int = 32
) -> torch.Tensor:
    """Return texts drawn from a model token by token after its start token, int64 [count, tokens].

    A tokenizer without a start token begins with its end token, one without either with a random token.
    """
    generator = torch.Generator().manual_seed(seed)
    first = start_token(tokenizer)
    batches = []
    for at in range(0, count, at_once):
        n = min(at_once, count - at)
        if first is None:
            first_tokens = torch.randint(len(tokenizer), (n, 1), generator=generator)
        else:
            first_tokens = torch.full((n, 1), first)
        batches.append(continued(model, first_tokens, tokens=tokens - 1, generator=generator))
    return torch.cat(batches)


def start_token(tokenizer: Tokenizer) -> int | None:
    """Return the token to begin a text with: the start token, else the end token, else None."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if first is None else int(first)


@torch.no_grad()
def continued(
    model: nn.Module, begun: torch.Tensor, *, tokens: int, generator: torch.Generator
) -> torch.Tensor:
    """Return texts continued by `tokens` tokens each, drawn from the model at temperature 1.

    Args:
        begun: the texts' tokens, int64 [n, k], k >= 1.

    Returns:
        int64 [n, k + tokens].
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids, last, cache = [begun], begun, DynamicCache()
    for _ in range(tokens):
        output: Any = model(
            input_ids=last.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        p = output.logits[:, -1].float().softmax(-1).cpu()
        last = torch.multinomial(p, 1, generator=generator)
        ids.append(last)
    return torch.cat(ids, dim=1)
