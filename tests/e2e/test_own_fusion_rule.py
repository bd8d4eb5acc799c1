"""The example of a fusion rule from outside: one file, chosen in the settings, refused under masking."""

from collections.abc import Iterator

import numpy as np
import pytest

from fedproxy_secure.config import FusionConfig, parse_config
from fedproxy_secure.config.kinds import FUSION_RULES
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.sweeps.matrix_cells import cell_config, cells_of
from fedproxy_secure.federate.fusion.averages import FedAvg
from fedproxy_secure.federate.fusion.elections import SignElection
from fedproxy_secure.federate.fusion.rule import FusionRule
from fedproxy_secure.federate.server import ServerState, fuse_round
from fedproxy_secure.federate.update import ClientUpdate
from tests.support.examples import lines_of, load_example
from tests.support.tiny import tiny_settings

IN_THE_CLEAR = {"scheme": "unsafe_plaintext"}


@pytest.fixture
def trimmed() -> Iterator[object]:
    rule = load_example("own_fusion_rule").TRIMMED_MEAN
    with FUSION_RULES.added("trimmed_mean", rule):
        yield rule


def update(name: str, values: list[float]) -> ClientUpdate:
    array = np.array(values, dtype=np.float32)
    return ClientUpdate(client=name, update=array, loss=1.0, steps=1, seconds=0.0, truncated=0)


def start(d: int) -> ServerState:
    return ServerState(round=0, adapter=np.zeros(d, dtype=np.float32))


def test_the_example_is_short():
    assert lines_of("own_fusion_rule") <= 60


def test_one_lying_client_does_not_move_the_trimmed_mean(trimmed):
    updates = [update("a", [1, 2]), update("b", [1, 2]), update("c", [1, 2]), update("d", [1e6, -1e6])]
    rule = FusionConfig(rule="trimmed_mean", options={"trim": 0.25})
    np.testing.assert_array_equal(fuse_round(start(2), updates, rule)[0].adapter, [1, 2])
    assert abs(fuse_round(start(2), updates, FusionConfig(rule="fedavg"))[0].adapter[0]) > 1e5


def test_a_run_under_it_names_it_in_its_report(trimmed, tmp_path):
    fusion = {"rule": "trimmed_mean", "options": {"trim": 0.4}}
    report = run(
        parse_config(tiny_settings(tmp_path, fusion=fusion, protect=IN_THE_CLEAR)), tmp_path / "run"
    )
    assert report.configurations[0].settings["fusion"] == "trimmed_mean"


def test_a_secure_sum_cannot_carry_it(trimmed, tmp_path):
    says = r"fusion\.rule=trimmed_mean: reads single updates, which protect\.scheme=masking hides"
    with pytest.raises(ConfigError, match=says):
        parse_config(
            tiny_settings(tmp_path, fusion={"rule": "trimmed_mean"}, protect={"scheme": "masking"})
        )


@pytest.mark.parametrize(
    ("fusion", "says"),
    [
        ({"rule": "trimmed_mean", "options": {"trim": 0.5}}, r"fusion\.options\.trim=0\.5: must be"),
        ({"rule": "trimmed_mean", "options": {"cut": 1}}, r"fusion\.options\.cut: is no option of .* trim"),
        ({"rule": "fedavg", "options": {"trim": 0.1}}, r"fusion\.options\.trim: is no option of .* none"),
        ({"rule": "trimed_mean"}, r"fusion\.rule=trimed_mean: is not known; did you mean 'trimmed_mean'"),
    ],
)
def test_wrong_options_are_refused_by_their_key(trimmed, fusion, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        parse_config(tiny_settings(tmp_path, fusion=fusion, protect=IN_THE_CLEAR))


def test_a_matrix_sweeps_its_options_and_takes_no_other_rules(trimmed, tmp_path):
    swept = [
        {"rule": "trimmed_mean", "options": {"trim": 0.2}},
        {"rule": "trimmed_mean"},
        {"rule": "fedavg"},
    ]
    settings = tiny_settings(
        tmp_path,
        fusion={"rule": "trimmed_mean", "options": {"trim": 0.3}},
        protect=IN_THE_CLEAR,
        matrix={"protections": [IN_THE_CLEAR], "fusions": swept, "remove_ratios": [0.5]},
    )
    config = parse_config(settings)
    cells, refused = cells_of(config)
    assert not refused
    assert [(c.fusion.name, dict(cell_config(config, c).fusion.options)) for c in cells] == [
        ("trimmed_mean_trim0.2", {"trim": 0.2}),
        ("trimmed_mean", {"trim": 0.3}),
        ("fedavg", {}),
    ]


class Counting(FedAvg):
    """A rule with an optimiser: its n-th step is n times the mean."""

    name = "counting"

    def step(self, merged, memory):
        number = memory.get("number", np.zeros(1)) + 1
        return (merged * number).astype(np.float32), {"number": number}


def test_what_a_rule_remembers_is_kept_with_the_servers_state(tmp_path):
    with FUSION_RULES.added("counting", Counting()):
        state, rule = start(1), FusionConfig(rule="counting")
        for _ in range(3):
            state, _ = fuse_round(state, [update("a", [1]), update("b", [1])], rule)
            state.save(tmp_path / "state.safetensors")
            state = ServerState.load(tmp_path / "state.safetensors")
    assert state.adapter.tolist() == [1 + 2 + 3]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.ones((2, 2)), r"merge returned float64 of shape \(2, 2\); must be floats of shape \(2,\)"),
        (np.array([1, 2]), r"merge returned int64 of shape \(2,\); must be floats"),
        (np.array([1, np.nan]), r"merge returned NaN or infinity; must be finite"),
    ],
)
def test_what_a_rule_may_not_return_stops_the_round_and_names_the_rule(wrong, says):
    class Wrong(FusionRule):
        name = "wrong"

        def merge(self, tau, analysis, fusion):
            return wrong

    with (
        FUSION_RULES.added("wrong", Wrong()),
        pytest.raises(ConfigError, match=rf"fusion\.rule=wrong: {says}"),
    ):
        fuse_round(start(2), [update("a", [1, 1])], FusionConfig(rule="wrong"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, r"fusion\.rule=mine: has no merge and is not linear; must have merge"),
        (
            {"linear": True, "merge": lambda self, tau, analysis, fusion: tau[0]},
            r"fusion\.rule=mine: is linear and has merge, which would never be called; must be one",
        ),
    ],
    ids=["neither", "both"],
)
def test_a_rule_that_merges_and_is_linear_or_neither_is_refused_before_the_run(body, says, tmp_path):
    said = {"name": "mine", "check_settings": lambda self, fusion: None, **body}
    mine = type("Mine", (FusionRule,), said)()
    with FUSION_RULES.added("mine", mine), pytest.raises(ConfigError, match=says):
        parse_config(tiny_settings(tmp_path, fusion={"rule": "mine"}, protect=IN_THE_CLEAR))


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({}, r"fusion\.rule=mine: has no kept_share; must have kept_share and margin"),
        ({"kept_share": lambda self, fusion: 0.5}, r"fusion\.rule=mine: has no margin; must have margin"),
        ({"margin": lambda self, fusion: 1.0}, r"fusion\.rule=mine: has no kept_share; must have kept"),
    ],
    ids=["neither", "no-margin", "no-share"],
)
def test_a_rule_that_elects_signs_without_its_margin_or_share_is_refused_before_the_run(
    has, says, tmp_path
):
    body = {"name": "mine", "merge": lambda self, tau, analysis, fusion: tau[0], **has}
    mine = type("Mine", (SignElection,), body)()
    with FUSION_RULES.added("mine", mine), pytest.raises(ConfigError, match=says):
        parse_config(tiny_settings(tmp_path, fusion={"rule": "mine"}, protect=IN_THE_CLEAR))


def test_a_rule_cannot_change_the_updates_it_reads():
    class Greedy(FusionRule):
        name = "greedy"

        def merge(self, tau, analysis, fusion):
            tau[:] = 0
            return tau[0]

    with FUSION_RULES.added("greedy", Greedy()), pytest.raises(ValueError, match="read-only"):
        fuse_round(start(1), [update("a", [1])], FusionConfig(rule="greedy"))
