"""Texts that an adversary can have: public ones where the LLM's public text is known, else its own model's.

The demo LLM's public text is the synthetic world's stories, so whoever meets its tokenizer can write more
of them. Of another LLM nothing is assumed: texts are sampled from the model in hand, at temperature 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import text_ids
from fedproxy_secure.llm import Tokenizer, load_tokenizer
from fedproxy_secure.world.stories import stories


def texts_for(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, rng: np.random.Generator
) -> torch.Tensor:
    """Token ids, int64 [count, tokens]: stories if the tokenizer is the demo's, else samples of `model`."""
    seed = int(rng.integers(2**31))
    if is_demo(tokenizer):
        return story_windows(tokenizer, count=count, tokens=tokens, seed=seed)
    return sampled(model, tokenizer, count=count, tokens=tokens, seed=seed)


def is_demo(tokenizer: Tokenizer) -> bool:
    """Whether this is the embedded demo LLM's tokenizer."""
    return bool(tokenizer.get_vocab() == load_tokenizer("demo").get_vocab())


def story_windows(tokenizer: Tokenizer, *, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Windows of the demo world's stories, each between start and end token: int64 [count, tokens]."""
    ids: list[int] = []
    for text in stories(seed):
        ids += [tokenizer.bos_token_id, *text_ids(text, tokenizer), tokenizer.eos_token_id]
        if len(ids) >= count * tokens:
            break
    return torch.tensor(ids[: count * tokens], dtype=torch.int64).view(count, tokens)


@torch.no_grad()
def sampled(
    model: nn.Module, tokenizer: Tokenizer, *, count: int, tokens: int, seed: int, at_once: int = 64
) -> torch.Tensor:
    """Texts drawn from a model token by token, int64 [count, tokens], after its start token.

    A tokenizer without a start token begins with its end token, one without either with any token.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    made = []
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
        made.append(torch.cat(ids, dim=1))
    return torch.cat(made)
