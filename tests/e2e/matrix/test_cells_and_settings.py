"""A matrix's cells and their settings, and which configurations it refuses or leaves out."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.sweeps.cell_progress import PARTS, stage_units
from fedproxy_secure.experiments.sweeps.matrix_cells import (
    cell_config,
    cells_of,
    title_of,
)
from fedproxy_secure.experiments.sweeps.matrix_report import (
    configurations_of,
    groups_of,
)
from fedproxy_secure.protect.plaintext import Plaintext
from fedproxy_secure.report.sweep import labelled
from tests.support.matrix import MASKING, PLAINTEXT
from tests.support.told import Told

BY_COORDINATE = {"rule": "h_ties", "granularity": "coordinate"}


def test_a_protection_may_have_settings_of_its_own_which_its_title_says(settings, tmp_path):
    private = {
        **MASKING,
        "epsilon": 8,
        "recipe": "small",
        "settings": {"adapter": {"kind": "core"}, "local": {"learning_rate": 0.05}},
    }
    config = parse_config(
        {**settings, "matrix": {"protections": [MASKING, private], "remove_ratios": [0.5]}}
    )
    plain, small = (
        next(c for c in cells_of(config)[0] if c.protection.recipe == name) for name in (None, "small")
    )
    assert small.name == "masking_dp8_small-0.5-fedavg-lora-seed0"
    assert "adapter.kind=core, local.learning_rate=0.05" in title_of(small, config)
    changed = cell_config(config, small)
    assert (changed.adapter.kind, changed.local.learning_rate) == ("core", 0.05)
    assert cell_config(config, plain).adapter.kind == "lora"
    recipes = {
        c.name: (c.scheme, c.recipe)
        for c in configurations_of(config, groups_of(config, tmp_path, [plain, small]))
    }
    assert recipes == {
        title_of(plain, config): ("masking", ""),
        title_of(small, config): ("masking", "small"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": "small"},
        {"settings": {"adapter": {"kind": "core"}}},
        {"recipe": "small", "settings": {"data": {"max_tokens": 9}}},
    ],
)
def test_settings_of_a_protection_need_a_name_and_leave_the_records_alone(settings, wrong):
    with pytest.raises(ConfigError, match=r"matrix\.protections"):
        parse_config({**settings, "matrix": {"protections": [{**MASKING, **wrong}]}})


def test_cells_are_every_combination_and_what_cannot_run_is_said(settings):
    swept = {
        "protections": [MASKING, {"scheme": "ckks"}],
        "remove_ratios": [0.25, 0.5],
        "fusions": [{"rule": "fedavg"}, BY_COORDINATE],
    }
    cells, refused = cells_of(parse_config({**settings, "matrix": swept}))
    assert len(cells) == 2 * (2 * 2 * 2 - 2)
    assert len(refused) == 2
    assert refused[0].startswith("ckks-0.25-h_ties_coordinate-lora: protect.granularity=coordinate")


def test_a_matrix_that_cannot_run_at_all_says_so(settings):
    two_clients = {**settings, "data": {**settings["data"], "clients": settings["data"]["clients"][:2]}}
    plain = {"protect": PLAINTEXT, "matrix": {"protections": [MASKING]}}
    changed = parse_config({**two_clients, **plain})
    with pytest.raises(ConfigError, match="no configuration can run"):
        cells_of(changed)


def test_a_cell_has_its_own_settings_and_nothing_else_changes(settings):
    swept = {"protections": [{"scheme": "masking", "epsilon": 3}], "fusions": [BY_COORDINATE]}
    config = parse_config({**settings, "attacks": {"suite": "smoke"}, "matrix": swept})
    cells, _ = cells_of(config)
    own = cell_config(config, cells[0])
    assert (own.protect.scheme, own.protect.granularity) == ("masking", "coordinate")
    assert (own.privacy.unit, own.privacy.target_epsilon) == ("record", 3.0)
    assert own.audit.record
    assert own.seeds == (cells[0].seed,)
    assert own.local == config.local


@pytest.mark.parametrize("suite", ["smoke", "none"])
def test_a_cell_records_into_its_own_folder_where_its_attacks_read(settings, suite):
    audit = {"record": True, "folder": "elsewhere"}
    config = parse_config({**settings, "audit": audit, "attacks": {"suite": suite}})
    cell = cell_config(config, cells_of(config)[0][0])
    assert (cell.audit.record, cell.audit.folder) == (suite == "smoke", None)


@pytest.mark.parametrize(
    ("protection", "key", "title", "unit", "epsilon"),
    [
        (PLAINTEXT, "unsafe_plaintext", "no protection", "none", None),
        (MASKING, "masking", "masking", "none", None),
        ({**MASKING, "epsilon": 8}, "masking_dp8", "masking + DP 8", "record", 8.0),
        ({**MASKING, "epsilon": 0.5}, "masking_dp0.5", "masking + DP 0.5", "record", 0.5),
        (
            {**MASKING, "epsilon": 4, "unit": "client"},
            "masking_client_dp4",
            "masking + client-level DP 4",
            "client",
            4.0,
        ),
        ({"scheme": "ckks", "epsilon": 2}, "ckks_dp2", "CKKS + DP 2", "record", 2.0),
        ({**PLAINTEXT, "epsilon": 3}, "unsafe_plaintext_dp3", "no protection + DP 3", "record", 3.0),
    ],
)
def test_any_scheme_is_swept_with_any_epsilon(settings, protection, key, title, unit, epsilon):
    config = parse_config({**settings, "matrix": {"protections": [protection], "remove_ratios": [0.5]}})
    cells, refused = cells_of(config)
    assert not refused
    assert cells[0].name == f"{key}-0.5-fedavg-lora-seed0"
    assert title_of(cells[0], config) == f"{title}, 50% removed"
    own = cell_config(config, cells[0])
    assert (own.protect.scheme, own.privacy.unit) == (protection["scheme"], unit)
    assert epsilon is None or own.privacy.target_epsilon == epsilon


class Coarse(Plaintext):
    """A protection with an option."""

    name, title, options = "coarse", "coarse", ("bits",)


def test_a_protections_options_are_swept_and_are_no_other_schemes(settings, tmp_path):
    swept = [{"scheme": "coarse", "options": {"bits": b}} for b in (2, 4)]
    with PROTECTIONS.added("coarse", Coarse()):
        raw = {**settings, "protect": {"scheme": "coarse", "options": {"bits": 8}}}
        raw["matrix"] = {"protections": [*swept, {"scheme": "coarse"}, MASKING], "remove_ratios": [0.5]}
        config = parse_config(raw)
        cells, refused = cells_of(config)
        assert not refused
        options = {c.protection.name: dict(cell_config(config, c).protect.options) for c in cells}
        assert options == {"coarse_bits2": {"bits": 2}, "coarse_bits4": {"bits": 4}} | {
            "coarse": {"bits": 8},
            "masking": {},
        }
        assert "coarse bits=2, 50% removed" in {title_of(c, config) for c in cells}
        kinds = [
            item.kind for item in labelled(configurations_of(config, groups_of(config, tmp_path, cells)))
        ]
        assert kinds == ["coarse (bits=2)", "coarse (bits=4)", "coarse", "masking"]
        raw["protect"] = {"scheme": "coarse", "options": {"bitz": 8}}
        with pytest.raises(
            ConfigError, match=r"^protect.options.bitz: is no option of protect.scheme=coar"
        ):
            parse_config(raw)


def test_a_name_that_no_folder_can_have_is_refused_before_the_matrix_begins(settings):
    recipe = {"recipe": "r" * 250, "settings": {"local": {"steps": 1}}}
    swept = {"protections": [{**MASKING, **recipe}], "remove_ratios": [0.5]}
    with pytest.raises(ConfigError, match="characters; must have at most 200; shorten `recipe`"):
        cells_of(parse_config({**settings, "matrix": swept}))


def test_a_protection_that_cannot_be_is_left_out_with_the_rule_it_breaks(settings):
    client_level = {"scheme": "ckks", "epsilon": 4, "unit": "client"}
    swept = {"protections": [MASKING, client_level], "remove_ratios": [0.5]}
    cells, refused = cells_of(parse_config({**settings, "matrix": swept}))
    assert {c.protection.scheme for c in cells} == {"masking"}
    assert refused == [
        "ckks_client_dp4-0.5-fedavg-lora: protect.scheme=ckks: with privacy.unit=client must be masking, "
        "inside whose sums the noise is added"
    ]


def test_a_limit_below_a_swept_epsilon_is_refused_for_that_cell_alone(settings):
    swept = {"protections": [{**MASKING, "epsilon": e} for e in (2, 8)], "remove_ratios": [0.5]}
    raw = {**settings, "privacy": {"target_epsilon": 2, "max_epsilon": 4}, "matrix": swept}
    cells, (line,) = cells_of(parse_config(raw))
    assert {c.protection.epsilon for c in cells} == {2.0}
    assert line.startswith("masking_dp8-0.5-fedavg-lora: privacy: max_epsilon=4.0: must be >=")


@pytest.mark.parametrize(
    ("swept", "line"),
    [
        ({"protections": [MASKING, MASKING]}, "protections=[masking, masking]: must all differ"),
        ({"protections": [{"scheme": "maskin"}]}, "did you mean 'masking'?"),
        ({"protections": [{**MASKING, "epsilon": 0}]}, "matrix.protections.0.epsilon=0"),
        ({"compressions": [{"kind": "drop_block"}]}, "did you mean 'drop_blocks'?"),
        ({"compressions": [{"kind": "drop_blocks", "options": {"a": "../b"}}]}, "part of folder names"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(settings, swept, line):
    with pytest.raises(ConfigError) as raised:
        parse_config({**settings, "matrix": swept})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_option_that_a_compression_lacks_leaves_its_cells_out(settings):
    compressions = [{"kind": "drop_blocks"}, {"kind": "drop_blocks", "options": {"bits": 4}}]
    config = parse_config({**settings, "matrix": {**settings["matrix"], "compressions": compressions}})
    cells, refused = cells_of(config)
    assert {c.key.split("-")[1] for c in cells} == {"drop_blocks"}
    assert len(refused) == 2
    assert "drop_blocks_bits4-0.5-fedavg-lora: compress.options.bits: is no option" in refused[0]


def test_a_dry_run_counts_cells_and_says_what_is_left_out(settings, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    shown = CliRunner().invoke(app, ["matrix", str(file), "--dry-run"])
    assert shown.exit_code == 0
    assert "cells: 4: 2 configurations, 2 seeds" in shown.stdout


@pytest.mark.parametrize("suite", ["none", pytest.param("smoke", marks=pytest.mark.slow)])
def test_the_line_of_a_matrix_moves_while_cells_run_and_ends_whole(settings, tmp_path, suite):
    swept = {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1}
    attacks = {"suite": suite, "views": ["server"], "seconds": 20}
    config = parse_config({**settings, "seeds": [0], "matrix": swept, "attacks": attacks})
    told = Told()
    matrix(config, tmp_path / "out", progress=told)
    (cell,), _ = cells_of(config)
    tasks = {task.removeprefix(f"{cell.name}: ").partition(":")[0] for task in told.started}
    stages = stage_units(cell_config(config, cell), tests=36, healed=False)
    assert {stage for stage, units in stages.items() if units} <= tasks, "a stage's name has changed"
    steps = [count for task, count in told.advanced if task == "matrix"]
    assert sum(steps) == PARTS
    assert len([count for count in steps if count]) > 2 * 4, "a cell and a ceiling have some steps each"
