"""A proxy's weights are whole, finite and of the form that its configuration says."""

import pytest
import torch

from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import load_llm
from tests.support.hostile_proxies import edit_weights
from tests.support.loaded_proxies import NORM, refused
from tests.support.tiny import VOCABULARY, save_tiny


@pytest.fixture
def proxy(tmp_path):
    return save_tiny(tmp_path / "proxy", blocks=2)


def test_a_tensor_that_is_missing_is_not_made_up(proxy):
    edit_weights(proxy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    load_llm(proxy, device="cpu")  # fills it in at random
    refused(proxy, r"lacks 'model.layers.1.mlp.up_proj.weight'", ModelError)


def test_a_head_that_is_missing_is_not_made_up(proxy):
    edit_weights(proxy, lambda tensors: tensors.pop("lm_head.weight"))
    refused(proxy, r"lacks 'lm_head.weight'", ModelError)


def test_a_tensor_too_many_is_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({"evil\x1b[31m": torch.zeros(3)}))
    refused(proxy, r"has, unused, 'evil\\x1b", ModelError)


def test_a_tensor_of_another_shape_is_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({NORM: torch.ones(17)}))
    refused(proxy, "^proxy: ", ModelError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(proxy, value):
    edit_weights(proxy, lambda tensors: tensors[NORM].__setitem__(3, value))
    refused(proxy, f"{NORM}' is not finite", ModelError)


def test_weights_whose_outputs_are_not_finite_are_refused(proxy):
    edit_weights(
        proxy, lambda tensors: tensors.update({"lm_head.weight": torch.full((VOCABULARY, 16), 3e38)})
    )
    refused(proxy, "outputs on 64 tokens are not finite", ModelError)


def test_quantised_weights_are_refused(proxy):
    edit_weights(proxy, lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.float8_e4m3fn)}))
    refused(proxy, f"{NORM}' is F8_E4M3; must be", ModelError)
