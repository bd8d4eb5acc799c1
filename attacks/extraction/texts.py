"""Texts that an adversary can have: the LLM's public text where it is known, else samples of a model.

The demo LLM's public text is the synthetic world's stories, so whoever recognises its tokenizer can write
more of them. Nothing is assumed of any other LLM: texts are sampled from the model in hand, at temperature
1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import text_ids
from fedproxy_secure.models.llm import Tokenizer, load_tokenizer
from fedproxy_secure.world.stories import stories


def texts_for(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, rng: np.random.Generator
) -> torch.Tensor:
    """Return token ids, int64 [count, tokens]: stories for the demo's tokenizer, else model samples."""
    seed = int(rng.integers(2**31))
    if is_demo(tokenizer):
        return story_windows(tokenizer, count=count, tokens=tokens, seed=seed)
    return sampled(model, tokenizer, count=count, tokens=tokens, seed=seed)


def is_demo(tokenizer: Tokenizer) -> bool:
    """Return whether this is the embedded demo LLM's tokenizer."""
    return bool(tokenizer.get_vocab() == load_tokenizer("demo").get_vocab())


def story_windows(tokenizer: Tokenizer, *, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Return windows of the demo world's stories, int64 [count, tokens].

    Each story stands between a start token and an end token.
    """
    ids: list[int] = []
    for text in stories(seed):
        ids += [tokenizer.bos_token_id, *text_ids(text, tokenizer), tokenizer.eos_token_id]
        if len(ids) >= count * tokens:
            break
    return torch.tensor(ids[: count * tokens], dtype=torch.int64).view(count, tokens)


@torch.no_grad()
def sampled(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, seed: int, at_once: int = 32
) -> torch.Tensor:
    """Return texts drawn from a model token by token after its start token, int64 [count, tokens].

    A tokenizer without a start token begins with its end token, one without either with a random token.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    batches = []
    for at in range(0, count, at_once):
        n = min(at_once, count - at)
        if first is None:
            last = torch.randint(len(tokenizer), (n, 1), generator=generator)
        else:
            last = torch.full((n, 1), int(first))
        ids, cache = [last], DynamicCache()
        for _ in range(tokens - 1):
            out: Any = model(input_ids=last.to(device), past_key_values=cache, use_cache=True)
            p = out.logits[:, -1].float().softmax(-1).cpu()
            last = torch.multinomial(p, 1, generator=generator)
            ids.append(last)
        batches.append(torch.cat(ids, dim=1))
    return torch.cat(batches)
