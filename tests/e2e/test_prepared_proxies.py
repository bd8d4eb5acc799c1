"""Healed proxies are made once for all cells that start from them, and go when no cell needs them."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments import stages
from fedproxy_secure.experiments.compare import compare
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.sweeps.method_cells import Cell, read_cell, run_cell
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import HEALING
from tests.support.tiny import tiny_settings
from tests.support.told import Told

HEAL = "proxy 0.5-seed0: heal"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        heal={"steps": 2, "batch_size": 2, "learning_rate": 0.01},
        compare={
            "methods": ["zero_shot", "zero_shot_proxy", "fedproxy_h_ties", "local_only", "exact_h_ties"],
            "remove_ratios": [0.5],
            "jobs": 1,
        },
        matrix={
            "protections": [{"scheme": "unsafe_plaintext"}, {"scheme": "masking"}],
            "remove_ratios": [0.5],
            "jobs": 1,
        },
        attacks={"suite": "none"},
    )


def files_below(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_weights_that_cannot_be_linked_are_lent_whole_or_not_at_all(settings, tmp_path, monkeypatch):
    """A copy that was cut short would be taken for healed weights."""
    proxy = PreparedProxy(remove_ratio=0.5, seed=0, config=parse_config(settings))
    source = RunFolder(path=proxy.folder(tmp_path)).write_bytes(HEALING, b"weights" * 1000)
    cell = tmp_path / "cell"

    def no_links(*_args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(_source, place):
        Path(place).write_bytes(b"wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(RunFolderError, match="No space left on device"):
            proxy.link_into(tmp_path, cell)
    assert not (cell / HEALING).exists()
    proxy.link_into(tmp_path, cell)
    assert {p.name: p.read_bytes() for p in cell.iterdir()} == {HEALING: source.read_bytes()}


def test_a_comparison_heals_a_proxy_once_and_keeps_its_record_alone(settings, tmp_path):
    config, told = parse_config(settings), Told()
    report = compare(config, tmp_path, progress=told)
    assert [task for task in told.started if "heal" in task] == [
        HEAL,  # the others find it finished; a method on exact copies asks for none
        "zero_shot_proxy-0.5-seed0: heal",
        "fedproxy_h_ties-0.5-seed0: heal",
        "local_only-0.5-seed0: heal",
    ]
    assert {task for task, _ in told.advanced if "heal" in task} == {HEAL}
    assert files_below(tmp_path / "proxies") == ["0.5-seed0/proxy.json"]
    record = json.loads((tmp_path / "proxies/0.5-seed0/proxy.json").read_text())
    assert record["healing"]["kl_after"] < record["healing"]["kl_before"]
    (row,) = report.proxies
    assert row.fidelity.kl.value == record["fidelity"]["kl_nats"] < row.before_healing.kl.value
    assert row.fidelity.verbatim.value < row.before_healing.verbatim.value
    assert row.above_llm.n == report.rows[0].average.n
    cell = Cell(method="fedproxy_h_ties", remove_ratio=0.5, seed=0)
    assert read_cell(tmp_path, cell).outcome == run_cell(config, cell).outcome  # which heals itself


@pytest.mark.slow
def test_a_proxy_that_nobody_heals_is_measured_once_by_a_cell_that_has_made_it(settings, tmp_path):
    own = {**settings["compare"], "methods": ["zero_shot", "exact_h_ties"]}
    config = parse_config({**settings, "heal": {"steps": 0}, "compare": own})
    (row,) = compare(config, tmp_path).proxies
    assert row.fidelity.kl.value > 0
    assert row.before_healing is None
    assert files_below(tmp_path / "proxies") == ["0.5-seed0/proxy.json"]
    record = tmp_path / "proxies/0.5-seed0/proxy.json"
    before = record.stat().st_mtime_ns
    more = parse_config(
        {
            **settings,
            "heal": {"steps": 0},
            "compare": {**own, "methods": [*own["methods"], "fedproxy_h_ties"]},
        }
    )
    assert compare(more, tmp_path, resume=True).proxies == (row,)
    assert record.stat().st_mtime_ns == before


def test_a_fit_without_steps_is_healing_too(settings, tmp_path):
    methods = {**settings["compare"], "methods": ["zero_shot_proxy", "exact_h_ties"]}
    config, told = parse_config({**settings, "heal": {"fit_windows": 8}, "compare": methods}), Told()
    compare(config, tmp_path, progress=told)
    assert [steps for task, steps in told.advanced if task == HEAL] == [1, 1]  # two blocks
    record = json.loads((tmp_path / "proxies/0.5-seed0/proxy.json").read_text())
    assert record["healing"]["tokens"] == 8 * 128
    assert record["healing"]["state_error_after"] < record["healing"]["state_error_before"]


def test_the_time_of_a_run_has_all_of_its_healing_also_what_was_healed_before_it_began(
    settings, tmp_path, monkeypatch
):
    def healed_elsewhere(*args, **kwargs):
        return replace(heal(*args, **kwargs), seconds=1000.0)

    monkeypatch.setattr(stages, "heal", healed_elsewhere)
    report = run(parse_config(settings), tmp_path / "run")
    seconds = json.loads((tmp_path / "run/seed-0/result.json").read_text())["seconds"]
    assert 1000 < seconds["compress"] < 1100
    (configuration,) = report.configurations
    assert configuration.measure("seconds_total").estimate.value == sum(seconds.values())


class StopAfter(Told):
    """Interrupts the comparison when this piece of it has ended."""

    def __init__(self, piece):
        super().__init__()
        self.piece = piece

    def advance(self, task, steps=1, note=""):
        super().advance(task, steps, note)
        if task == "compare" and note.endswith(self.piece):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_with_the_proxy_it_has(settings, tmp_path):
    config = parse_config(settings)
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path, progress=StopAfter("zero_shot_proxy-0.5-seed0"))
    assert "0.5-seed0/healing.safetensors" in files_below(tmp_path / "proxies")
    told = Told()
    compare(config, tmp_path, resume=True, progress=told)
    assert HEAL in told.started
    assert not any("heal" in task for task, _ in told.advanced)
    assert files_below(tmp_path / "proxies") == ["0.5-seed0/proxy.json"]


@pytest.mark.slow
def test_methods_that_start_from_no_healed_proxy_have_none_made(settings, tmp_path):
    own = {
        **settings["compare"],
        "methods": ["zero_shot", "fedot", "exact_h_ties"],
        "remove_ratios": [0.25],
    }
    told = Told()
    compare(parse_config({**settings, "compare": own}), tmp_path, progress=told)
    assert not any("heal" in task for task in told.started)
    assert not (tmp_path / "proxies").exists()


@pytest.mark.slow
def test_a_matrix_heals_a_proxy_once_for_cells_of_all_protections(settings, tmp_path):
    told = Told()
    report = matrix(parse_config(settings), tmp_path, progress=told)
    assert {task for task, _ in told.advanced if "heal" in task} == {HEAL}
    plans = [json.loads(f.read_text()) for f in tmp_path.glob("cells/*/seed-0/plan.json")]
    assert len(plans) == 2
    assert plans[0] == plans[1]
    assert all(not c.failed for c in report.configurations)
    assert not (tmp_path / "proxies").exists()
    assert not list(tmp_path.rglob("healing.*"))
    assert verify_run(tmp_path).problems == ()


class WhatIsOpen(Told):
    """Remembers, for each task that is started, which others are open."""

    def __init__(self):
        super().__init__()
        self.beside = []

    def start(self, task, total):
        self.beside.append((task, set(self.open)))
        super().start(task, total)


def test_processes_wait_for_the_proxy_that_their_cells_start_from(settings, tmp_path):
    own = {**settings["compare"], "methods": ["zero_shot_proxy", "fedproxy_h_ties"], "jobs": 2}
    told = WhatIsOpen()
    report = compare(parse_config({**settings, "compare": own}), tmp_path, progress=told)
    assert len(report.rows) == 2
    assert told.started[:2] == ["compare", HEAL]
    assert told.started.count(HEAL) == 1
    assert {task.partition("-")[0] for task in told.started[2:]} == {"zero_shot_proxy", "fedproxy_h_ties"}
    assert not [task for task, others in told.beside if HEAL in others]
    assert told.open == {}
