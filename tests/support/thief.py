"""Models and texts of an adversary's starts."""

import numpy as np
import torch

from attacks.base import Budget
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import VOCABULARY

BUDGET = Budget(seconds=3600)


def narrow(model, channels=16):
    """The model with its first channels alone."""
    with torch.no_grad():
        for block in blocks_of(model):
            for name in ("gate_proj", "up_proj"):
                linear = getattr(block.mlp, name)
                linear.weight = torch.nn.Parameter(linear.weight[:channels].clone())
            down = block.mlp.down_proj
            down.weight = torch.nn.Parameter(down.weight[:, :channels].clone())
    model.config.intermediate_size = channels
    return model


def texts(count, tokens=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, size=(count, tokens)))


@torch.no_grad()
def outputs(model, ids):
    return model(input_ids=ids, use_cache=False).logits
