"""The search for a private recipe on the real LLM takes each record's own gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedproxy_secure.config import load_config
from fedproxy_secure.config.pipeline import AdapterConfig
from fedproxy_secure.data.encode import batch_loss, encode_records, training_batch
from fedproxy_secure.data.worlds.demo_tasks import demo_records
from fedproxy_secure.federate.record_gradients import record_gradient
from fedproxy_secure.models.adapters import attach, trained_parameters
from fedproxy_secure.models.llm import load_llm
from tests.bench.dp_real import CONFIG, VARIANTS
from tests.support.record_gradients import RecordGradients


@pytest.mark.parametrize("kind", ["core", "ffa", "lora"])
def test_gradients_from_one_padded_pass_are_those_of_passes_of_their_own(kind: str) -> None:
    model, tokenizer = load_llm("demo")
    # with dropout PEFT's own pass is taken, as it is in bfloat16
    dropout = 0.0 if kind == "core" else 1e-9
    tuned = attach(
        model, AdapterConfig.model_validate({"kind": kind, "rank": 4, "dropout": dropout}), seed=0
    )
    parameters = trained_parameters(tuned)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in parameters:
            torch.nn.init.normal_(p, std=0.02)
    items = encode_records(demo_records("clinic", "train", 3), tokenizer, max_tokens=128).items
    pad = tokenizer.pad_token_id

    def loss(chosen: np.ndarray) -> torch.Tensor:
        return batch_loss(tuned, training_batch([items[i] for i in chosen], pad_id=pad, device="cpu"))

    caught = RecordGradients(tuned)
    together = caught.of(loss(np.arange(3)) * 3)
    caught.close()
    for index in range(3):
        _, alone = record_gradient(loss, index, parameters)
        for ours, own in zip(together, alone, strict=True):
            # a small number of a gradient is the sum of large ones: its error is of their size
            torch.testing.assert_close(ours[index], own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_search_is_a_valid_setting_at_epsilon_8(name: str) -> None:
    config = load_config(CONFIG, VARIANTS[name])
    assert config.privacy.unit == "record"
    assert config.privacy.target_epsilon == 8
