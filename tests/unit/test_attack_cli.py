"""The command `attack`: lists, explains, runs and reports; exit codes are what a pipeline can act on."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

from attacks import registry
from attacks.budget import Budget
from attacks.cli import app
from attacks.commands.table import EXPLAINED, outcome_line, power, rich_tables
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome, read_findings, write_findings
from tests.support.recorded import record_run
from tests.support.tiny import write_records
from tests.support.toys import Toy

FAST = ("--spec", "A1", "--spec", "sign_counts", "--view", "server", "--jobs", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a recorded run."""
    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=4, records=40)
    return record_run(place, federate={"rounds": 2}, data={"root": root}).parent


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def finding(outcome, attack="toy", view="server", **changes):
    estimate = Estimate(
        metric="auc",
        value=0.7,
        low=0.6,
        high=0.8,
        n=9,
        unit="AUC",
        seeds=(0,),
        how="for the test",
        nature="sampled",
    )
    numbers = () if outcome in (Outcome.ERROR, Outcome.NOT_APPLICABLE) else (estimate,)
    made = Finding(
        attack=attack,
        id="T1",
        title="a toy",
        view=view,
        surfaces=("MOD",),
        seed_folder="seed-0",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=numbers,
        measures={},
        positive=None,
        negative=None,
        seconds=1.25,
        seed=0,
        mapping=(),
        read=("MOD",),
        chance=0.5,
        margin=0.05,
    )
    return replace(made, **changes)


def test_list_has_a_line_for_every_attack():
    shown = invoke("list")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert len(lines) == len(registry.every())
    assert lines[0].split() == ["A1", "embedding_bow", "smoke", *lines[0].split()[3:]]
    assert any(line.startswith("A13  poisoning") and " standard " in line for line in lines)


def test_info_says_what_an_attack_needs_and_how_it_is_judged():
    shown = invoke("info", "A2")
    assert shown.exit_code == 0
    for said in (
        "A2 lora_span_tokens: words that clients use",
        "needs: IND+MOD or AGG+MOD",
        "fits: server, active_server",
        "succeeds: if the interval of auc begins above 0.55 (chance 0.5)",
        "maps to: MITRE ATLAS 5 AML.T0024.001",
        "The gradient of an adapter lies in the span of its inputs.",
    ):
        assert said in shown.stdout


def test_info_of_an_id_explains_all_attacks_that_share_it():
    shown = invoke("info", "A11")
    for name in ("masked_words", "sign_counts", "cohort_differencing", "mask_seed_search"):
        assert f"A11 {name}: " in shown.stdout


def test_a_run_writes_results_and_ends_with_a_table(run):
    shown = invoke("run", "--run", run, *FAST)
    assert shown.exit_code == 0, shown.output
    assert "NOT_APPLICABLE A1 embedding_bow, server: " in shown.stdout
    assert "RESISTED       A11 sign_counts, server: " in shown.stdout
    assert "server, seed-0" in shown.stdout
    assert str(run / "attacks" / "results.json") in shown.stdout
    assert [r.attack for r in read_findings(run)] == ["embedding_bow", "sign_counts"]


def test_an_attack_named_twice_runs_once(run):
    invoke("run", "--run", run, *FAST, "--spec", "A1", "--spec", "embedding_bow")
    assert [r.attack for r in read_findings(run)] == ["embedding_bow", "sign_counts"]


def test_by_itself_the_suite_is_run_from_server_and_client(run):
    invoke("run", "--run", run, "--spec", "A1", "--jobs", "1")
    found = [r.view for r in read_findings(run) if r.attack == "embedding_bow"]
    assert found == ["server", "client"]


def test_results_of_attacks_that_are_not_run_again_stay(run):
    invoke("run", "--run", run, *FAST)
    invoke("run", "--run", run, "--spec", "sign_counts", "--view", "server", "--jobs", "1", "--seed", "1")
    kept = {r.attack: r.seed for r in read_findings(run) if r.view == "server"}
    assert kept == {"sign_counts": 1, "embedding_bow": 0}


class Notes(Toy):
    """Notes the budget that it is given."""

    given: ClassVar[list[Budget]] = []

    def guess(self, view, question, budget, rng):
        self.given.append(budget)
        return super().guess(view, question, budget, rng)


class Interrupts(Toy):
    def guess(self, view, question, budget, rng):
        raise KeyboardInterrupt


def register(monkeypatch, kind, *names):
    """Register attacks of this kind, and return the words that ask for them."""
    registry.every()
    for name in names:
        info = Toy(name).info
        made = type(kind.__name__, (kind,), {"info": info, "guesses": 0, "__init__": lambda _: None})
        monkeypatch.setitem(registry._REGISTERED, name, made)
    return [word for name in names for word in ("--spec", name)]


def test_the_budget_is_for_each_attack(run, monkeypatch):
    asked = register(monkeypatch, Notes, "notes", "notes_too")
    Notes.given.clear()
    words = ("--view", "server", "--jobs", "1", "--budget-seconds", "7.5", "--seed", "3")
    shown = invoke("run", "--run", run, *asked, *words)
    assert shown.exit_code == 0, shown.output
    assert {(b.seconds, b.profile) for b in Notes.given} == {(7.5, "smoke")}
    assert len({b.began for b in Notes.given}) == 2, "the seconds of each begin with it"
    found = [r for r in read_findings(run) if r.attack.startswith("notes")]
    assert [(r.outcome, r.seed) for r in found] == [(Outcome.SUCCEEDED, 3)] * 2


def test_report_shows_the_last_results_again(run):
    invoke("run", "--run", run, *FAST)
    shown = invoke("report", "--run", run)
    assert shown.exit_code == 0
    assert "sign_counts" in shown.stdout


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([Outcome.RESISTED, Outcome.NOT_APPLICABLE], 0),
        ([Outcome.RESISTED, Outcome.SUCCEEDED, Outcome.ERROR], 1),
        ([Outcome.INCONCLUSIVE, Outcome.SUCCEEDED], 1),
        ([Outcome.RESISTED, Outcome.INCONCLUSIVE], 3),
        ([Outcome.RESISTED, Outcome.ERROR], 3),
        ([], 0),
    ],
)
def test_strict_ends_with_1_for_a_success_with_3_for_what_cannot_tell(tmp_path, outcomes, code):
    write_findings(tmp_path, [finding(o) for o in outcomes])
    assert invoke("report", "--run", tmp_path, "--strict").exit_code == code
    assert invoke("report", "--run", tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "--run", "RUN", "--suite", "huge"), "--suite huge: must be smoke, standard or full"),
        (
            ("run", "--run", "RUN", "--jobs", "1", "--spec", "lora_span_token"),
            "did you mean 'lora_span_tokens'?",
        ),
        (("run", "--run", "RUN", "--jobs", "1", "--view", "servr"), "did you mean 'server'?"),
        (("run", "--run", "nowhere", "--jobs", "1"), "nowhere: no seed was recorded"),
        (("run", "--run", "RUN", "--budget-seconds", "0"), "Invalid value for '--budget-seconds'"),
        (("run", "--run", "RUN", "--budget-seconds", "inf"), "--budget-seconds inf: must be a finite"),
        (("model", "demo", "--budget-seconds", "nan"), "--budget-seconds nan: must be a finite"),
        (("report", "--run", "nowhere"), "run `attack run` first"),
        (("info", "A22"), "attack 'A22': is not known; did you mean 'A2'?"),
    ],
)
def test_a_wrong_word_ends_with_2_and_one_line(run, words, line):
    shown = invoke(*(run if w == "RUN" else w for w in words))
    assert shown.exit_code == 2
    assert line in shown.stderr.replace("\n", " ")
    assert "Traceback" not in shown.output


def test_an_interrupt_before_the_first_result_is_no_error(run, monkeypatch):
    asked = register(monkeypatch, Interrupts, "interrupts")
    for file in (run / "attacks").glob("*"):
        file.unlink()
    shown = invoke("run", "--run", run, *asked, "--view", "server", "--jobs", "1", "--strict")
    assert shown.exit_code == 130, shown.output
    assert "resume with: fedproxy-secure attack run" in shown.stderr
    for word in ("--jobs 1", "--strict", "--resume"):
        assert word in shown.stderr
    assert "error" not in shown.stderr


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "results.json").write_text('{"schema_version": 4, "results": [{}]}')
    shown = invoke("report", "--run", tmp_path)
    assert shown.exit_code == 2
    assert "is damaged" in shown.stderr


@pytest.mark.slow
def test_an_interrupt_shows_what_there_is_and_how_to_go_on(run):
    command = [sys.executable, "-c", "from attacks.cli import app; app()", "run", "--run", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *FAST, "--spec", "A12", "--spec", "A6", "--suite", "full", "--view", "client"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        events = run / "attacks" / "events.jsonl"
        events.unlink(missing_ok=True)
        until = time.monotonic() + 90
        while time.monotonic() < until and not (events.exists() and events.read_text().count("\n") >= 2):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "server, seed-0" in out
    assert "interrupted" in err
    (again,) = [line for line in err.splitlines() if line.startswith("resume with: ")]
    for word in ("--resume", "--suite full", "--spec A12", "--spec sign_counts", "--view client", str(run)):
        assert word in again
    results = json.loads((run / "attacks" / "results.json").read_text())["results"]
    assert len(results) >= 2


# how results are shown


def shown_on_80_columns(results):
    written = io.StringIO()
    Console(width=80, file=written).print(rich_tables(results))
    return written.getvalue()


def test_outcomes_and_names_are_whole_on_a_narrow_terminal():
    results = [finding(o, attack="lora_span_sequences", view="server_with_clients") for o in list(Outcome)]
    text = shown_on_80_columns(results)
    for outcome in Outcome:
        assert str(outcome) in text
    assert text.count("0.7 [0.6, 0.8]") == 3
    assert EXPLAINED.split(";")[0] in text
    assert "RESISTED does not prove safety" in " ".join(text.split())


def test_each_result_says_the_smallest_value_that_would_have_been_seen():
    could = Detectable(metric="auc", unit="AUC", bar=0.55, smallest=0.583, how="9 targets")
    seen = finding(Outcome.RESISTED, detectable=(could,))
    never = finding(Outcome.INCONCLUSIVE, detectable=(replace(could, smallest=None),))
    assert [power(r) for r in (seen, never, finding(Outcome.RESISTED))] == ["0.58", "none", "-"]
    assert "power" in shown_on_80_columns([seen])
    assert " 0.58 " in shown_on_80_columns([seen])


def test_each_view_and_seed_has_its_own_table_and_those_without_numbers_a_line():
    results = [
        finding(Outcome.RESISTED),
        finding(Outcome.NOT_APPLICABLE, attack="other"),
        finding(Outcome.SUCCEEDED, view="client"),
        finding(Outcome.SUCCEEDED, seed_folder="seed-1"),
    ]
    text = shown_on_80_columns(results)
    for title in ("server, seed-0", "client, seed-0", "server, seed-1"):
        assert title in text
    assert outcome_line(results[1]) == "NOT_APPLICABLE T1 other, server: because"
    assert outcome_line(results[1]) in text


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (("run", "--run", "nothing"), "attacks.entry"),
        (("report", "--run", "nothing"), "fedproxy_secure.evidence.finding"),
        (("model", "nothing"), "attacks.folder"),
    ],
)
def test_an_error_that_nobody_foresaw_is_no_finding(words, lost, monkeypatch):
    monkeypatch.setitem(sys.modules, lost, None)  # an installation that lacks a file
    done = invoke(*words, "--strict")
    assert done.exit_code == 2
    assert "ModuleNotFoundError" in done.stderr
    assert invoke(*words).exit_code == 1  # no verdict: as Python ends
