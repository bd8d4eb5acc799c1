"""A1: an embedding that is trained names the tokens that were read."""

import numpy as np
import pytest
import torch

from attacks.base import Budget, NotApplicable
from attacks.reconstruction.embedding import EmbeddingBow, embedding_tokens
from attacks.statistics import auc_value
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from tests.support.lab import truth_of
from tests.support.reconstructions import maker_of_labs
from tests.support.tiny import VOCABULARY, tiny_llama


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return maker_of_labs(tmp_path_factory)


def embedding_gradient(ids, *, tied):
    model = tiny_llama(2)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    items = [Encoded(ids=tuple(row), response_start=2) for row in ids]
    loss = batch_loss(model, training_batch(items, pad_id=0, device="cpu"))
    return torch.autograd.grad(loss, model.model.embed_tokens.weight)[0].numpy()


IDS = [[1, 10, 20, 30, 40], [1, 50, 60, 70, 10]]
READ = {1, 10, 20, 30, 50, 60, 70}  # the last token of a record is predicted and never read


def test_rows_of_an_untied_embedding_name_exactly_the_tokens_read():
    named = embedding_tokens(embedding_gradient(IDS, tied=False), tied=False)
    assert set(np.flatnonzero(named).tolist()) == READ


def test_rows_of_a_tied_embedding_stand_out_where_tokens_were_read():
    gradient = embedding_gradient(IDS, tied=True)
    there = np.isin(np.arange(VOCABULARY), list(READ))
    assert not np.any(np.linalg.norm(gradient, axis=1) == 0)  # the output layer touches every row
    named = embedding_tokens(gradient, tied=True)
    assert named[there].mean() > 0.7
    assert there[named].mean() > 0.5
    assert auc_value(np.linalg.norm(gradient, axis=1), there) > 0.95


def test_rounding_to_a_fixed_point_hides_no_token_and_names_none():
    rng, bits = np.random.default_rng(0), 12
    gradient = np.zeros((50, 16))
    gradient[[3, 7]] = rng.normal(size=(2, 16))
    noisy = gradient + rng.choice([-1, 0, 1], size=gradient.shape) * 2.0**-bits
    assert np.flatnonzero(embedding_tokens(noisy, tied=False, bits=bits)).tolist() == [3, 7]
    assert embedding_tokens(noisy, tied=False).sum() > 40  # without knowing of the rounding


def test_adapters_leave_embeddings_frozen_so_a1_does_not_apply(labs):
    lab = labs()
    with pytest.raises(NotApplicable, match="embeddings are frozen in this run"):
        EmbeddingBow().guess(lab.view({"c0": lab.start}), None, Budget(), np.random.default_rng(0))


def test_a1_is_scored_over_the_whole_vocabulary():
    items = {"a": (Encoded(ids=(1, 2, 3, 4), response_start=1),)}
    truth = truth_of({"a": np.zeros(1)}, items)
    norms = np.array([0.0, 3.0, 2.0, 1.0, 0.0])
    named = np.array([False, True, True, False, False])
    auc, recall = EmbeddingBow().score(((0, ("a",), norms, named),), truth)
    assert auc.value == 1.0
    assert recall.value == pytest.approx(2 / 3)
