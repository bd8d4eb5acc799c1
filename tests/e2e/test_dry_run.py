"""A dry run estimates seconds from steps that it times, and leaves nothing behind."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.experiments import compare, matrix
from fedproxy_secure.experiments.dry_run import plan
from fedproxy_secure.experiments.sweeps.cell_progress import cell_units
from fedproxy_secure.experiments.sweeps.method_cells import Cell
from fedproxy_secure.experiments.sweeps.pace import Pace, together
from tests.support.tiny import tiny_settings

PLAIN = {"scheme": "unsafe_plaintext"}
PACE = Pace(ratio=0.5, batch=8, tests=100, setup=10.0, step=2.0, llm=0.04, proxy=0.02, window=3.0)
SETTINGS = {
    "federate": {"rounds": 3},
    "local": {"steps": 5, "batch_size": 8},
    "heal": {"steps": 4},
    "compress": {"remove_ratio": 0.5},
}  # with four clients: 60 steps


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        seeds=[0, 1],
        heal={"steps": 2, "batch_size": 2},
        compare={"methods": ["zero_shot", "fedproxy_h_ties"], "remove_ratios": [0.5], "jobs": 1},
    )


def test_the_seconds_of_a_run_are_those_of_its_steps_and_of_its_records():
    config = parse_config(SETTINGS)
    healed = 4 * 4 * 3  # steps, windows in each, seconds of a window
    assert PACE.run_seconds(config) == pytest.approx(10 + healed + 60 * 2 + 2 * 100 * (0.04 + 0.02))
    healed *= (1 + 3.5 * 0.75) / (1 + 3.5 * 0.5)  # the LLM forward, and three quarters of it trained
    assert PACE.run_seconds(config, remove_ratio=0.25) == pytest.approx(10 + healed + 180 + 200 * 0.07)


def test_what_plug_back_reads_is_counted_where_it_plugs_back():
    config = parse_config({**SETTINGS, "plug_back": {"align_windows": 20}})
    plain = parse_config(SETTINGS)
    passes, in_a_step = 2 + 5 * 0.5, 1 + 3.5 * 0.5  # of a window, and of one in a step of healing
    aligned = 20 * 3 * passes / in_a_step
    assert PACE.run_seconds(config) - PACE.run_seconds(plain) == pytest.approx(aligned, rel=0.01)
    times = {"fedproxy_h_ties": 1, "local_only": 4, "zero_shot_proxy": 0}  # once for each client alone
    cells = {m: Cell(method=m, remove_ratio=0.5, seed=0) for m in times}
    more = {m: PACE.cell_seconds(config, c) - PACE.cell_seconds(plain, c) for m, c in cells.items()}
    assert more == {m: pytest.approx(n * aligned, rel=0.01) for m, n in times.items()}
    more = {m: cell_units(config, c, tests=9) - cell_units(plain, c, tests=9) for m, c in cells.items()}
    assert more["local_only"] == 4 * more["fedproxy_h_ties"] > 0
    rotated = {**SETTINGS, "compress": {**SETTINGS.get("compress", {}), "kind": "rotated"}}
    both = [parse_config({**rotated, "plug_back": {"align_windows": n}}) for n in (20, 40)]
    assert PACE.run_seconds(both[0]) == PACE.run_seconds(both[1]), "it is not aligned"
    searched = parse_config({**SETTINGS, "plug_back": {"scale": "public_text"}})
    assert 0 < PACE.plug_back_seconds(searched, 0.5) < PACE.plug_back_seconds(config, 0.5) * 4


@pytest.mark.parametrize(
    ("method", "ratio", "seconds"),
    [
        ("zero_shot", None, 10 + 4),
        ("centralised_llm", None, 10 + 4 + 60 * 2 * 2),
        ("fedproxy_h_ties", 0.5, 10 + 4 + 2 + 60 * 2),
        ("zero_shot_proxy", 0.25, 10 + 4 + 3),
    ],
)
def test_the_seconds_of_a_cell_follow_from_what_it_trains_and_at_which_size(method, ratio, seconds):
    cell = Cell(method=method, remove_ratio=ratio, seed=0)
    assert PACE.cell_seconds(parse_config(SETTINGS), cell) == pytest.approx(seconds)


def test_several_processes_take_no_less_than_the_longest_piece():
    assert together([10.0, 10.0, 10.0, 10.0], 2) == 20.0
    assert together([30.0, 10.0], 2) == 30.0


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        pytest.param({"unit": "record", "target_epsilon": 8, "target_delta": 1e-3}, marks=pytest.mark.slow),
    ],
)
def test_a_plan_times_real_steps(settings, privacy):
    planned = plan(parse_config({**settings, "privacy": privacy}))
    pace = planned.pace
    assert min(pace.step, pace.llm, pace.proxy, pace.window, pace.setup) > 0
    assert (pace.batch, pace.tests) == (4, 3 * 12)
    assert planned.run_seconds > 2 * pace.setup  # two seeds


def test_only_clients_that_a_round_asks_are_counted(settings):
    half = {"rounds": 4, "participation": 0.5, "min_clients": 2}
    changes = {"federate": half, "local": {"steps": 5, "batch_size": 4}, "protect": PLAIN}
    config = parse_config({**settings, **changes})
    assert dict(plan(config).rows())["steps"] == "40 per seed (4 rounds), 2 seeds"
    assert dict(compare.plan_rows(config))["training"] == "2 cells of 40 steps, 80 together"
    swept = config.model_copy(update={"seeds": (0,)})
    assert dict(matrix.plan_rows(swept))["training"] == "40 steps per cell, and for each of 1 ceilings"


@pytest.mark.parametrize("command", ["run", "compare", "matrix"])
def test_every_dry_run_says_how_long_and_that_it_was_measured(settings, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    shown = CliRunner().invoke(app, [command, "tiny.yaml", "--dry-run"])
    assert shown.exit_code == 0
    line = next(row for row in shown.stdout.splitlines() if row.startswith("time: "))
    assert re.search(r"about \d+ (s|min|h)", line)
    assert "s per step of 4 records" in line
    assert "s per window of public text" in line
    assert line.endswith("just measured on this machine)")
    assert [f.name for f in tmp_path.iterdir()] == ["tiny.yaml"]
