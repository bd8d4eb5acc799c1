"""DP-SGD on adapters: per-record gradients, clipping and noise are what they are said to be."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import ConfigError, DataError, ModelError, TrainingError
from fedproxy_secure.federate.model_checks import check_fits, check_private
from fedproxy_secure.federate.private_training import NOISE_STEPS, private_steps, train_privately
from fedproxy_secure.models.adapters import (
    attach,
    get_vector,
    save_adapter,
    set_vector,
    trained_parameters,
)
from tests.support.tiny import VOCABULARY, tiny_llama

KEY = bytes(range(32))
KINDS = ("lora", "ffa", "core")
ITEMS = [Encoded(ids=(1, *range(10 + i, 16 + i + i % 3), 2), response_start=4 + i % 2) for i in range(12)]


@pytest.fixture(autouse=True)
def _opacus_warns_of_what_we_do_not_use():
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
        who="client x, round 0",
        pull=pull,
    )
    return get_vector(tuned)


def record_gradient(tuned, item):
    loss = batch_loss(tuned, training_batch([item], pad_id=0, device="cpu"))
    parts = torch.autograd.grad(loss, trained_parameters(tuned))
    return torch.cat([p.reshape(-1) for p in parts]).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_and_clip_it_is_plain_sgd(kind):
    private = tune(adapted(kind), batch=len(ITEMS))
    tuned = adapted(kind)
    tuned.train()
    optimizer = torch.optim.SGD(trained_parameters(tuned), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        batch_loss(tuned, training_batch(ITEMS, pad_id=0, device="cpu")).backward()
        optimizer.step()
    assert np.abs(private - get_vector(adapted(kind))).max() > 1e-4
    np.testing.assert_allclose(private, get_vector(tuned), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_clipped_sum_of_the_gradients_of_single_records(kind):
    tuned = adapted(kind)
    start = get_vector(tuned)
    gradients = np.stack([record_gradient(tuned, item) for item in ITEMS])
    norms = np.linalg.norm(gradients, axis=1)
    clip = float(np.median(norms))
    wanted = (gradients * np.minimum(1, clip / (norms + 1e-6))[:, None]).sum(axis=0) / len(ITEMS)
    moved = start - tune(tuned, clip=clip, steps=1, lr=1.0, batch=len(ITEMS))
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=2e-6)


def test_a_record_moves_a_step_by_no_more_than_the_clip():
    tuned, fewer = adapted(), adapted()
    with_all = tune(tuned, clip=0.01, steps=1, lr=1.0, batch=1)
    without = tune(fewer, clip=0.01, steps=1, lr=1.0, batch=1, items=ITEMS[1:])
    assert 0 < np.linalg.norm(with_all - without) <= 0.01 * 1.001


# models in which one record of a pass changes what becomes of the others


def stretches_positions_with_the_longest_record():
    """Every token of a pass has other positions as soon as one record has more than 20."""
    from transformers import LlamaForCausalLM

    config = tiny_llama(2).config
    config.rope_parameters = {
        "rope_theta": 10_000.0, "rope_type": "longrope", "short_factor": [1.0] * 4,
        "long_factor": [0.02] * 4, "original_max_position_embeddings": 20, "factor": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    tuned = attach(LlamaForCausalLM(config).eval(), AdapterConfig(rank=2, alpha=4), seed=0)
    rng = np.random.default_rng(0)
    set_vector(tuned, rng.normal(0, 0.05, len(get_vector(tuned))).astype(np.float32))
    return tuned


def enlarges_rounding():
    """Sums round differently in passes of other shapes; here the last bit decides on the gradient."""
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output * (1 + torch.sin(1e9 * output.detach()))
    )
    return tuned


def mixes_rows():
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output + output.detach().sum(dim=0, keepdim=True)
    )
    return tuned


LONG = Encoded(ids=(1, *range(10, 40), 2), response_start=4)


@pytest.mark.parametrize("extra", [LONG, ITEMS[0]], ids=["long", "short"])
@pytest.mark.parametrize(
    "coupled", [stretches_positions_with_the_longest_record, enlarges_rounding, mixes_rows]
)
def test_one_record_moves_the_sum_by_one_clip_even_if_the_model_couples_the_rows_of_a_pass(coupled, extra):
    """What the accounting assumes: a server chooses the model, and can make a long record."""
    clip = 0.01
    without = tune(coupled(), clip=clip, steps=1, lr=1.0, batch=1)
    with_it = tune(coupled(), clip=clip, steps=1, lr=1.0, batch=1, items=[*ITEMS, extra])
    assert 0 < np.linalg.norm(with_it - without) <= clip * 1.001


def test_a_model_that_remembers_a_record_is_refused():
    """Found on made-up records: the short one has another gradient after the long one."""

    def remembers(change):
        tuned, seen = adapted(), []

        def look(module, arguments, output):
            seen.append(output.shape[1])
            return change(module, output, max(seen))

        tuned.get_base_model().model.layers[0].register_forward_hook(look)
        return tuned

    def in_a_buffer(module, output, longest):
        module.register_buffer("longest", torch.tensor(longest))

    for change in (lambda module, output, longest: output * longest, in_a_buffer):
        with pytest.raises(ModelError, match=r"^proxy: one record changes the outputs for the next; must"):
            check_fits(remembers(change), tokens=VOCABULARY, longest=32, pad_id=0)
    check_fits(remembers(lambda module, output, _: output), tokens=VOCABULARY, longest=32, pad_id=0)


@pytest.mark.parametrize("scale", [1.0, 2 / 3, 3 / 2])
def test_noise_has_the_accounted_scale_and_no_other(scale):
    """One step whose records have no gradient: what moves is the noise alone."""
    layer = nn.Linear(200, 100, bias=False)
    before = layer.weight.detach().clone()
    private_steps(
        layer,
        lambda chosen: (layer(torch.zeros(len(chosen), 200)) * 0).sum(dim=1).mean(),
        records=10,
        steps=1,
        optimizer=torch.optim.SGD(layer.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=1.5 * scale, clip_norm=0.4, sampling_rate=0.5),
        noise=Noise(KEY),
        divisor=5,
        who="x",
    )
    seen = ((before - layer.weight.detach()).numpy() * 5).std() / 0.4 / 1.5
    fits = abs(seen - 1) < 4 / np.sqrt(2 * 20_000)
    assert fits == (scale == 1.0)


class Scaled(nn.Module):
    """A record's gradient is its number times a vector, in float64: sums can be looked at exactly."""

    def __init__(self, vector, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(vector), dtype=dtype))
        self.vector = vector.to(dtype)


def one_step(module, numbers, *, noise, clip=1.0, rate=1.0, key=KEY):
    """The noisy sum of one step, in steps of its grid, float64."""
    private_steps(
        module,
        lambda chosen: (module.weight * module.vector).sum() * numbers[int(chosen[0])],
        records=len(numbers),
        steps=1,
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=noise, clip_norm=clip, sampling_rate=rate),
        noise=Noise(key),
        divisor=1.0,
        who="x",
    )
    return -module.weight.detach().numpy() / (noise * clip / NOISE_STEPS)


@pytest.mark.parametrize("noise", [0.01, 0.7, 3.3])
@pytest.mark.parametrize("length", [1e-6, 0.2, 1.0, 1e6])
def test_a_record_moves_the_sum_by_whole_steps_of_the_grid_and_never_by_more_than_the_clip(noise, length):
    """In integers, so that no rounding can hide anything; at length 1 the clip is met to the last bit."""
    torch.manual_seed(0)
    vector = torch.randn(5000, dtype=torch.float64)
    vector *= length / vector.norm()
    without = one_step(Scaled(vector), [1.0, -0.3, 0.0], noise=noise)
    with_it = one_step(Scaled(vector), [1.0, -0.3, 1.0], noise=noise)
    moved = with_it - without
    whole = np.rint(moved)
    np.testing.assert_allclose(moved, whole, rtol=0, atol=1e-6)
    squares = sum(int(v) ** 2 for v in whole)
    assert squares <= (NOISE_STEPS / Fraction(noise)) ** 2
    if length >= 1:
        assert squares > 0.9 * (NOISE_STEPS / noise) ** 2


@pytest.mark.parametrize("noise", [1e-9, 9e-4])
def test_noise_too_small_for_the_grid_is_refused(noise):
    with pytest.raises(DataError, match=r"must be 0 or >= 0\.001"):
        one_step(Scaled(torch.ones(2)), [1.0], noise=noise)


def sums(numbers, *, rate, runs=1200):
    """Noisy sums of one step over records whose clipped gradients are these numbers, or zero."""
    keys = (i.to_bytes(32, "big") for i in range(runs))
    return np.array(
        [one_step(Scaled(torch.ones(1)), numbers, noise=1.0, rate=rate, key=k)[0] for k in keys]
    ) / NOISE_STEPS  # fmt: skip


def test_few_records_have_the_law_that_is_accounted_and_one_without_gradient_is_one_that_is_not_there():
    """Three records at rate .5: a mixture of normal laws around 0 .. 3, whether or not a null is there."""

    def law(x, there):
        return sum(stats.binom.pmf(k, there, 0.5) * stats.norm.cdf(x, k) for k in range(there + 1))

    three = sums([5.0, 1.0, 1.0], rate=0.5)
    with_null = sums([5.0, 0.0, 1.0, 1.0], rate=0.5)
    for seen in (three, with_null):
        assert stats.kstest(seen, lambda x: law(x, 3)).pvalue > 1e-3
        assert stats.kstest(seen, lambda x: law(x, 4)).pvalue < 1e-3
    assert stats.ks_2samp(three, with_null).pvalue > 1e-3


def test_an_empty_sample_is_a_step_with_noise_alone():
    tuned = adapted()
    start = get_vector(tuned)
    moved = tune(tuned, noise=1.0, clip=1.0, rate=1e-9, steps=1, lr=1e-9) - start
    assert np.isfinite(moved).all()
    assert moved.any()


def test_a_step_holds_the_gradient_of_one_record_at_a_time():
    """Per-record gradients of an LLM's adapter are megabytes each; a step may draw hundreds of records."""
    layer, held = nn.Linear(3, 2), []

    def loss(chosen):
        held.append([getattr(p, "grad_sample", None) for p in layer.parameters()])
        return layer(torch.ones(len(chosen), 3)).square().sum()

    private_steps(
        layer,
        loss,
        records=40,
        steps=2,
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
        private=RecordNoise(noise_multiplier=1.0, clip_norm=0.1, sampling_rate=1.0),
        noise=Noise(KEY),
        divisor=40,
        who="x",
    )
    assert len(held) == 80
    assert all(kept is None for before in held for kept in before)


def test_the_key_decides_sample_and_noise():
    first = tune(adapted(), noise=1.0, clip=0.1, rate=0.5)
    assert np.array_equal(first, tune(adapted(), noise=1.0, clip=0.1, rate=0.5))
    assert not np.array_equal(first, tune(adapted(), noise=1.0, clip=0.1, rate=0.5, key=bytes(32)))


def test_the_pull_of_a_penalty_is_added_after_the_noise():
    tuned = adapted()
    start = get_vector(tuned)
    ones = [torch.ones_like(p) for p in trained_parameters(tuned)]
    plain = tune(adapted(), steps=1, lr=0.5) - start
    pulled = tune(tuned, steps=1, lr=0.5, pull=lambda: ones) - start
    np.testing.assert_allclose(plain - pulled, 0.5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_privately_tuned_adapter_gives_the_same_logits(kind, tmp_path):
    from peft import PeftModel

    tuned = adapted(kind)
    tune(tuned, noise=0.5, clip=0.1, rate=0.5, steps=2)
    ids = torch.arange(3, 40).view(1, -1)
    save_adapter(tuned, tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_llama(2), tmp_path)
    with torch.no_grad():
        wanted, found = tuned(input_ids=ids).logits, reloaded(input_ids=ids).logits
    assert not torch.equal(wanted, tiny_llama(2)(input_ids=ids).logits)
    if kind == "core":  # B R is multiplied out on the way
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, wanted)


def test_training_leaves_nothing_of_opacus_behind():
    tuned = adapted()
    tune(tuned, noise=1.0, clip=1.0)
    assert not any(p.grad is not None for p in tuned.parameters())
    assert not tuned.training
    tune(tuned)  # hooks can be added again


def test_a_loss_that_is_no_number_stops_and_names_client_and_step():
    tuned = adapted()
    set_vector(tuned, np.full_like(get_vector(tuned), np.nan))
    with pytest.raises(
        TrainingError, match="client x, round 0: the adapter is not finite after local step"
    ):
        tune(tuned)


def test_a_record_without_a_finite_gradient_counts_as_zero_and_is_not_told_of():
    """A server's proxy can make it so for records with a token of its choice."""
    tuned, plain = adapted(), adapted()
    for model in (tuned, plain):
        with torch.no_grad():
            model.get_input_embeddings().weight[200] = torch.inf
    odd = Encoded(ids=(1, 200, 11, 12, 2), response_start=3)
    with_it = tune(tuned, items=[*ITEMS[:4], odd], steps=1, rate=1.0, clip=1.0)
    without = tune(plain, items=ITEMS[:4], steps=1, rate=1.0, clip=1.0)
    start = get_vector(adapted())
    assert np.isfinite(with_it).all()
    np.testing.assert_allclose(with_it - start, without - start, rtol=1e-3, atol=1e-6)


# a record for which the model fails, as a server could have made it for texts of its choice

EMPTY = Encoded(ids=(), response_start=0)  # has a gradient of zeros and no way to fail
CHOSEN = 200  # the token
BAD = Encoded(ids=(1, CHOSEN, 11, 12, 2), response_start=3)
EPSILON_1 = 4.2571  # what `noise_multiplier_for` returns, written down: it takes seconds


def gpt2(positions):
    """A model with learned positions, which fails beyond the last of them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=positions, n_embd=16, n_layer=2, n_head=2, attn_pdrop=0.0,
        embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return attach(GPT2LMHeadModel(config).eval(), AdapterConfig(rank=2, alpha=4), seed=0)


class Refused(Exception):
    pass


def refuses_in_the_forward_pass(error=Refused):
    tuned = adapted()

    def look(module, arguments):
        if (arguments[0] == CHOSEN).any():
            raise error(f"the token {CHOSEN} was there")

    tuned.get_input_embeddings().register_forward_pre_hook(look)
    return tuned


def refuses_half_way(error=Refused):
    """After the hooks of some layers have kept what they need for a backward pass that never comes."""
    tuned, seen = adapted(), []
    tuned.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: seen.append(bool((arguments[0] == CHOSEN).any()))
    )

    def look(module, arguments):
        if seen[-1]:
            raise error(f"the token {CHOSEN} was there")

    tuned.get_base_model().model.layers[1].mlp.register_forward_pre_hook(look)
    return tuned


def refuses_in_the_backward_pass(error=Refused):
    tuned, seen = adapted(), []
    tuned.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: seen.append(bool((arguments[0] == CHOSEN).any()))
    )

    def look(gradient):
        if seen[-1]:
            raise error(f"the token {CHOSEN} was there")

    tuned.get_base_model().model.layers[0].mlp.register_forward_hook(
        lambda module, arguments, output: output.register_hook(look) and None
    )
    return tuned


def has_fewer_embeddings():
    tuned = adapted()
    base = tuned.get_base_model()
    for name, place in (("embed_tokens", base.model), ("lm_head", base)):
        whole = getattr(place, name)
        whole.weight = nn.Parameter(whole.weight[:CHOSEN].detach().clone(), requires_grad=False)
    base.model.embed_tokens.num_embeddings = CHOSEN
    return tuned


HOSTILE = [
    has_fewer_embeddings,
    refuses_in_the_forward_pass,
    refuses_half_way,
    refuses_in_the_backward_pass,
]


def test_the_noise_of_a_round_at_epsilon_1_is_that():
    event = SampledGaussian(noise_multiplier=EPSILON_1, sampling_rate=0.6, steps=3)
    assert 0.99 < spent([event], delta=1e-5).epsilon <= 1


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("seed", range(3))
def test_a_round_at_epsilon_1_ends_alike_with_and_without_a_record_that_the_model_cannot_take(
    hostile, seed
):
    """Otherwise a server learns without noise, from the error, whether a token of its choice is there."""
    for items in (ITEMS, [*ITEMS[:-1], BAD], [BAD] * len(ITEMS)):
        tuned = hostile()
        end = tune(tuned, noise=EPSILON_1, clip=1.0, rate=0.6, items=items, key=bytes([seed]) * 32)
        assert np.isfinite(end).all()
        assert not tuned.training
        assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in tuned.parameters())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_other_records_of_the_step_have_the_gradients_they_would_have_had(hostile):
    settings = {"noise": EPSILON_1, "clip": 0.05, "rate": 0.8, "lr": 1.0, "steps": 4}
    for place in (0, 3, 7):
        with_it = tune(hostile(), items=[*ITEMS[:place], BAD, *ITEMS[place:7]], **settings)
        without = tune(adapted(), items=[*ITEMS[:place], EMPTY, *ITEMS[place:7]], **settings)
        alone = tune(adapted(), items=[EMPTY] * 8, **settings)
        if hostile is has_fewer_embeddings:  # another softmax: compare with itself
            without = tune(hostile(), items=[*ITEMS[:place], EMPTY, *ITEMS[place:7]], **settings)
        np.testing.assert_allclose(with_it, without, rtol=0, atol=3e-6)
        assert np.abs(with_it - alone).max() > 1e-4


def test_a_record_longer_than_the_model_s_positions_counts_as_zero():
    settings = {"noise": EPSILON_1, "clip": 0.05, "rate": 0.8, "lr": 1.0}
    long = Encoded(ids=tuple(range(3, 3 + 17)), response_start=4)
    with_it = tune(gpt2(16), items=[*ITEMS[:7], long], **settings)
    np.testing.assert_allclose(
        with_it, tune(gpt2(16), items=[*ITEMS[:7], EMPTY], **settings), rtol=0, atol=3e-6
    )
    assert np.abs(with_it - tune(gpt2(32), items=[*ITEMS[:7], long], **settings)).max() > 1e-6


@pytest.mark.parametrize(
    "broken", [EMPTY, Encoded(ids=(1, 5, 6), response_start=3), Encoded(ids=(1, -1, 6), response_start=1)]
)
def test_a_record_that_was_never_encoded_counts_as_zero(broken):
    with_it = tune(adapted(), items=[*ITEMS[:7], broken], noise=1.0, clip=0.05, rate=0.8)
    without = tune(adapted(), items=[*ITEMS[:7], EMPTY], noise=1.0, clip=0.05, rate=0.8)
    np.testing.assert_array_equal(with_it, without)


def test_a_parameter_that_no_record_of_a_pass_comes_by_has_a_gradient_of_zeros():
    """Experts, say, that only some tokens choose."""

    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            found = self.always(x)
            return found + self.sometimes(x) if (x > 0).all() else found

    module = Choosing()
    before = module.sometimes.weight.detach().clone()
    private_steps(
        module,
        lambda chosen: module(-torch.ones(len(chosen), 3)).mean(),
        records=4,
        steps=2,
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=0.0, clip_norm=1.0, sampling_rate=1.0),
        noise=Noise(KEY),
        divisor=4,
        who="x",
    )
    assert torch.equal(module.sometimes.weight, before)
    assert not torch.equal(module.always.weight, -torch.ones(1, 3))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_whoever_interrupts_training_is_heard(interruption):
    with pytest.raises(interruption):
        tune(refuses_in_the_forward_pass(interruption), items=[BAD] * 4)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_too_little_memory_is_no_matter_of_a_record_and_said_in_one_constant_line(error):
    tuned = refuses_in_the_forward_pass(error)
    line = r"^client x, round 0: training failed; the client's own log says why$"
    with pytest.raises(TrainingError, match=line) as found:
        tune(tuned, items=[BAD] * 4)
    assert found.value.__cause__ is None  # nothing that a traceback would tell on
    with pytest.raises(error):
        private_steps(
            tuned,
            lambda chosen: batch_loss(tuned, training_batch([BAD], pad_id=0, device="cpu")),
            records=1,
            steps=1,
            optimizer=torch.optim.SGD(trained_parameters(tuned), lr=1.0),
            private=RecordNoise(noise_multiplier=1.0, clip_norm=1.0, sampling_rate=1.0),
            noise=Noise(KEY),
            divisor=1,
            who="x",
        )


def test_what_nobody_thought_of_is_said_in_one_constant_line():
    def pull():
        raise RuntimeError("the adapter is 12.5 now")

    line = r"^client x, round 0: training failed; the client's own log says why$"
    with pytest.raises(TrainingError, match=line):
        tune(adapted(), pull=pull)


def test_a_model_that_does_not_fit_its_tokenizer_is_refused_without_looking_at_a_record():
    check_fits(adapted(), tokens=VOCABULARY, longest=128, pad_id=0)
    check_fits(gpt2(16), tokens=VOCABULARY, longest=16, pad_id=0)
    for tuned, change, line in (
        (has_fewer_embeddings(), {}, rf"proxy: has embeddings of {CHOSEN} tokens; must have {VOCABULARY}"),
        (adapted(), {"pad_id": VOCABULARY}, r"proxy: fills up with token 259; must be in \[0, 259\)"),
        (adapted(), {"longest": 129}, r"proxy: has 128 positions; must have 129 \(data.max_tokens\)"),
        (gpt2(16), {"longest": 17}, r"proxy: has 16 positions; must have 17"),
    ):
        with pytest.raises(ModelError, match=line):
            check_fits(tuned, **{"tokens": VOCABULARY, "longest": 8, "pad_id": 0} | change)


def test_a_model_without_gradients_of_made_up_records_is_refused_instead_of_tuned_by_noise_alone():
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda module, arguments: (_ for _ in ()).throw(Refused("never works"))
    )
    with pytest.raises(ModelError, match="proxy: gives no gradients of made-up records: never works"):
        check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_gradients_of_made_up_records_are_not_finite_is_refused(value):
    """NaN is above no bound: a comparison alone would let a model pass that remembers records, too."""
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output * value
    )
    with pytest.raises(ModelError, match="proxy: gives gradients of made-up records that are not finite"):
        check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)


def test_the_made_up_records_leave_nothing_behind():
    tuned, state = adapted(), torch.random.get_rng_state()
    before = get_vector(tuned)
    check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(get_vector(tuned), before)
    assert not tuned.training
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in tuned.parameters())


def test_a_layer_that_opacus_cannot_handle_is_refused_before_training():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(1))

    with pytest.raises(ConfigError, match=r"privacy\.unit=record: .*buffers"):
        check_private(nn.Sequential(Counting()))
    check_private(adapted())
