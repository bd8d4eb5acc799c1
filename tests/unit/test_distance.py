"""The distance that healing makes smaller: of predictions, and of hidden states at the same places."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.distance import distance
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.models.llm import with_blocks
from tests.support.tiny import tiny_llama

IDS = torch.randint(5, 60, (3, 16), generator=torch.Generator().manual_seed(0))


def test_a_proxy_that_lacks_no_block_has_distance_zero():
    llm = tiny_llama(4).eval()
    with torch.no_grad():
        found = distance(
            with_blocks(llm, [0, 1, 2, 3]), llm, BlockPlan(llm_blocks=4, kept=(0, 1, 2, 3)), IDS
        )
    assert found.kl == found.states == 0


def test_a_block_is_compared_with_what_the_next_original_reads_and_the_last_with_the_llms_end():
    llm = tiny_llama(4).eval()
    proxy = with_blocks(llm, [0, 3])
    with torch.no_grad():
        found = distance(proxy, llm, BlockPlan(llm_blocks=4, kept=(0, 3)), IDS)
        inputs = llm(input_ids=IDS, output_hidden_states=True).hidden_states
        first, last = predictions_and_states(proxy, IDS)[1]
        end = predictions_and_states(llm, IDS)[1][3]

    def error(state, target):
        return ((state - target).norm(dim=-1) / target.norm(dim=-1)).square().sum()

    expected = (error(first, inputs[3]) + error(last, end)) / 2
    torch.testing.assert_close(found.states, expected)


def test_states_are_not_compared_without_a_plan_nor_between_widths_but_predictions_are():
    llm = tiny_llama(2).eval()
    wide = LlamaForCausalLM(
        LlamaConfig(**{**llm.config.to_dict(), "hidden_size": 32, "head_dim": 16})
    ).eval()
    with torch.no_grad():
        assert distance(with_blocks(llm, [0]), llm, None, IDS).states == 0
        found = distance(wide, llm, BlockPlan(llm_blocks=2, kept=(0, 1)), IDS)
    assert found.states == 0
    assert found.kl > 0


def test_the_llm_gets_no_gradients_and_the_proxy_does():
    llm = tiny_llama(3).eval()
    proxy = with_blocks(llm, [0, 2])
    distance(proxy, llm, BlockPlan(llm_blocks=3, kept=(0, 2)), IDS).states.backward()
    assert all(p.grad is None for p in llm.parameters())
    assert any(p.grad is not None for p in proxy.parameters())
