"""What a run tells its log: every step once, also over a kill; each file is vouched for or signed."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from fedproxy_secure.audit.keys import own_key_file, parse_public
from fedproxy_secure.audit.seal import files_below, report_files
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import AuditError, RoundAborted
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_FILES, AUDIT_LOG
from fedproxy_secure.secagg.provision import load_roster
from tests.support.run_logs import events, signer_of

# --- what a run tells


@pytest.fixture
def settings(run_of_two_seeds):
    return run_of_two_seeds[0]


@pytest.fixture
def finished(run_of_two_seeds):
    return run_of_two_seeds[1]


class Killed(BaseException):
    pass


class KillIn:
    """A progress that kills the run at its n-th word on a task."""

    def __init__(self, task, after):
        self.task, self.left = task, after

    def start(self, task, total):
        pass

    def advance(self, task, steps=1, note=""):
        if task == self.task:
            self.left -= 1
            if self.left == 0:
                raise Killed

    def done(self, task):
        pass


def told(folder):
    return [(e.event, e.body.get("seed"), e.body.get("round")) for e in events(folder)]


OPENED = [("opened", None, None), ("inputs", None, None)]
SEED = [("started", None), ("roster", None), ("round", 0), ("round", 1), ("finished", None)]


def test_a_run_tells_everything_once(finished, settings):
    seeds = [(e, s, r) for s in (0, 1) for e, r in SEED]
    assert told(finished) == [*OPENED, *seeds, ("files", None, None)]
    opened = events(finished)[0].body
    assert opened["config_sha256"] == parse_config(settings).sha256()
    assert opened["command"] == "fedproxy-secure run tiny"
    assert opened["environment"]["packages"]["torch"]
    rounds = [e.body for e in events(finished) if e.event == "round"]
    assert all(b["participants"] == ["c0", "c1", "c2"] for b in rounds)
    roster = load_roster(finished / "seed-1" / "federation")
    assert events(finished)[8].body["sha256"] == roster.sha256().hex()


def test_every_file_of_a_seed_is_vouched_for_and_the_rest_is_signed(finished):
    vouched = {n for e in events(finished) for n in e.body.get("files", {})}
    signed = set(json.loads((finished / "report.sig").read_text())["files"])
    for name in (
        "fused/model.safetensors",
        "adapter/adapter_model.safetensors",
        "result.json",
        "plan.json",
    ):
        assert f"seed-0/{name}" in vouched
    assert {"config.yaml", "environment.json", "manifest.json"} <= vouched
    assert {"report.json", "report.md"} <= signed
    assert not vouched & signed
    everything = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    neither = {n for n in everything - vouched - signed if not n.startswith("tracking/")}
    assert neither == {AUDIT_LOG, "report.sig"}


def test_the_report_is_signed_over_the_head_and_verifies(finished):
    assert Report.load(finished).audit_head == events(finished)[-1].hash
    found = verify_run(finished, key=parse_public(signer_of(finished)))
    assert (found.problems, found.unsettled, found.pinned) == ((), (), True)
    assert found.whole
    assert found.lines == 13


def test_neither_the_key_nor_its_place_gets_into_the_folder(finished):
    key = own_key_file(finished).read_text().split()[-1]
    for file in (
        p for p in finished.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", ".yaml")
    ):
        text = file.read_text()
        assert key not in text
        assert "audit.key" not in text


def test_going_on_with_a_finished_run_adds_nothing(finished, settings):
    before = (finished / AUDIT_LOG).read_bytes()
    again = run(parse_config(settings), finished, resume=True, command="again")
    assert (finished / AUDIT_LOG).read_bytes() == before
    assert again.audit_head == Report.load(finished).audit_head
    assert verify_run(finished).whole


@pytest.mark.parametrize(
    ("task", "after"),
    [("federate", 2), ("federate", 4), ("federate", 6), ("seed-0", 4), ("fused LLM: c0", 1)],
    ids=["in round 0", "in round 1", "after the last client", "once federated", "while evaluating"],
)
@pytest.mark.slow
def test_a_killed_run_goes_on_in_its_chain_and_tells_each_round_once(
    settings, finished, tmp_path, task, after
):
    config = parse_config({**settings, "seeds": [0]})
    with pytest.raises(Killed):
        run(config, tmp_path / "run", progress=KillIn(task, after))
    run(config, tmp_path / "run", resume=True)
    model = "seed-0/fused/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (finished / model).read_bytes()
    found = told(tmp_path / "run")
    assert [r for e, _, r in found if e == "round"] == [0, 1]
    assert [e for e, _, _ in found].count("finished") == 1
    names = [e for e, _, _ in found]
    assert names.index("aborted") < names.index("resumed") < names.index("finished")
    assert verify_run(tmp_path / "run").whole


def test_a_round_that_was_saved_but_not_told_is_told_on_the_way_on(tmp_path):
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(tmp_path / "run", config)
    witness = Witness.open(folder, config, command="c")
    witness.started(0)
    lines = [{"round": r, "participants": ["a"]} for r in range(3)]
    for line in lines[:2]:
        folder.append_jsonl("seed-0/federation/rounds.jsonl", line)
    witness.round(0, lines[0])
    again = Witness.open(folder, config, command="c")  # killed between saving round 1 and telling it
    again.started(0)
    assert [line["round"] for line in again.unlogged_rounds(0)] == [1]


def test_rounds_that_are_run_again_from_an_older_state_are_told_again(tmp_path):
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(tmp_path / "run", config)
    witness = Witness.open(folder, config, command="c")
    witness.started(0)
    for number in range(2):
        line = {"round": number, "participants": ["a"]}
        folder.append_jsonl("seed-0/federation/rounds.jsonl", line)
        witness.round(0, line)
    (folder.path / "seed-0/federation/rounds.jsonl").unlink()  # somebody put the seed back to its beginning
    again = Witness.open(folder, config, command="c")
    again.started(0)
    folder.append_jsonl("seed-0/federation/rounds.jsonl", {"round": 0, "participants": ["a"]})
    assert [line["round"] for line in again.unlogged_rounds(0)] == [0]


def test_what_a_client_spent_stands_beside_its_round(tmp_path):
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(tmp_path / "run", config)
    witness = Witness.open(folder, config, command="c")
    ledgers = "seed-0/federation/privacy/clinic.ledger.jsonl"
    folder.append_jsonl(ledgers, {"schema_version": 1})
    folder.append_jsonl(ledgers, {"round": 0, "inputs": "00", "event": {"noise_multiplier": 1.5}})
    (folder.path / "seed-0/federation/privacy/clinic.noise.key").write_text("secret")
    folder.append_jsonl("seed-0/federation/rounds.jsonl", {"round": 0, "participants": ["clinic"]})
    folder.append_jsonl("seed-0/federation/ledger.jsonl", {"round": 0})
    witness.started(0)
    witness.round(0, {"round": 0, "participants": ["clinic"]})
    witness.finished(0, b"{}", epsilon={"clinic": 3.25})
    round_, done = events(folder.path)[-2:]
    assert round_.body["spends"] == {"clinic": [{"noise_multiplier": 1.5}]}
    assert done.body["epsilon_spent"] == {"clinic": 3.25}
    assert not any(name.endswith(".key") for name in done.body["files"])
    assert done.body["keys"] == ["seed-0/federation/privacy/clinic.noise.key"]


def test_what_a_killed_write_left_is_swept_away_before_a_seed_is_told(tmp_path):
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(tmp_path / "run", config)
    witness = Witness.open(folder, config, command="c")
    folder.write_text("seed-0/plan.json", "{}")
    for place in ("seed-0", "seed-0/federation", "."):
        (folder.path / place).mkdir(exist_ok=True)
        (folder.path / place / ".partial-x").write_text("ha")
    witness.finished(0, b"{}", epsilon={})
    witness.sign()
    assert not list(folder.path.rglob(".partial-*"))
    assert "seed-0/plan.json" in events(folder.path)[-1].body["files"]


def test_an_abort_is_told_with_its_reason_and_others_by_name_alone(tmp_path):
    config = parse_config({"seeds": [0]})
    witness = Witness.open(RunFolder.create(tmp_path / "run", config), config, command="c")
    witness.started(0)
    with pytest.raises(RoundAborted), witness.aborts():
        raise RoundAborted("1 clients answered: must be >= 2")
    with pytest.raises(ValueError, match="record"), witness.aborts():
        raise ValueError("some record's text")
    first, second = (e.body for e in events(tmp_path / "run")[-2:])
    assert first == {
        "error": "RoundAborted",
        "reason": "1 clients answered: must be >= 2",
        "seed": 0,
        "round": 0,
    }
    assert (second["error"], second["reason"]) == ("ValueError", "")


def test_a_run_that_cannot_go_on_says_why_in_its_log(settings, tmp_path):
    broken = {**settings, "seeds": [0], "data": {**settings["data"], "root": str(tmp_path / "none")}}
    RunFolder.create(tmp_path / "run", parse_config(broken))  # there were records when it began
    with pytest.raises(Exception, match="cannot be read"):
        run(parse_config(broken), tmp_path / "run", resume=True)
    assert [e.event for e in events(tmp_path / "run")] == ["opened", "aborted"]
    assert "cannot be read" in events(tmp_path / "run")[-1].body["reason"]


def test_findings_that_came_later_are_told_and_signed(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.copy(own_key_file(finished), own_key_file(folder))
    (folder / "attacks").mkdir()
    (folder / "attacks" / "results.json").write_text('{"schema_version": 4, "results": []}')
    run(parse_config(settings), folder, resume=True)
    assert [e.event for e in events(folder)][-2:] == ["resumed", "files"]
    assert list(events(folder)[-1].body["files"]) == ["attacks/results.json"]
    assert verify_run(folder).whole


def test_findings_may_change_once_the_run_is_attacked_anew(finished, settings, tmp_path):
    folder, findings = tmp_path / "run", tmp_path / "run" / "attacks" / "results.json"
    shutil.copytree(finished, folder)
    shutil.copy(own_key_file(finished), own_key_file(folder))
    findings.parent.mkdir()
    findings.write_text('{"schema_version": 4, "results": []}')
    config = parse_config(settings)
    run(config, folder, resume=True)
    before = len(events(folder))
    Witness.open(RunFolder(path=folder), config, command="c").reopen(*ATTACK_FILES)
    assert [e.event for e in events(folder)[before:]] == ["resumed", "reopened"]
    assert not verify_run(folder).problems
    assert not verify_run(folder).whole
    findings.write_text('{"results": [], "schema_version": 4}')  # as a suite that was killed may leave it
    run(config, folder, resume=True)
    assert [e.event for e in events(folder)[before + 2 :]] == ["resumed", "files"]
    assert verify_run(folder).whole
    findings.write_text('{"schema_version": 4, "results": []}')
    with pytest.raises(AuditError, match=r"results\.json: is not as audit\.jsonl has it"):
        run(config, folder, resume=True)


def test_what_is_part_of_the_run_is_no_part_of_the_report(tmp_path):
    for name in (
        "report.json",
        "chart.png",
        "seed-0/x.json",
        "cells/a/report.json",
        "attacks/r",
        AUDIT_LOG,
    ):
        RunFolder(path=tmp_path).write_text(name, "x")
    RunFolder(path=tmp_path).write_text("seed-0/.partial-1", "x")
    assert report_files(tmp_path) == ["chart.png", "report.json"]
    assert list(files_below(tmp_path, "seed-0", "nothing")) == ["seed-0/x.json"]


# --- whole runs, slowly


@pytest.mark.change
@pytest.mark.slow
def test_a_run_that_was_killed_outright_goes_on_in_its_chain(settings, finished, tmp_path):
    """Kill -9 between any two writes: no chance to tell an abort."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**settings, "seeds": [0]}))
    command = [sys.executable, "-m", "fedproxy_secure", "run", str(tmp_path / "tiny.yaml")]
    folder = tmp_path / "run"
    process = subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None:
        if (folder / AUDIT_LOG).exists() and (folder / AUDIT_LOG).read_bytes().count(b"\n") >= 5:
            break  # the first round is told
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not verify_run(folder).whole
    run(parse_config({**settings, "seeds": [0]}), folder, resume=True)
    names = [e for e, _, _ in told(folder)]
    assert "aborted" not in names
    assert names.count("resumed") == 1
    assert [r for e, _, r in told(folder) if e == "round"] == [0, 1]
    assert verify_run(folder).whole
    model = "seed-0/fused/model.safetensors"
    assert (folder / model).read_bytes() == (finished / model).read_bytes()


@pytest.mark.slow
def test_a_matrix_is_signed_over_the_logs_of_its_cells(settings, tmp_path):
    swept = {"protections": [{"scheme": "masking"}], "remove_ratios": [0.5], "jobs": 1}
    config = parse_config({**settings, "seeds": [0], "attacks": {"suite": "none"}, "matrix": swept})
    report = matrix(config, tmp_path / "m", command="fedproxy-secure matrix tiny")
    assert report.audit_head == events(tmp_path / "m")[-1].hash
    found = verify_run(tmp_path / "m")
    assert (found.problems, found.unsettled) == ((), ())
    (inner,) = (e.body for e in events(tmp_path / "m") if e.event == "inner")
    cell = tmp_path / "m" / inner["folder"]
    assert events(cell)[0].body["public_key"] == events(tmp_path / "m")[0].body["public_key"]
    assert "signing_key: null" in (cell / "config.yaml").read_text()
    before = (tmp_path / "m" / AUDIT_LOG).read_bytes()
    matrix(config, tmp_path / "m", resume=True)
    assert (tmp_path / "m" / AUDIT_LOG).read_bytes() == before
    (cell / "seed-0/fused/model.safetensors").write_bytes(b"another model")
    assert any("model.safetensors: was altered" in p for p in verify_run(tmp_path / "m").problems)
