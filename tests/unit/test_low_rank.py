"""Maps and embedding matrices of low rank: the least error on their inputs, and nothing verbatim."""

import pytest
import torch

from fedproxy_secure.compress.defences.embeddings import FLOOR, of_rank
from fedproxy_secure.compress.defences.low_rank import factors, rank_for
from fedproxy_secure.compress.defences.moments import linear_maps, second_moments
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.verbatim import verbatim_share
from fedproxy_secure.config import HealConfig
from fedproxy_secure.models.llm import blocks_of
from tests.support.defended import WINDOWS, llm, logits, proxy_of, unfinished


def test_factors_of_full_rank_give_the_map_and_of_less_the_least_error_on_its_inputs():
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=drawn)
    inputs = torch.randn(400, 7, generator=drawn).double() * torch.arange(1, 8)
    moment = inputs.T @ inputs / 400
    left, right = factors(weight, moment, 5)
    torch.testing.assert_close((left @ right).float(), weight, rtol=1e-4, atol=1e-4)

    def error(product):
        return float((inputs @ (weight.double() - product).T).square().mean())

    left, right = factors(weight, moment, 2)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    outputs = inputs @ weight.double().T
    least = torch.linalg.svdvals(outputs)[2:].square().sum() / outputs.numel()  # Eckart and Young
    assert error(left @ right) == pytest.approx(float(least), rel=1e-6)
    assert error(left @ right) < error((u[:, :2] * s[:2]) @ v[:2])


def test_a_low_rank_proxy_s_maps_have_that_rank_also_after_healing():
    model = llm(tied=True)
    proxy = unfinished("low_rank", model)
    heal(
        proxy.model,
        model,
        WINDOWS,
        HealConfig(steps=2, batch_size=2, learning_rate=0.01),
        seed=0,
        plan=proxy.plan,
    )
    done = proxy.finished()
    for block in blocks_of(done.model):
        for linear in linear_maps(block).values():
            rank = rank_for(linear.weight.shape, 0.5)
            assert torch.linalg.matrix_rank(linear.weight.double(), rtol=1e-5) == rank
    embedding = done.model.get_input_embeddings().weight
    assert torch.linalg.matrix_rank(embedding.double(), rtol=1e-5) == rank_for(embedding.shape, 0.25)
    assert done.model.get_output_embeddings().weight is embedding


def test_a_low_rank_proxy_holds_no_matrix_of_the_llm_and_an_exact_one_of_the_same_ratio_half():
    model = llm()
    low = proxy_of("low_rank", model)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    norms = sum(p.numel() for p in model.parameters()) - matrices
    whole = sum(p.numel() for p in model.parameters())
    assert verbatim_share(model, low.model, low.plan) == pytest.approx(norms / whole, abs=0.002)
    kept = proxy_of("low_rank", model, embeddings=0)
    assert verbatim_share(model, kept.model, kept.plan) > 0.2


def test_moments_are_those_of_the_inputs_in_parts_or_at_once(monkeypatch):
    model, seen = llm(), []
    handle = blocks_of(model)[2].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    logits(model)
    handle.remove()
    x = seen[0].flatten(0, 1).double()
    at_once = dict(second_moments(model, WINDOWS))
    found = at_once[2]["mlp.down_proj"]
    expected = x.T @ x / len(x)
    damping = torch.diag((found - expected).diagonal())
    assert damping.diagonal().max() < 1e-3 * expected.diagonal().mean()
    torch.testing.assert_close(found - damping, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("fedproxy_secure.compress.defences.moments.MOMENTS_BYTES", 1)
    in_parts = dict(second_moments(model, WINDOWS))
    assert all(torch.equal(in_parts[i][name], m) for i in at_once for name, m in at_once[i].items())


def test_no_other_choice_of_directions_costs_an_embedding_matrix_less():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 12)
    frequency = torch.rand(60, generator=generator, dtype=torch.float64) + 0.01
    moment = inputs.T @ inputs / len(inputs)
    metric = moment * (12 / moment.trace()) + FLOOR * torch.eye(12)

    def cost(projected: torch.Tensor) -> float:
        wrong = matrix - projected
        return float((frequency * ((wrong @ metric) * wrong).sum(1)).sum())

    found = of_rank(matrix, 5, moment, frequency)
    assert torch.linalg.matrix_rank(found) == 5
    least = cost(found)
    _, _, plain = torch.linalg.svd(matrix, full_matrices=False)
    assert least < cost(matrix @ plain[:5].T @ plain[:5])
    for _ in range(50):
        left, right = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        assert least < cost(matrix @ left @ torch.linalg.pinv(right))
        # the best oblique map onto any other five directions
        turned = matrix @ left
        solved = torch.linalg.lstsq(turned * frequency.sqrt()[:, None], matrix * frequency.sqrt()[:, None])
        assert least <= cost(turned @ solved.solution) + 1e-9


def test_an_embedding_matrix_at_full_rank_is_the_same_matrix():
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    same = of_rank(matrix, 8, torch.eye(8, dtype=torch.float64) * 5, torch.ones(30))
    assert torch.allclose(same, matrix, atol=1e-5)
