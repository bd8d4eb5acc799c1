"""Reports say at the top when nothing was removed from the LLM that clients get."""

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.report.measured import configuration_of
from fedproxy_secure.report.stamps import unsafe_stamps
from tests.support.defended import llm

pytestmark = pytest.mark.torch
WHOLE = {
    "drop_blocks": "as it is",
    "width": "as it is",
    "quantised": "with weights of 4 bits",
    "rotated": "with its hidden states rotated",
}


def compressed(kind, ratio, **more):
    heal = {"steps": 1} if kind == "withheld_bottom" else {}
    return parse_config({"compress": {"kind": kind, "remove_ratio": ratio}, "heal": heal, **more})


@pytest.mark.parametrize(("kind", "form"), WHOLE.items())
def test_a_proxy_from_which_nothing_is_removed_is_stamped(kind, form):
    stamp = f"remove_ratio=0: every client holds the whole LLM, {form}."
    assert unsafe_stamps(compressed(kind, 0)) == (stamp,)
    assert configuration_of([], compressed(kind, 0), name="whole", settings={}).unsafe == (stamp,)
    assert unsafe_stamps(compressed(kind, 0.25)) == ()


@pytest.mark.parametrize("kind", ["low_rank", "withheld_bottom"])
def test_kinds_that_always_lack_a_part_of_the_llm_are_not_stamped(kind):
    assert unsafe_stamps(compressed(kind, 0)) == ()


def test_a_comparison_stamps_the_methods_whose_clients_hold_the_proxy():
    from fedproxy_secure.experiments.sweeps.method_notes import stamps_of_methods

    methods = ["zero_shot", "zero_shot_proxy", "fedavg_llm", "local_only", "masked_h_ties_block"]
    settings = {"compare": {"methods": methods, "remove_ratios": [0, 0.5]}}
    whole = "remove_ratio=0: every client holds the whole LLM, as it is."
    plain = "unsafe_plaintext: the server sees every client's update."
    assert stamps_of_methods(parse_config(settings)) == {
        plain: ("fedavg_llm",),
        whole: ("local_only", "masked_h_ties_block"),
    }
    settings["compare"]["remove_ratios"] = [0.5]
    assert stamps_of_methods(parse_config(settings)) == {plain: ("fedavg_llm",)}


def test_methods_on_exact_copies_are_stamped_as_such_whatever_the_compression():
    from fedproxy_secure.experiments.sweeps.method_notes import stamps_of_methods

    compare = {"methods": ["exact_h_ties", "fedproxy_h_ties"], "remove_ratios": [0]}
    stamps = stamps_of_methods(compressed("rotated", 0.5, compare=compare))
    start = "remove_ratio=0: every client holds the whole LLM"
    assert stamps[f"{start}, as it is."] == ("exact_h_ties",)
    assert stamps[f"{start}, with its hidden states rotated."] == ("fedproxy_h_ties",)


def test_a_width_that_removes_nothing_must_be_0():
    from fedproxy_secure.compress.defences.width import sizes

    whole = llm()
    every = sizes(whole, 0)
    assert every == (whole.config.num_key_value_heads, whole.config.intermediate_size)
    with pytest.raises(ConfigError, match=r"compress\.remove_ratio=1e-09: removes nothing; must be 0, or"):
        sizes(whole, 1e-9)
