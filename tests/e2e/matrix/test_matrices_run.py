"""A matrix runs, fails in parts, is killed and resumed, and joins with other runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.matrix import attack_jobs, matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.sweeps.matrix_cells import (
    cells_of,
    note_failure,
)
from fedproxy_secure.experiments.sweeps.matrix_report import (
    ceilings_of,
    no_ceiling,
    todo_of,
)
from fedproxy_secure.experiments.sweeps.method_cells import cell_file
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import CEILING_NOT_COUNTED
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import BASELINES, CELL_DONE, CELL_FAILED
from tests.support.matrix import MASKING, PLAINTEXT
from tests.support.sample_report import sample_report

TIMED = ("seconds_federate", "seconds_total", "seconds_over_unprotected", "peak_memory_bytes")


def untimed(report: Report) -> list:
    """Configurations without what another run measures anew."""
    return [
        replace(c, measures=tuple(m for m in c.measures if m.key not in TIMED))
        for c in report.configurations
    ]


def test_attacks_of_the_last_cell_use_the_cores_that_nothing_else_needs(settings, tmp_path):
    config = parse_config(settings)
    cells, _ = cells_of(config)
    ceilings = ceilings_of(config)
    assert (len(cells), len(ceilings)) == (4, 2)
    assert todo_of(config, tmp_path, cells) == [*ceilings, *cells], "the longest come first"
    jobs = [attack_jobs(config, tmp_path, cells, 4)]
    for cell in cells[:3]:
        if cell is cells[0]:
            note_failure(tmp_path / cell.folder, "cannot run")
        else:
            (tmp_path / cell.folder).mkdir(parents=True)
            (tmp_path / cell.folder / CELL_DONE).write_text("{}")
        jobs.append(attack_jobs(config, tmp_path, cells, 4))
    for ceiling in ceilings:
        file = cell_file(tmp_path / BASELINES, ceiling)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        jobs.append(attack_jobs(config, tmp_path, cells, 4))
    assert jobs == [1, 1, 1, 1, 2, 4]
    assert attack_jobs(config, tmp_path, cells, 1) == 1


@pytest.mark.slow
def test_a_matrix_names_the_factors_that_were_searched_for(settings, tmp_path):
    raw = {
        **settings,
        "seeds": [0],
        "plug_back": {"scale": "public_text"},
        "matrix": {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1},
    }
    report = matrix(parse_config(raw), tmp_path)
    (result,) = tmp_path.glob("cells/*/seed-0/result.json")
    found = json.loads(result.read_text())["plug_back"]["scale"]
    (note,) = [n for n in report.notes if n.startswith("Plug-back")]
    assert note.endswith(f"{report.configurations[0].name}: {found:g} (seed 0).")


def depth_below(top: int) -> int:
    """Return how many processes lie one below the other, of those that began below this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    depths = [0]
    for process in parents:
        depth = 0
        while process in parents and process != top:
            process, depth = parents[process], depth + 1
        depths += [depth] if process == top else []
    return max(depths)


@contextmanager
def watched_depth() -> Iterator[set[int]]:
    """Note how deep this process's children nest while the block runs."""
    seen: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            seen.add(depth_below(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_attacks_of_the_last_cell_run_in_processes_that_its_process_starts(settings, tmp_path):
    raw = {
        **settings,
        "seeds": [0],
        "attacks": {"suite": "smoke", "views": ["server"], "seconds": 60},
        "matrix": {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 2},
    }
    with watched_depth() as depths:
        (cell,) = matrix(parse_config(raw), tmp_path).configurations
    assert not cell.failed
    assert {f.outcome for f in cell.findings} & {"SUCCEEDED", "RESISTED", "INCONCLUSIVE"}
    assert max(depths) == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_matrix_killed_twice_resumes_to_the_same_report(settings, tmp_path: Path):
    config = parse_config(settings)
    whole = matrix(config, tmp_path / "whole")
    assert [c.name for c in whole.configurations] == ["no protection, 50% removed", "masking, 50% removed"]
    for configuration in whole.configurations:
        assert configuration.seeds == (0, 1)
        assert configuration.measure("accuracy_fused").estimate.n == 2
    assert whole.configurations[0].unsafe
    assert Report.load(tmp_path / "whole") == whole

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "fedproxy_secure", "matrix", str(file), "--out", str(out), "--resume"]
    for done in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(out.glob("cells/*/cell.json"))) < done and process.poll() is None:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = matrix(config, out, resume=True)
    assert untimed(resumed) == untimed(whole)


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_cell_stands_in_the_report_and_loses_nothing(settings, tmp_path: Path):
    raw = {
        **settings,
        "seeds": [0],
        "privacy": {"target_delta": 0.5},
        "matrix": {**settings["matrix"], "protections": [MASKING, {"scheme": "masking", "epsilon": 8}]},
    }
    report = matrix(parse_config(raw), tmp_path)
    fine, failed = report.configurations
    assert fine.measure("gap_closed") is not None or fine.measure("accuracy_centralised") is not None
    assert not fine.failed
    assert failed.measures == ()
    assert "target_delta=0.5: must be < 1 / the client's number of records" in failed.failed[0]


def test_a_ceiling_that_failed_is_named_with_its_reason(settings, tmp_path: Path):
    config = parse_config(settings)
    note_failure(tmp_path / BASELINES / "centralised_llm-seed1", "out of memory")
    assert no_ceiling(config, tmp_path) == [
        "gap closed: centralised_llm-seed0 failed: did not finish",
        "gap closed: centralised_llm-seed1 failed: out of memory",
    ]


def test_a_matrix_forgets_why_something_failed_before_and_logs_what_ends_it(settings, tmp_path: Path):
    own = {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1}
    config = parse_config({**settings, "seeds": [0], "matrix": own})
    Witness.open(RunFolder.create(tmp_path, config, "matrix"), config, command="fedproxy-secure matrix x")
    (cell,), (ceiling,) = cells_of(config)[0], ceilings_of(config)
    places = [tmp_path / cell.folder, tmp_path / BASELINES / ceiling.name]
    for place in places:
        note_failure(place, "out of memory")
    report = matrix(config, tmp_path, resume=True)
    assert [c.failed for c in report.configurations] == [()]
    assert not [place for place in places if (place / CELL_FAILED).exists()]
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()  # stands in for a full disk
    with pytest.raises(RunFolderError, match=r"report\.html"):
        matrix(config, tmp_path, resume=True)
    assert "aborted" in (tmp_path / "audit.jsonl").read_text().splitlines()[-1]


def test_runs_of_the_same_settings_join_over_their_seeds(settings, tmp_path: Path):
    for seed in (0, 1):
        run(parse_config({**settings, "seeds": [seed]}), tmp_path / str(seed), in_cell=True)
    report = join([tmp_path / "0", tmp_path / "1"], tmp_path / "both", command="typed")
    (configuration,) = report.configurations
    assert configuration.seeds == (0, 1)
    assert configuration.measure("accuracy_fused").estimate.n == 2
    assert configuration.measure("token_auc") is None
    assert any("no suite of attacks ran" in line for line in report.not_measured)
    assert json.loads((tmp_path / "both" / "report.json").read_text())["command"] == "typed"


@pytest.mark.parametrize("private", [True, False])
def test_a_matrix_that_is_joined_tells_that_its_ceiling_is_not_counted(settings, tmp_path: Path, private):
    RunFolder.create(tmp_path / "matrix", parse_config(settings), "matrix")
    (tmp_path / "matrix" / "cells").mkdir()
    protections = ("masking", "masking_dp8") if private else ("masking",)
    sample_report(protections=protections, ratios=(0.5,), seeds=(0,), rounds=2).write(tmp_path / "matrix")
    report = join([tmp_path / "matrix"], tmp_path / "out", command="")
    assert (CEILING_NOT_COUNTED in report.composition) == private


def test_what_is_no_run_is_not_joined(tmp_path: Path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        join([tmp_path], tmp_path / "out", command="")
    with pytest.raises(RunFolderError, match="is one of the folders to join"):
        join([tmp_path], tmp_path, command="")
