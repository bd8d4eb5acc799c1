"""Methods as objects: names, the ends of the scale, what each asks of the settings, FedOT's plan."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedproxy_secure.config import AdapterConfig, load_config, parse_config
from fedproxy_secure.config.kinds import METHODS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.method import Method, method_of
from fedproxy_secure.experiments.methods.fedot import offsite_tuning_plan, widened
from fedproxy_secure.experiments.sweeps.method_cells import Cell, cells_of

PRIVATE = {"unit": "client", "target_epsilon": 8}


def test_every_method_is_called_as_it_is_registered_and_has_a_title():
    methods = METHODS.every()
    assert len(methods) == 24
    for name, method in methods.items():
        assert isinstance(method, Method)
        assert method.name == name
        assert method.title


def test_the_gap_has_one_floor_and_one_ceiling_and_federation_one_control():
    ends = [m.end for m in METHODS.every().values() if m.end is not None]
    assert sorted(ends) == ["ceiling", "floor", "pooled_proxy"]


def test_methods_are_known_without_torch():
    code = (
        "from fedproxy_secure.experiments.compare import plan_rows\n"
        "from fedproxy_secure.config import parse_config\n"
        "plan_rows(parse_config({}))\n"
        "import sys; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fedproxy_fedavg", {}),
        ("fedproxy_fedavg_lr", {"server_learning_rate": 3.0}),
        ("fedproxy_fedadam", {"rule": "fedadam", "server_learning_rate": 0.5}),
        ("fedproxy_fedprox", {"prox_mu": 0.25}),
        ("fedproxy_ties", {"rule": "ties"}),
        ("fedproxy_h_ties", {"rule": "h_ties"}),
        ("fedproxy_h_ties_pcr", {"rule": "h_ties", "pcr_lambda": 0.125}),
        ("masked_fedavg", {}),
        ("masked_h_ties_block", {"rule": "h_ties"}),
    ],
)
def test_a_method_fixes_its_fusion_and_takes_the_rest_from_the_settings(name, changes):
    own = {"server_learning_rate": 3.0, "fedadam_learning_rate": 0.5, "prox_mu": 0.25, "pcr_lambda": 0.125}
    config = parse_config(
        {"compare": own, "fusion": {"rule": "ties", "rho": 1.5, "prox_mu": 7, "server_learning_rate": 9}}
    )
    fusion = method_of(name).federation(config).fusion
    plain = {"rule": "fedavg", "server_learning_rate": 1.0, "pcr_lambda": 0.0, "prox_mu": 0.0, "rho": 1.5}
    assert fusion.model_dump() == {**config.fusion.model_dump(), **plain, **changes}


@pytest.mark.parametrize(
    ("name", "rate"), [("fedot", 1.0), ("fedot_equal_bytes", 1.0), ("fedot_equal_bytes_lr", 3.0)]
)
def test_offsite_tuning_has_the_servers_learning_rate_of_fedavg_where_its_name_says_so(name, rate):
    config = parse_config({"compare": {"server_learning_rate": 3.0}, "fusion": {"rule": "h_ties"}})
    fusion = method_of(name).federation(config).fusion
    assert (fusion.rule, fusion.server_learning_rate) == ("fedavg", rate)


def test_updates_travel_in_the_clear_unless_the_method_masks_them():
    config = parse_config({"protect": {"scheme": "ckks", "bits": 24}})
    for name, method in METHODS.every().items():
        settings = method.federation(config)
        if settings is None:
            continue
        masks = settings.protect.scheme == "masking"
        assert masks or settings.protect.scheme == "unsafe_plaintext", name
        assert settings.protect.bits == (24 if masks else 32)
    by_coordinate = method_of("masked_h_ties_coordinate").federation(config)
    assert by_coordinate.protect.granularity == "coordinate"


def test_a_comparison_is_refused_if_one_method_cannot_keep_what_the_settings_promise():
    config = parse_config({"privacy": PRIVATE, "fusion": {"rule": "fedavg"}})
    with pytest.raises(ConfigError, match=r"method fedavg_llm: protect.scheme=unsafe_plaintext: with"):
        cells_of(config)
    masked = {"methods": ["zero_shot", "masked_fedavg"]}
    cells = cells_of(parse_config({"privacy": PRIVATE, "fusion": {"rule": "fedavg"}, "compare": masked}))
    assert [c.name for c in cells] == [
        "zero_shot-seed0",
        "masked_fedavg-0.25-seed0",
        "masked_fedavg-0.5-seed0",
    ]


def test_the_longest_cells_come_first_and_methods_without_a_proxy_run_once():
    methods = ["zero_shot", "fedproxy_h_ties", "centralised_llm"]
    cells = cells_of(parse_config({"seeds": [0, 1], "compare": {"methods": methods}}))
    assert cells[:2] == [Cell(method="centralised_llm", remove_ratio=None, seed=s) for s in (0, 1)]
    assert len(cells) == 2 + 2 + 4


def test_fedot_trains_both_ends_around_an_emulator():
    plan, trained = offsite_tuning_plan(8, 0.5)
    assert plan.kept == (0, 1, 6, 7)
    assert trained == (0, 3)
    plan, trained = offsite_tuning_plan(32, 0.5)
    assert (plan.kept[:2], plan.kept[-2:]) == ((0, 1), (30, 31))
    assert trained == (0, 1, 14, 15)


def test_fedot_without_room_for_an_emulator_is_refused():
    with pytest.raises(ConfigError, match=r"remove_ratio=0.5: leaves 2 of 4 blocks; FedOT needs at"):
        offsite_tuning_plan(4, 0.5)


@pytest.mark.parametrize(("kind", "power"), [("lora", 1), ("ffa", 1), ("core", 2)])
def test_equal_bytes_are_about_equal_for_every_kind_of_adapter(kind, power):
    adapter = AdapterConfig(kind=kind, rank=16, alpha=32)
    wide = widened(adapter, 12, 3)
    assert 3 * wide.rank**power == 12 * adapter.rank**power
    assert wide.alpha / wide.rank == 2


def test_the_reference_of_every_comparison_has_the_server_learning_rate_of_the_methods_it_is_held_against():
    shipped = load_config(Path("configs/paper_small.yaml"), ["data.root=/data"])
    for config in (parse_config({}), shipped):
        assert config.compare.against == ("fedot_equal_bytes_lr", "fedot_equal_bytes", "fedproxy_h_ties")
        fused = method_of("fedot_equal_bytes_lr").federation(config)
        assert fused is not None
        assert fused.fusion.server_learning_rate == config.compare.server_learning_rate
    assert set(shipped.compare.against) - {"fedot_equal_bytes"} <= set(shipped.compare.methods)


@pytest.mark.parametrize("name", ["fedot", "fedot_equal_bytes", "fedot_equal_bytes_lr"])
def test_a_report_says_where_offsite_tuning_is_at_a_disadvantage(name):
    note = method_of(name).note
    assert note.startswith(f"{name} starts from unhealed blocks, whatever `heal` says")
    assert ("server learning rate is 1" in note) == (not name.endswith("_lr"))
