"""Proxies that let out less, federated: masked sums are those in the clear, DP spends what was planned.

What the federation learnt lifts back from such a proxy to the LLM's own blocks, whatever was done to the
proxy.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import Config, parse_config
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.experiments.stages import Materials, make_fused_llm, make_proxy, prepare
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach, block_deltas, set_vector
from fedproxy_secure.models.llm import blocks_of, sharing_copy
from fedproxy_secure.protect.secure_sum.terms import first_clip
from tests.support.tiny import tiny_settings

KINDS = ("low_rank", "width", "withheld_bottom", "quantised", "rotated")
CLIENTS = 3
RECORD = {"unit": "record", "target_epsilon": 8.0, "target_delta": 1e-3}


@dataclass(frozen=True, kw_only=True)
class World:
    """A proxy of one kind, its folder, and what its run started from."""

    config: Config
    materials: Materials
    proxy: Proxy
    folder: Path

    def ended(self, **changes):
        """The adapter after one round, float32 [d], and the one before."""
        run_folder = changes.pop("run_folder", None)
        job = FederationJob.from_config(self.config, seed=0)
        job = job.changed(**{n: getattr(job, n).model_copy(update=values) for n, values in changes.items()})
        initial = initial_state(self.tuned())
        return federate(job, self.folder, initial, run_folder=run_folder).adapter, initial.adapter

    def tuned(self, adapter=None):
        """A copy of the proxy with this adapter, by default with a new one."""
        model = attach(sharing_copy(self.proxy.model), self.config.adapter, seed=0)
        if adapter is not None:
            set_vector(model, adapter)
        return model


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_settings(
        folder,
        CLIENTS,
        compress={"kind": request.param, "remove_ratio": 0.5, "calibration_sequences": 2},
        heal={"steps": 2, "batch_size": 2},
        fusion={"rule": "fedavg"},
        federate={"rounds": 1},
    )
    config = parse_config(settings)
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
    save_model(proxy.model, materials.tokenizer, folder / "proxy")
    return World(config=config, materials=materials, proxy=proxy, folder=folder / "proxy")


def test_a_masked_round_of_a_defended_proxy_is_the_round_in_the_clear_up_to_rounding(world):
    plain, start = world.ended(protect={"scheme": "unsafe_plaintext"})
    clip = first_clip(FederationJob.from_config(world.config, seed=0))
    for bits in (16, 32):
        masked, _ = world.ended(protect={"bits": bits})
        step = clip / ((2 ** (bits - 1) - 1) // CLIENTS)
        assert np.abs(plain - start).max() > 10 * (step + 1e-6)  # it moved by far more than rounding does
        assert np.abs(masked - plain).max() <= step + 1e-6


def test_a_private_run_of_a_defended_proxy_spends_what_was_planned_and_lifts_back(world, tmp_path):
    batch = {"batch_size": 16}  # all records of a client: no sampling, whose calibration takes seconds
    adapter, start = world.ended(privacy=RECORD, local=batch, run_folder=tmp_path)
    assert np.isfinite(adapter).all()
    assert np.abs(adapter - start).max() > 0
    costs = read_all(tmp_path / "privacy")
    assert sorted(costs) == ["c0", "c1", "c2"]
    assert all(7.5 < cost.epsilon <= 8 for cost in costs.values())

    tuned = world.tuned(adapter)
    lifted = world.proxy.lift(block_deltas(tuned))
    assert lifted
    assert all(torch.isfinite(d).all() for d in lifted.values())
    fused = make_fused_llm(world.config, world.materials, world.proxy, tuned).llm
    changed = [
        any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(blocks_of(fused), blocks_of(world.materials.llm), strict=True)
    ]
    assert [i for i, is_changed in enumerate(changed) if is_changed] == sorted({i for i, _ in lifted})
    windows = world.materials.fidelity_windows
    with torch.inference_mode():
        after, before = (m(input_ids=windows).logits for m in (fused, world.materials.llm))
    assert torch.isfinite(after).all()
    assert not torch.allclose(after, before, atol=1e-4)
