"""What trackers get, read back by the real libraries: rounds and measures, nothing of single clients."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.tracking import (
    NEEDS,
    TrackedPlace,
    Trackers,
    measure_values,
    open_tracker,
    require,
    round_values,
)
from fedproxy_secure.runtime.files.names import TRACKING
from tests.support.sample_report import sample_report
from tests.support.tiny import tiny_settings

ROOT = Path(__file__).parents[2]


def needs(name):
    """Skip where an extra is not installed; CI installs them all, so there a missing one fails."""
    missing = find_spec(NEEDS[name][0]) is None
    return pytest.mark.skipif(
        missing and not os.environ.get("CI"), reason=f"the extra {name} is not installed"
    )


def place(folder, part="seed-0"):
    return TrackedPlace(folder=folder, project="demo", run="ab12", part=part)


def scalars(folder):
    """Name -> [(step, value)], as TensorBoard itself reads the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


# --- what may be tracked


def test_only_known_numbers_of_a_round_are_tracked():
    line = {
        "round": 3,
        "participants": ["clinic", "bank"],
        "loss": 1.5,
        "clients": 2.0,
        "seconds": 0.25,
        "norm_of_clinic": 7.0,
        "update": [0.1, 0.2],
        "key": "00ff",
    }
    assert round_values(line) == {"round/clients": 2.0, "round/loss": 1.5, "round/seconds": 0.25}


def test_a_loss_that_stayed_with_the_clients_is_not_there():
    assert "round/loss" not in round_values({"round": 0, "participants": [], "loss": None, "clients": 3})


def test_measures_carry_their_intervals_unless_they_are_exact():
    configuration = sample_report().configurations[0]
    values = measure_values(configuration)
    gap = configuration.measure("gap_closed").estimate
    assert values["performance/gap_closed"] == gap.value
    assert (values["performance/gap_closed/low"], values["performance/gap_closed/high"]) == (
        gap.low,
        gap.high,
    )
    assert "ip/verbatim_share" in values
    assert "ip/verbatim_share/low" not in values


def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("fedproxy_secure.experiments.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^track=mlflow: is not installed; .*fedproxy-secure\[mlflow\]"):
        require(["mlflow"])
    with pytest.raises(ConfigError, match=r"fedproxy-secure\[wandb\]"):
        open_tracker(["wandb"], place(tmp_path))


def test_an_unknown_tracker_is_one_line(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("track: [tensorbord]\n")
    shown = CliRunner().invoke(app, ["run", str(file)])
    assert shown.exit_code == 2
    assert "track.0='tensorbord'" in shown.stderr


def test_tracking_changes_no_result_so_it_is_not_in_the_settings_hash():
    assert (
        parse_config({"track": []}).sha256() == parse_config({"track": ["tensorboard", "wandb"]}).sha256()
    )


def test_no_tracker_is_fine(tmp_path):
    with closing(open_tracker([], place(tmp_path))) as tracker:
        tracker.log(0, {"x": 1.0})
    assert list(tmp_path.iterdir()) == []


class FarAway:
    """A tracker whose server goes away after the first step."""

    def __init__(self):
        self.steps, self.closed = [], 0

    def log(self, step, values):
        self.steps.append(step)
        if step:
            raise ValueError("no route\nto host")

    def close(self):
        self.closed += 1
        raise ValueError("no route to host")


def test_a_tracker_that_fails_ends_neither_the_run_nor_the_others(tmp_path, caplog):
    far, near, last = FarAway(), open_tracker(["tensorboard"], place(tmp_path)), FarAway()
    trackers = Trackers({"mlflow": far, "tensorboard": near, "wandb": last})
    for step in range(3):
        trackers.log(step, {"round/loss": float(step)})
    trackers.close()
    assert (far.steps, last.steps) == ([0, 1], [0, 1])
    assert (far.closed, last.closed) == (0, 0)  # a server that is gone is not waited for twice
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"track={name}: gets no more numbers, the run goes on: ValueError" for name in ("mlflow", "wandb")
    ]
    assert len(scalars(tmp_path / TRACKING / "tensorboard" / "seed-0")["round/loss"]) == 3


def test_a_tracker_that_cannot_be_closed_leaves_none_open(caplog):
    trackers = [FarAway(), FarAway()]
    Trackers({str(i): one for i, one in enumerate(trackers)}).close()
    assert [one.closed for one in trackers] == [1, 1]
    assert "may lack numbers: ValueError" in caplog.text


def test_a_tracker_that_cannot_be_opened_is_one_line_with_a_remedy(tmp_path):
    (tmp_path / TRACKING).write_text("in the way")
    with pytest.raises(RunFolderError, match=r"track=tensorboard: cannot be opened: .* track=\[\] does"):
        open_tracker(["tensorboard"], place(tmp_path))


def test_no_error_or_warning_has_a_servers_address_and_password(tmp_path, monkeypatch, caplog):
    def no_server(_place):
        raise ValueError("https://me:secret@host/api failed")

    monkeypatch.setattr("fedproxy_secure.experiments.tracking.MLflow", no_server)
    monkeypatch.setattr("fedproxy_secure.experiments.tracking.require", lambda names: None)
    with pytest.raises(RunFolderError) as refused:
        open_tracker(["mlflow"], place(tmp_path))
    assert str(refused.value).count("ValueError") == 1
    open_tracker(["mlflow"], place(tmp_path), again=True).close()
    assert "gets no more numbers, the run goes on: ValueError" in caplog.text
    assert "secret" not in f"{refused.value}{refused.value.__cause__}{caplog.text}"


# --- TensorBoard


def test_tensorboard_reads_what_was_written_over_a_kill(tmp_path):
    tracker = open_tracker(["tensorboard"], place(tmp_path))
    tracker.log(0, {"round/loss": 2.5})
    # killed here: not closed, but flushed
    assert scalars(tmp_path / TRACKING / "tensorboard" / "seed-0") == {"round/loss": [(0, 2.5)]}
    with closing(open_tracker(["tensorboard"], place(tmp_path))) as again:
        again.log(1, {"round/loss": 1.25})
    tracker.close()
    assert scalars(tmp_path / TRACKING / "tensorboard" / "seed-0") == {"round/loss": [(0, 2.5), (1, 1.25)]}


@pytest.mark.slow
def test_a_run_leaves_its_rounds_and_measures_for_tensorboard(tmp_path):
    settings = tiny_settings(tmp_path / "tiny", federate={"rounds": 2})
    report = run(parse_config(settings), tmp_path / "run")
    board = tmp_path / "run" / TRACKING / "tensorboard"
    lines = [
        json.loads(x) for x in (tmp_path / "run/seed-0/federation/rounds.jsonl").read_text().splitlines()
    ]
    rounds = scalars(board / "seed-0")
    assert rounds["round/loss"] == [(i, pytest.approx(x["loss"])) for i, x in enumerate(lines)]
    assert rounds["round/clients"] == [(0, 3.0), (1, 3.0)]
    measures = scalars(board / "report")
    expected = measure_values(report.configurations[0])
    assert measures.keys() == expected.keys()
    assert all(measures[name] == [(0, pytest.approx(value))] for name, value in expected.items())
    # everything that is tracked has a plain name: no client's
    assert not [name for name in {*rounds, *measures} if "c0" in name or "c1" in name]
    run(parse_config(settings), tmp_path / "run", resume=True)
    assert scalars(board / "report") == measures  # a finished run is not told twice


# --- extras, in processes of their own: what they warn about is theirs

SCRIPT = """
import sys
from contextlib import closing
from pathlib import Path
from fedproxy_secure.experiments.tracking import TrackedPlace, open_tracker
place = TrackedPlace(folder=Path(sys.argv[2]), project="demo", run="ab12", part="seed-0")
for step in (0, 1):  # opened twice, as after a kill
    with closing(open_tracker([sys.argv[1]], place)) as tracker:
        tracker.log(step, {"round/loss": 2.5 - step, "round/clients": 3.0})
"""


def track(name, folder, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    command = [sys.executable, "-c", SCRIPT, name, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_one_run_over_a_kill_in_a_local_store(tmp_path):
    track("mlflow", tmp_path)
    with closing(sqlite3.connect(tmp_path / TRACKING / "mlflow.db")) as store:
        metrics = store.execute("select key, step, value from metrics order by key, step").fetchall()
        runs = store.execute("select name, status, user_id, source_name from runs").fetchall()
        (experiment,) = store.execute("select name from experiments where name != 'Default'").fetchall()
    assert metrics == [
        ("round/clients", 0, 3.0),
        ("round/clients", 1, 3.0),
        ("round/loss", 0, 2.5),
        ("round/loss", 1, 1.5),
    ]
    assert [r[:2] for r in runs] == [("seed-0", "FINISHED")]
    assert experiment == ("demo",)


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_goes_where_the_environment_says(tmp_path):
    track("mlflow", tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/own.db")
    assert (tmp_path / "own.db").is_file()
    assert not (tmp_path / TRACKING / "mlflow.db").exists()


@pytest.mark.slow
@needs("wandb")
def test_wandb_stays_offline_and_is_told_numbers_alone(tmp_path):
    track("wandb", tmp_path)
    files = sorted((tmp_path / TRACKING / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # one a process; the same id, so that `wandb sync` makes one run of them
    assert len({f.name for f in files}) == 1
    rows = [row for file in files for row in history(file)]
    assert [(int(r["_step"]), r["round/loss"], r["round/clients"]) for r in rows] == [
        (0, 2.5, 3.0),
        (1, 1.5, 3.0),
    ]
    host = os.uname().nodename.encode()
    for file in (p for p in (tmp_path / TRACKING / "wandb").glob("offline-run-*/files/*") if p.is_file()):
        assert host not in file.read_bytes()
        assert file.name not in ("wandb-metadata.json", "requirements.txt")


def history(file):
    """The logged rows of a .wandb file: a header of 7 bytes, then records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    raw, at, rows, whole = file.read_bytes(), 7, [], b""
    assert raw[:4] == b":W&B"
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:  # what is left of a block holds no header
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows
