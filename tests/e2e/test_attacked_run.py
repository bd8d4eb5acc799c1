"""From `run --record` to `attack run` and its report, by the commands as they are typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.options import find_config
from fedproxy_secure.config import load_config
from fedproxy_secure.evidence.finding import Outcome, read_findings
from tests.support.tiny import tiny_settings, write_records

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def typed(*words, **environment):
    command = [sys.executable, "-m", "fedproxy_secure", *map(str, words)]
    env = {**ENVIRONMENT, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that the command recorded."""
    place = tmp_path_factory.mktemp("attacked")
    root = write_records(place / "records", clients=4, records=40)
    settings = tiny_settings(
        place,
        clients=4,
        data={"root": root},
        federate={"rounds": 2},
        audit={"holdout": 0.5, "canaries": [1, 2]},
    )
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = ["run", place / "tiny.yaml", "--record", "--out", place / "run"]
    made = CliRunner().invoke(app, [*map(str, words)])
    assert made.exit_code == 0, made.output
    return place / "run"


def test_the_demo_to_attack_sets_records_aside_and_plants_canaries():
    file = find_config("demo_attacked")
    assert file.read_text().splitlines()[0] == "# fedproxy-secure run demo_attacked --record"
    config = load_config(file)
    assert config.audit.canaries == (1, 4, 16)
    assert config.audit.holdout > 0
    assert config.protect.scheme == "masking"
    assert config.name == "demo_attacked"


@pytest.mark.change
@pytest.mark.slow
def test_a_recorded_run_is_attacked_in_processes_and_reported_again(run):
    attacked = typed(
        *("attack", "run", "--run", run, "--jobs", "2", "--budget-seconds", "100"),
        *("--spec", "A2", "--spec", "A11", "--view", "server"),
    )
    assert attacked.returncode == 0, attacked.stderr
    assert "smoke suite: " in attacked.stderr  # how long it took is a line only from 5 s on
    results = read_findings(run)
    assert [r.attack for r in results] == [
        "lora_span_tokens",
        *("cohort_differencing", "mask_seed_search", "masked_words", "sign_counts"),
    ]
    assert Outcome.ERROR not in {r.outcome for r in results}
    nothing = [r.attack for r in results if r.outcome == Outcome.NOT_APPLICABLE]
    assert nothing == ["cohort_differencing"]  # every client takes part in every round
    for result in results:
        assert result.attack in attacked.stdout
        assert result.attack in nothing or result.negative.low <= 0.55

    report = ["attack", "report", "--run", str(run)]
    reported = CliRunner().invoke(app, report, env={"COLUMNS": "80"})
    assert reported.exit_code == 0
    assert reported.stdout.splitlines()[0].strip() == "server, seed-0"
    strict = CliRunner().invoke(app, [*report, "--strict"])
    outcomes = {r.outcome for r in results}
    expected = 1 if Outcome.SUCCEEDED in outcomes else 3 if Outcome.INCONCLUSIVE in outcomes else 0
    assert strict.exit_code == expected


@pytest.mark.slow
def test_no_model_that_knows_records_is_left_in_the_temporary_folder(run, tmp_path):
    what = ("--jobs", "2", "--spec", "A6", "--view", "client", "--budget-seconds", "100")
    attacked = typed("attack", "run", "--run", run, *what, TMPDIR=str(tmp_path))
    assert attacked.returncode == 0, attacked.stderr
    assert read_findings(run)[0].positive is not None
    assert list(tmp_path.glob("fedproxy-*")) == []


@pytest.mark.slow
def test_processes_end_with_an_interrupt_and_the_resumed_suite_takes_over_their_results(run):
    words = ["attack", "run", "--run", str(run), "--jobs", "2", "--view", "server"]
    words += ["--spec", "sign_counts", "--spec", "A6", "--spec", "A7", "--suite", "full"]
    events = run / "attacks" / "events.jsonl"
    events.unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "fedproxy_secure", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 90
        while time.monotonic() < until and not (events.exists() and events.read_text().count("\n") >= 1):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "resume with: fedproxy-secure attack run" in err
    assert "Traceback" not in err
    assert not any(str(run) in text for text in commands_of_processes())
    kept = events.read_text().splitlines()
    assert 1 <= len(kept) < 3

    again = typed(*words[:-1], "full", "--resume", "--budget-seconds", "2")
    assert again.returncode == 0, again.stderr
    ours = [r.attack for r in read_findings(run)][:3]  # then what other tests left of other attacks
    assert ours == ["sign_counts", "model_membership", "canary_exposure"]
    done = [json.loads(line)["attack"] for line in events.read_text().splitlines()]
    assert done[: len(kept)] == [json.loads(line)["attack"] for line in kept]
    assert len(done) == 3


def commands_of_processes():
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
