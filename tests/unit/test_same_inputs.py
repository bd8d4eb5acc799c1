"""A run or matrix that goes on has the records, LLM and public text that it began with."""

import re
import weakref
from pathlib import Path

import pytest

from fedproxy_secure.audit.keys import make_key
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import parse_config
from fedproxy_secure.data.records import records_sha256
from fedproxy_secure.data.tasks import load_tasks
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.experiments.inputs import check_same_inputs
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.matrix import PLAINTEXT
from tests.support.run_logs import events
from tests.support.tiny import save_tiny, tiny_settings


def begun(config, out, kind="run"):
    """A run or matrix that was killed as soon as its log had what it reads."""
    witness = Witness.open(RunFolder.create(out, config.with_signing_key(None), kind), config, command="c")
    check_same_inputs(config, witness, load_tasks(config.data))


def logged(out):
    (entry,) = [e for e in events(out) if e.event == "inputs"]
    return set(entry.body.values())


def other_records(place: Path) -> None:
    file = place / "data/0.train.jsonl"
    file.write_text(file.read_text().replace("train 0 1", "train 0 one", 1))


def other_llm(place: Path) -> None:
    save_tiny(place / "llm", seed=1)


def other_text(place: Path) -> None:
    (place / "public.txt").write_text("another public text " * 200)


@pytest.mark.parametrize(
    ("what", "change"),
    [("set of records", other_records), ("LLM", other_llm), ("public text", other_text)],
    ids=["records", "LLM", "text"],
)
@pytest.mark.parametrize("goes_on", [run, matrix])
def test_what_goes_on_must_have_the_records_llm_and_public_text_that_it_began_with(
    tmp_path, goes_on, what, change
):
    swept = {"protections": [PLAINTEXT], "remove_ratios": [0.5], "jobs": 1}
    config = parse_config(tiny_settings(tmp_path, attacks={"suite": "none"}, matrix=swept))
    begun(config, tmp_path / "out", goes_on.__name__)
    change(tmp_path)
    with pytest.raises(
        RunFolderError, match=f"out: began with another {what} than now.*; put that back, or"
    ):
        goes_on(config, tmp_path / "out", resume=True)


def test_a_note_beside_the_llm_counts_as_the_llm_and_the_error_says_so(tmp_path):
    config = parse_config(tiny_settings(tmp_path))
    begun(config, tmp_path / "out")
    (tmp_path / "llm/notes.txt").write_text("of its owner")
    line = r"another LLM than now \(all of \*\.safetensors, \*\.json, .*, \*\.txt, .* in its folder count\)"
    with pytest.raises(RunFolderError, match=line):
        run(config, tmp_path / "out", resume=True)


def test_a_run_lets_go_of_all_records_before_its_first_seed(tmp_path, monkeypatch):
    alive = []

    def watched(data):
        tasks = load_tasks(data)
        alive.extend(weakref.ref(task) for task in tasks)
        return tasks

    def stops(*_, **__):
        raise DataError(f"{sum(task() is not None for task in alive)} of {len(alive)} tasks are in memory")

    config = parse_config(tiny_settings(tmp_path))
    monkeypatch.setattr("fedproxy_secure.experiments.run.load_tasks", watched)
    monkeypatch.setattr("fedproxy_secure.experiments.run.prepare", stops)
    with pytest.raises(DataError, match=r"^0 of [1-9][0-9]* tasks"):
        run(config, tmp_path / "out")


def test_what_a_run_reads_is_in_its_log_before_its_first_round(tmp_path):
    def stops(*_, **__):
        raise DataError("stopped on the way")

    config, out = parse_config(tiny_settings(tmp_path)), tmp_path / "out"
    with pytest.raises(DataError, match="stopped on the way"):
        run(config, out, federate=stops)
    assert len(logged(out)) == 3
    other_records(tmp_path)
    with pytest.raises(RunFolderError, match="began with another set of records"):
        run(config, out, resume=True, federate=stops)


def test_the_log_does_not_show_which_records_were_read_nor_whether_two_runs_read_the_same(tmp_path):
    make_key(tmp_path / "own.key")
    config = parse_config(tiny_settings(tmp_path)).with_signing_key(str(tmp_path / "own.key"))
    for name in ("one", "two"):
        begun(config, tmp_path / name)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one | two) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in one | two)
    assert records_sha256(load_tasks(config.data)) not in (tmp_path / "one" / AUDIT_LOG).read_text()
