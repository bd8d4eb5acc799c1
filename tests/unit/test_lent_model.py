"""A shared model is lent with the adapter that was asked for and comes back as it was, in any case."""

import threading

import numpy as np
import pytest
import torch

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.adapters import attach, get_vector, trained_parameters
from fedproxy_secure.models.lent import LentModel
from tests.support.tiny import tiny_llama


@pytest.fixture
def shared():
    return LentModel(attach(tiny_llama(blocks=1), AdapterConfig(rank=2), seed=0).eval())


def adapter(shared, value):
    return np.full(sum(shared.sizes), value, dtype=np.float32)


def state(shared):
    """All that a user of the model could have changed, frozen weights apart."""
    with shared.lent() as tuned:
        buffers = {n: b.clone() for n, b in tuned.named_buffers()}
        gradients = [p.grad for p in trained_parameters(tuned)]
        return get_vector(tuned), buffers, [m.training for m in tuned.modules()], gradients


def meddle(tuned):
    """What training may leave behind: other numbers, gradients, the training mode, changed buffers."""
    tuned.train()
    for p in trained_parameters(tuned):
        p.data.add_(1.0)
        p.grad = torch.ones_like(p)
    for name, buffer in list(tuned.named_buffers()):
        buffer.add_(1.0)
        owner, _, leaf = name.rpartition(".")
        setattr(tuned.get_submodule(owner), leaf, torch.zeros(7))


def test_a_lent_model_has_the_adapter_that_was_asked_for(shared):
    with shared.lent(adapter(shared, 0.5)) as tuned:
        assert np.array_equal(get_vector(tuned), adapter(shared, 0.5))
    with shared.lent(adapter(shared, -2.0)) as tuned:
        assert np.array_equal(get_vector(tuned), adapter(shared, -2.0))


@pytest.mark.parametrize("interrupt", [None, RuntimeError, KeyboardInterrupt])
def test_a_lent_model_comes_back_as_it_was(shared, interrupt):
    vector, buffers, modes, _ = state(shared)
    assert buffers  # rotary frequencies, for one
    try:
        with shared.lent(adapter(shared, 0.5)) as tuned:
            meddle(tuned)
            if interrupt is not None:
                raise interrupt
    except (RuntimeError, KeyboardInterrupt):
        assert interrupt is not None
    again, after, modes_after, gradients = state(shared)
    assert np.array_equal(again, vector)
    assert after.keys() == buffers.keys()
    assert all(torch.equal(after[n], buffers[n]) for n in buffers)
    assert modes_after == modes
    assert gradients == [None] * len(shared.sizes)


def test_an_adapter_of_another_length_is_refused_and_changes_nothing(shared):
    before = state(shared)[0]
    with pytest.raises(ModelError, match="this model takes"), shared.lent(np.zeros(3, np.float32)):
        raise AssertionError("was lent")
    assert np.array_equal(state(shared)[0], before)


def test_a_block_within_a_block_gives_the_outer_one_its_adapter_back(shared):
    with shared.lent(adapter(shared, 1.0)) as tuned:
        with shared.lent(adapter(shared, 2.0)):
            meddle(tuned)
        assert np.array_equal(get_vector(tuned), adapter(shared, 1.0))


def test_threads_take_turns(shared):
    seen = []

    def other():
        with shared.lent() as tuned:
            seen.append(get_vector(tuned))

    before = state(shared)[0]
    with shared.lent(adapter(shared, 3.0)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert seen == []
    thread.join()
    assert np.array_equal(seen[0], before)
