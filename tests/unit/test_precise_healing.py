"""Healing of a bfloat16 model steps in float32, so that steps too small for bfloat16 add up."""

import pytest
import torch

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.healing import distil, heal
from fedproxy_secure.compress.healing.precise import PreciseNumbers
from fedproxy_secure.compress.healing.state import HealingState
from fedproxy_secure.config import CompressConfig, HealConfig
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import public_windows, same_weights, tiny_llama

SMALL = HealConfig(steps=60, batch_size=4, learning_rate=1e-4)  # below half a bfloat16 unit of most weights
COMPRESSIONS = (
    CompressConfig(importance="uniform"),
    CompressConfig(kind="low_rank"),
    CompressConfig(kind="quantised", importance="uniform", options={"bits": 8}),
)


def healed(compress, dtype, folder=None, **calls):
    """Return the numbers that healing started from and ended with, float32, and the proxy."""
    llm = tiny_llama(4).bfloat16().to(dtype)  # the same numbers whatever the dtype
    proxy = compression_of(compress).build(llm, compress, windows=public_windows(), seed=0)
    before = numbers(proxy.model)
    heal(proxy.model, llm, public_windows(), SMALL, seed=0, plan=proxy.plan, folder=folder, **calls)
    return before, numbers(proxy.model), proxy


def numbers(model):
    return torch.cat([p.detach().float().flatten() for p in blocks_of(model).parameters()])


@pytest.mark.parametrize("compress", COMPRESSIONS, ids=lambda c: c.kind)
def test_steps_that_bfloat16_would_round_away_add_up(compress):
    start, end, proxy = healed(compress, torch.bfloat16)
    exact_start, exact_end, _ = healed(compress, torch.float32)
    moved, wanted = end - start, exact_end - exact_start
    assert {p.dtype for p in proxy.model.parameters()} == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.8
    assert moved.norm() > 0.9 * wanted.norm()


def test_a_killed_healing_of_a_bfloat16_model_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "SAVE_EVERY_S", 0.0)

    def kill(step: int, _loss: float) -> None:
        if step == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(COMPRESSIONS[0], torch.bfloat16, tmp_path, on_step=kill)
    steps: list[int] = []
    _, _, again = healed(
        COMPRESSIONS[0], torch.bfloat16, tmp_path, on_step=lambda step, _: steps.append(step)
    )
    assert steps[0] == 31
    assert same_weights(again.model, healed(COMPRESSIONS[0], torch.bfloat16)[2].model)


def test_numbers_of_32_bits_are_held_by_themselves_and_shorter_ones_beside():
    long, short = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    precise = PreciseNumbers([long, short])
    assert precise.held[0] is long
    (short * torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).sum().backward()
    (short * 3).sum().backward()
    assert short.grad is None
    assert precise.held[1].grad is not None
    assert precise.held[1].grad.tolist() == [4.0, 5.0]
    precise.held[1].data += 2**-9
    precise.show()
    assert short.tolist() == [1.0, 1.0]
    precise.held[1].data += 2**-8
    precise.show()
    assert short.tolist() == [1 + 2**-7] * 2


def test_the_number_of_steps_is_restored_to_where_the_weights_are(tmp_path):
    here = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(here, fused=True)
    here[0].grad = torch.ones(3)
    optimizer.step()
    HealingState(tmp_path, key="k").save(optimizer, here, 1, (0.0, 0.0), 1.0)
    elsewhere = [torch.nn.Parameter(torch.ones(3, device="meta"))]
    again = torch.optim.AdamW(elsewhere)
    HealingState(tmp_path, key="k").restore(again, elsewhere)
    assert {v.device.type for v in again.state[elsewhere[0]].values()} == {"meta"}
