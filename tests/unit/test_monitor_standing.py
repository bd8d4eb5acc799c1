"""The standing of owner and site, read from files: right numbers, plain reasons, and no secrets."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.dp.ledger import PrivacyLedger
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.journal.store import create_journal, journal_file
from fedproxy_secure.monitor.event_log import EventLog
from fedproxy_secure.monitor.events import Event
from fedproxy_secure.monitor.metrics import metrics
from fedproxy_secure.monitor.owner import owner_standing
from fedproxy_secure.monitor.page import page
from fedproxy_secure.monitor.site import site_standing
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import JOB

SUM = DiscreteSum(
    mechanism="skellam", variance=4e4, l2=100.0, l1=1000.0, dimension=100, summands=2, rounds=1
)
HIDDEN = ("0.7130459", "31.415926", "SECRET-RECORD", "/srv/secret")  # loss, norm, record, path


def config(**changes):
    clients = [
        {"name": f"c{i}", "task": "classification", "source": "/srv/secret/SECRET-RECORD.{split}.jsonl"}
        for i in range(3)
    ]
    raw = {"data": {"clients": clients}, "federate": {"rounds": 10, "timeout_s": 600.0}, **changes}
    return FederationJob.from_config(parse_config(raw), seed=0)


def event(kind, *, ago=0.0, party="owner", **fields):
    return Event(time=datetime.now(UTC) - timedelta(seconds=ago), party=party, kind=kind, **fields)


def with_events(folder, *events):
    log = EventLog(file=folder / "events.jsonl")
    for one in events:
        log.append(one)
    return log


@pytest.fixture
def run_folder(tmp_path):
    """Three rounds as `serve` writes them, c2 absent in the last one, with numbers that are not shown."""
    folder = RunFolder(path=tmp_path / "federation")
    folder.write_text("job.json", config().to_json())
    for number, seconds in enumerate((2.0, 3.0, 4.0)):
        row = {"round": number, "reveals": "SECRET-RECORD"}
        folder.append_jsonl(
            "ledger.jsonl", {**row, "message": "Broadcast", "to": "clients", "count": 3, "bytes": 1000}
        )
        folder.append_jsonl(
            "ledger.jsonl", {**row, "message": "MaskedInput", "to": "server", "count": 3, "bytes": 60}
        )
        folder.append_jsonl(
            "ledger.jsonl",
            {**row, "message": "update", "to": "server", "count": 1, "bytes": 9, "computed": True},
        )
        line = {"round": number, "participants": ["c0", "c1"], "seconds": seconds}
        folder.append_jsonl("rounds.jsonl", {**line, "loss": 0.7130459, "step_norm": 31.415926})
    return folder.path


def shown(standing):
    """Everything that leaves this process: the page and the metrics."""
    return page(standing) + metrics(standing).decode()


def test_an_owner_sees_rounds_cohort_bytes_seconds_and_who_is_absent(run_folder):
    log = with_events(
        run_folder,
        event("start"),
        event("setup", clients=3, bytes_out=5000),
        event("round", round=1, outcome="aborted", reason="RoundAborted"),
        event("start"),
        event("setup", clients=2),
        event("round", round=2, clients=2),
    )
    at = owner_standing(run_folder, name="ward", events=log)
    assert (at.role, at.name, at.phase, at.healthy) == ("owner", "ward", "running", True)
    assert (at.round, at.rounds, at.rounds_done) == (3, 10, 3)
    assert (at.cohort, at.connected, at.clients, at.absent) == (3, 2, 2, ("c2",))
    assert (at.bytes_sent, at.bytes_received) == (3000, 180)
    assert (at.round_seconds, at.left_seconds) == (4.0, 21.0)
    assert at.aborts == {"RoundAborted": 1}
    assert at.spending is None
    assert at.why == "round 3 is under way"


def test_nothing_of_a_run_folder_is_shown_but_what_is_listed(run_folder):
    RunFolder(path=run_folder).write_json(
        "trouble.json", ["TrainingError", "c1 says: loss 0.7130459 on SECRET-RECORD in /srv/secret"]
    )
    at = owner_standing(run_folder)
    assert (at.phase, at.healthy) == ("stopped", False)
    assert "ended with TrainingError, 3 of 10 rounds done" in at.why
    for secret in HIDDEN:
        assert secret in "".join(f.read_text() for f in run_folder.iterdir()), "the test looks for nothing"
        assert secret not in shown(at)
        assert secret not in repr(at)
    assert str(run_folder) not in shown(at)


def test_an_owner_is_never_shown_an_epsilon_even_where_ledgers_lie_in_her_run_folder(run_folder):
    ledger = spent_ledger(run_folder / "privacy", rounds=3)
    job = config(privacy={"unit": "client"}, fusion={"rule": "fedavg"})
    (run_folder / JOB).write_text(job.to_json())
    at = owner_standing(run_folder)
    assert at.spending is None
    assert "epsilon" not in shown(at).lower()
    assert f"{ledger.spent().epsilon:.3g}" not in page(at)


@pytest.mark.parametrize(
    ("rounds", "events", "phase", "healthy", "why"),
    [
        (10, [], "finished", True, "all rounds are done"),
        (3, [event("start")], "running", True, "waits for clients"),
        (3, [event("round", outcome="aborted", reason="RoundAborted")], "stopped", False, "RoundAborted"),
        (3, [event("round"), event("stop")], "stopped", True, "it resumes there"),
        (3, [event("stop", outcome="aborted", reason="OSError")], "stopped", False, "ended with OSError"),
    ],
    ids=["finished", "starting", "aborted", "stopped", "failed"],
)
def test_the_phase_of_an_owner_follows_from_rounds_and_the_last_event(
    tmp_path, rounds, events, phase, healthy, why
):
    folder = RunFolder(path=tmp_path)
    for number in range(rounds):
        folder.append_jsonl("rounds.jsonl", {"round": number, "participants": [], "seconds": 1.0})
    folder.write_text(JOB, config().to_json())
    at = owner_standing(tmp_path, events=with_events(tmp_path, *events))
    assert (at.phase, at.healthy) == (phase, healthy)
    assert why in at.why


def test_a_folder_without_a_run_waits(tmp_path):
    at = owner_standing(tmp_path / "none")
    assert (at.phase, at.healthy, at.why) == ("waiting", True, "has not begun")
    assert (at.round, at.rounds, at.cohort) == (0, None, None)


def test_an_owner_that_is_silent_for_longer_than_a_round_may_take_is_unhealthy(run_folder):
    for file in run_folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    at = owner_standing(run_folder)
    assert (at.phase, at.healthy) == ("running", False)
    assert "longer than federate.timeout_s (10 min)" in at.why
    (run_folder / "waits.json").write_text("{}")  # as while a proxy is on its way
    assert owner_standing(run_folder).healthy


@pytest.mark.parametrize("name", ["job.json", "rounds.jsonl", "ledger.jsonl", "trouble.json"])
@pytest.mark.parametrize("content", ["[]\n", "{\n", '{"message": []}\n', "[" * 10_000 + "\n", "\x00\n"])
def test_a_damaged_file_of_an_owner_is_named_and_stops_nothing(run_folder, name, content):
    (run_folder / name).write_text(content)
    at = owner_standing(run_folder)
    assert (at.healthy, at.why) == (False, f"cannot be read: {name}")
    assert shown(at)


def spent_ledger(folder, rounds):
    ledger = PrivacyLedger(
        folder=folder, client="c1", run="run", unit="client", delta=1e-5, max_epsilon=8.0
    )
    ledger.open()
    for number in range(rounds):
        ledger.once(round=number, inputs_sha256=b"h" * 32, event=SUM, compute=lambda key: key)
    return ledger


def site(tmp_path, **changes):
    """The policy of c1, with its journal and ledger below `tmp_path`."""
    (tmp_path / "keys").mkdir(exist_ok=True)
    changes = {
        "protect": {"keys": str(tmp_path / "keys")},
        "fusion": {"rule": "fedavg"},
        "privacy": {"unit": "client", "ledger": str(tmp_path / "privacy")},
        **changes,
    }
    if not journal_file(tmp_path / "keys", "c1").exists():
        create_journal(tmp_path / "keys", "c1")
    return policy_for(config(**changes), 1, seeds=(0,))


def answered(tmp_path, *, rounds, opened, first=0):
    """Let the journal answer `rounds` rounds of three clients, of which the first `opened` are unmasked."""
    journal = Journal(folder=tmp_path / "keys", client="c1")
    for number in range(first, rounds):
        context = bytes([number]) * 32
        journal.begin(
            Attempt(
                run="run",
                round=number,
                attempt=1,
                context=context,
                clip=1.0,
                broadcast_sha256=b"b" * 32,
                cohort=("c0", "c1", "c2"),
            )
        )
        if number < opened:
            journal.release(
                context, run="run", round=number, survivors=["c0", "c1"], refuse_differencing=False
            )


def train(number, *, ago, **fields):
    return event(
        "message", party="site", ago=ago, round=number, message="train", bytes_in=50, bytes_out=7, **fields
    )


def test_a_site_sees_her_rounds_bytes_seconds_and_her_own_epsilon(tmp_path):
    policy = site(tmp_path)
    answered(tmp_path, rounds=3, opened=2)
    ledger = spent_ledger(tmp_path / "privacy", rounds=3)
    log = with_events(tmp_path, *(train(n, ago=30 - 10 * n, seconds=0.0) for n in range(3)))
    at = site_standing(policy, events=log)
    assert (at.role, at.name, at.phase, at.healthy) == ("site", "c1", "running", True)
    assert (at.round, at.rounds, at.rounds_done, at.cohort) == (2, 10, 2, 3)
    assert (at.messages, at.bytes_received, at.bytes_sent) == (3, 150, 21)
    assert at.round_seconds == pytest.approx(10, abs=0.5)
    assert at.left_seconds == pytest.approx(70, abs=3)
    assert at.spending.epsilon == ledger.spent().epsilon > 0
    assert (at.spending.limit, at.spending.delta) == (8.0, 1e-5)
    assert (at.connected, at.clients, at.absent) == (None, None, ())
    assert f"{ledger.spent().epsilon:.3g}" in page(at)
    for secret in HIDDEN:
        assert secret not in shown(at)
    assert str(tmp_path) not in shown(at)


@pytest.mark.parametrize("rounds", [1, 10], ids=["the last round", "under way"])
def test_a_site_whose_training_fails_is_unhealthy_until_a_round_is_trained(tmp_path, rounds):
    """Its answers hide the failure from the owner, and end like any other."""
    policy = site(tmp_path, federate={"rounds": rounds, "timeout_s": 600.0})
    spent_ledger(tmp_path / "privacy", rounds=1)
    answered(tmp_path, rounds=1, opened=1)
    failure = event("training", party="site", round=0, ago=6, outcome="aborted", reason="TrainingError")
    log = with_events(tmp_path, failure, train(0, ago=5))
    at = site_standing(policy, events=log)
    assert (at.healthy, at.aborts) == (False, {"TrainingError": 1})
    assert "training failed in round 0, so zeros were sent in its place; see this site" in page(at)
    assert 'fedproxy_aborts_total{reason="TrainingError"} 1.0' in metrics(at).decode()
    if rounds > 1:
        answered(tmp_path, rounds=2, opened=1, first=1)
        log.append(train(1, ago=1))
        assert site_standing(policy, events=log).healthy


def test_a_site_without_secure_sums_counts_the_rounds_in_which_it_trained(tmp_path):
    policy = site(tmp_path, protect={"scheme": "unsafe_plaintext"}, privacy={"unit": "none"})
    again = train(1, ago=5)
    at = site_standing(policy, events=with_events(tmp_path, train(0, ago=9), again, again))
    assert (at.round, at.rounds_done, at.spending, at.cohort) == (1, 2, None, None)


@pytest.mark.parametrize(
    ("events", "phase", "healthy", "why"),
    [
        ([], "waiting", True, "waits for the owner's first message"),
        ([event("start", party="site")], "waiting", True, "waits for the owner's first message"),
        (
            [train(0, ago=3), event("stop", party="site"), event("start", party="site")],
            "running",
            True,
            "round 0 was the last one asked for",
        ),
        (
            [train(0, ago=3), event("setup", party="site", outcome="aborted", reason="clock")],
            "waiting",
            False,
            "waits: the preflight check 'clock' fails; see this site's log",
        ),
        (
            [
                event("setup", party="site", outcome="aborted", reason="clock"),
                event("setup", party="site"),
            ],
            "waiting",
            True,
            "waits for the owner's first message",
        ),
        (
            [train(0, ago=1, outcome="aborted", reason="PrivacyError")],
            "running",
            False,
            "train ended with PrivacyError",
        ),
        ([train(0, ago=8000)], "running", False, "no message for 2 h"),
        ([train(0, ago=2), event("stop", party="site")], "stopped", True, "was stopped"),
        (
            [event("message", party="site", message="query.setup")],
            "running",
            True,
            "waits for its first round",
        ),
    ],
    ids=[
        "waiting",
        "started",
        "started again",
        "clock",
        "clock was mended",
        "refused",
        "silent",
        "stopped",
        "set up",
    ],
)
def test_the_phase_of_a_site_follows_from_its_last_event(tmp_path, events, phase, healthy, why):
    at = site_standing(site(tmp_path, privacy={"unit": "none"}), events=with_events(tmp_path, *events))
    assert (at.phase, at.healthy) == (phase, healthy)
    assert why in at.why


def test_a_site_has_finished_when_the_last_round_was_unmasked(tmp_path):
    policy = site(tmp_path, privacy={"unit": "none"})
    answered(tmp_path, rounds=10, opened=9)
    log = with_events(tmp_path, train(9, ago=0))
    assert site_standing(policy, events=log).phase == "running"
    answered_last = Journal(folder=tmp_path / "keys", client="c1")
    answered_last.release(
        bytes([9]) * 32, run="run", round=9, survivors=["c0", "c1"], refuse_differencing=False
    )
    at = site_standing(policy, events=log)
    assert (at.phase, at.healthy, at.rounds_done) == ("finished", True, 10)


def test_files_of_a_site_that_cannot_be_read_are_named_and_stop_nothing(tmp_path):
    policy = site(tmp_path)
    log = with_events(tmp_path, train(0, ago=0))
    at = site_standing(policy, events=log)
    assert (at.healthy, at.why) == (False, "cannot be read: the privacy ledger")  # trained, nothing paid
    spent_ledger(tmp_path / "privacy", rounds=1).path.write_text("SECRET-RECORD\n")
    journal_file(tmp_path / "keys", "c1").write_bytes(b"SECRET-RECORD" * 1000)
    log.file.write_bytes(b"x" * 2**23)
    at = site_standing(policy, events=log)
    assert not at.healthy
    assert at.why.startswith("cannot be read: the log of events, the journal")
    assert "SECRET-RECORD" not in shown(at)
    journal_file(tmp_path / "keys", "c1").unlink()
    assert "the journal" in site_standing(policy, events=log).why


@pytest.mark.parametrize("changes", [{"client": "c2"}, {"client": 5}, {"delta": "x"}, {"delta": None}])
def test_a_site_whose_ledger_has_a_damaged_header_is_unhealthy_and_nothing_is_raised(tmp_path, changes):
    policy = site(tmp_path)
    answered(tmp_path, rounds=1, opened=1)
    log = with_events(tmp_path, train(0, ago=0))
    file = spent_ledger(tmp_path / "privacy", rounds=1).path
    header, event = file.read_text().splitlines()
    file.write_text(f"{json.dumps({**json.loads(header), **changes})}\n{event}\n")
    at = site_standing(policy, events=log)
    assert (at.healthy, at.why) == (False, "cannot be read: the privacy ledger")


def test_names_with_markup_and_control_characters_are_shown_letter_by_letter(tmp_path):
    name = '<script>alert("x")</script>\u202e\x1b[2J'
    at = replace(owner_standing(tmp_path, name=name), absent=("<b>c2</b>",), why="<i>why</i>")
    text = page(at)
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_hostile_lines_in_a_log_change_no_number_and_are_counted(run_folder):
    log = with_events(run_folder, event("setup", clients=3))
    for line in ("<script>alert(1)</script>", json.dumps({"carried": 1}), "[" * 5000, '{"clients": 1e999}'):
        with log.file.open("a") as file:
            file.write(line + "\n")
    at = owner_standing(run_folder, events=log)
    assert (at.connected, at.skipped, at.aborts) == (3, 4, {})
    assert "<script" not in shown(at)
