"""Gradient checkpointing: the same losses and gradients, less kept in between, each party's own choice."""

import numpy as np
import pytest
import torch

from fedproxy_secure.compress.healing import heal
from fedproxy_secure.config import AdapterConfig, HealConfig, LocalConfig, parse_config
from fedproxy_secure.data.encode import Encoded, batch_loss, records_loss, training_batch
from fedproxy_secure.experiments.inputs import Inputs
from fedproxy_secure.experiments.stages import heal_proxy
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.federate.training import train
from fedproxy_secure.models import passes
from fedproxy_secure.models.adapters import attach, get_vector, set_vector, trained_parameters
from fedproxy_secure.models.llm import blocks_of, load_llm
from fedproxy_secure.models.packing.packed import can_pack
from tests.support.tiny import tiny_llama, tiny_settings

KINDS = ["lora", "ffa", "core"]  # `core` takes each block's own pass, the others that of `fast_blocks`
ITEMS = [
    Encoded(ids=(1, *(7 * i % 200 + 5 for i in range(length))), response_start=3)
    for length in (40, 9, 61, 23)
]


def demo(kind: str = "lora", **settings):
    model, _ = load_llm("demo", device="cpu", dtype="float32")
    tuned = attach(model, AdapterConfig(kind=kind, rank=4, alpha=8, **settings), seed=0)
    size = len(get_vector(tuned))
    set_vector(tuned, np.random.default_rng(1).normal(0, 0.05, size).astype(np.float32))
    return tuned.train()


def packed(model, **checkpointing):
    assert can_pack(model)
    return records_loss(model, ITEMS, pad_id=0, **checkpointing)


def padded(model, **checkpointing):
    return batch_loss(model, training_batch(ITEMS, pad_id=0, device="cpu"), **checkpointing)


def loss_and_gradients(loss, model, **checkpointing):
    torch.manual_seed(3)  # of dropout
    value = loss(model, **checkpointing)
    return [value.detach(), *torch.autograd.grad(value, trained_parameters(model))]


@pytest.mark.parametrize("loss", [packed, padded])
@pytest.mark.parametrize("settings", [*({"kind": kind} for kind in KINDS), {"dropout": 0.3}])
def test_losses_and_gradients_are_the_same(loss, settings):
    model = demo(**settings)
    expected = loss_and_gradients(loss, model)
    found = loss_and_gradients(loss, model, checkpointing=True)
    assert float(expected[1].abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not any("forward" in block.__dict__ for block in blocks_of(model.get_base_model()))


def kept_bytes(loss, model, **checkpointing) -> int:
    """Return the bytes that autograd keeps from the forward to the backward pass, without parameters."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model, **checkpointing)
    total = sum(kept.values())
    value.backward()
    return total


@pytest.mark.parametrize("loss", [packed, padded])
@pytest.mark.parametrize("kind", KINDS)
def test_less_is_kept_for_the_backward_pass(loss, kind):
    model = demo(kind)
    blocks = blocks_of(model.get_base_model())
    calls: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args: calls.append(args[0].nbytes)) for block in blocks
    ]
    everything = kept_bytes(loss, model)
    calls.clear()
    around_blocks = kept_bytes(loss, model, checkpointing=True)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(blocks)
    # checkpointing holds the inputs of blocks itself, so that hooks of autograd do not see them
    assert around_blocks + sum(calls) < everything / 3
    assert kept_bytes(loss, model) >= everything / 2  # off by default


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_a_client_trains_to_the_same_adapter(kind):
    def trained(**checkpointing):
        model = demo(kind)
        loss = train(
            model, ITEMS, steps=3, local=LocalConfig(batch_size=2), pad_id=0,
            rng=np.random.default_rng(0), subject="test", **checkpointing,
        )  # fmt: skip
        return loss, get_vector(model)

    (loss, vector), (same_loss, same_vector) = trained(), trained(checkpointing=True)
    assert loss == pytest.approx(same_loss, abs=1e-6)
    np.testing.assert_allclose(same_vector, vector, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_proxy_is_healed_to_the_same_weights(dtype):
    windows = torch.from_numpy(np.random.default_rng(0).integers(3, 200, (12, 16)))

    def healed(**checkpointing):
        llm, proxy = tiny_llama(4).to(dtype), tiny_llama(2, seed=1).to(dtype)
        settings = HealConfig(steps=3, batch_size=2)
        heal(proxy, llm, windows, settings, seed=0, **checkpointing)
        return list(proxy.parameters())

    torch.testing.assert_close(healed(checkpointing=True), healed(), rtol=1e-6, atol=1e-6)


def test_it_is_off_by_default_and_each_party_s_own_choice():
    plain, chosen = (parse_config(raw) for raw in ({}, {"model": {"checkpointing": True}}))
    assert not plain.model.checkpointing
    assert plain.sha256() == chosen.sha256()
    assert plain.cell_sha256() == chosen.cell_sha256()
    job, asked = (FederationJob.from_config(config, seed=0) for config in (plain, chosen))
    assert asked.checkpointing
    assert asked.agreed_sha256() == job.agreed_sha256()
    assert not asked.without_places().checkpointing
    own = policy_for(job, 0, seeds=(0,)).model_copy(update={"checkpointing": True})
    assert own.own_job(job).checkpointing
    assert own.sha256() == policy_for(job, 0, seeds=(0,)).sha256()


@pytest.mark.parametrize("on", [False, True])
def test_clients_pooled_training_and_healing_do_as_the_setting_says(tmp_path, monkeypatch, on):
    raw = tiny_settings(
        tmp_path, model={"checkpointing": on}, heal={"steps": 1}, protect={"scheme": "unsafe_plaintext"}
    )
    config = parse_config(raw)
    ran = []

    def counted(*args, **kwargs):
        ran.append(args)
        return torch.utils.checkpoint.checkpoint(*args, **kwargs)

    def runs(work) -> bool:
        ran.clear()
        work()
        return bool(ran)

    monkeypatch.setattr(passes, "checkpoint", counted)
    inputs = Inputs.load(config, seed=0, ratio=0.5, folder=tmp_path / "cell")
    exact = inputs.exact_proxy()
    assert runs(lambda: heal_proxy(config, inputs.materials, exact, seed=0)) == on
    job = with_proxy(FederationJob.from_config(config, seed=0), tmp_path / "llm")
    client = build_client(job, 0, tmp_path / "llm")
    with client.model.lent() as tuned:
        start = get_vector(tuned)
    assert runs(lambda: client.train(round=0, start=start)) == on
    assert runs(lambda: inputs.train_pooled(inputs.llm)) == on
