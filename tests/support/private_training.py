"""Small adapters, their private training, and the gradient of one record."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.models.adapters import attach, get_vector, set_vector, trained_parameters
from tests.support.tiny import VOCABULARY, tiny_llama

KEY = bytes(range(32))
KINDS = ("lora", "ffa", "core")
ITEMS = [Encoded(ids=(1, *range(10 + i, 16 + i + i % 3), 2), response_start=4 + i % 2) for i in range(12)]
CHOSEN = 200  # the token


@pytest.fixture(autouse=True)
def without_warnings_of_opacus():
    """Opacus warns of what we do not use. A module of tests that imports this has it for each of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="opacus|torch")
        yield


def adapted(kind="lora", seed=0):
    tuned = attach(tiny_llama(2), AdapterConfig(kind=kind, rank=2, alpha=4), seed=seed)
    rng = np.random.default_rng(seed)
    set_vector(tuned, rng.normal(0, 0.05, len(get_vector(tuned))).astype(np.float32))
    return tuned


def tune(
    tuned, *, noise=0.0, clip=1e9, rate=1.0, steps=3, items=ITEMS, key=KEY, pull=None, lr=0.1, batch=4
):
    train_privately(
        tuned,
        items,
        steps=steps,
        local=LocalConfig(optimizer="sgd", learning_rate=lr, batch_size=batch),
        private=RecordNoise(noise_multiplier=noise, clip_norm=clip, sampling_rate=rate),
        noise=Noise(key),
        pad_id=0,
        subject="client x, round 0",
        pull=pull,
    )
    return get_vector(tuned)


def record_gradient(tuned, item):
    loss = batch_loss(tuned, training_batch([item], pad_id=0, device="cpu"))
    parts = torch.autograd.grad(loss, trained_parameters(tuned))
    return torch.cat([p.reshape(-1) for p in parts]).numpy()


def gpt2(positions):
    """A model with learned positions, which fails beyond the last of them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=positions, n_embd=16, n_layer=2, n_head=2, attn_pdrop=0.0,
        embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return attach(GPT2LMHeadModel(config).eval(), AdapterConfig(rank=2, alpha=4), seed=0)


def has_fewer_embeddings():
    tuned = adapted()
    base = tuned.get_base_model()
    for name, place in (("embed_tokens", base.model), ("lm_head", base)):
        whole = getattr(place, name)
        whole.weight = nn.Parameter(whole.weight[:CHOSEN].detach().clone(), requires_grad=False)
    base.model.embed_tokens.num_embeddings = CHOSEN
    return tuned


class Refused(Exception):
    pass
