"""The log of events: whole lines from many processes, bounded, never falling totals, strict reading."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.monitor.event_log import MOST_LINE_BYTES, VARIABLE, EventLog
from fedproxy_secure.monitor.events import MOST_REASONS, OTHER, Event, Totals
from fedproxy_secure.monitor.noting import note

NOON = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
TRAIN = Event(
    time=NOON,
    party="site",
    kind="message",
    round=3,
    message="train",
    bytes_in=100,
    bytes_out=20,
    seconds=1.5,
)
WRITER = textwrap.dedent(
    """
    import sys
    from fedproxy_secure.monitor.noting import note
    for number in range(int(sys.argv[2])):
        note("site", "message", round=number, message="query." + sys.argv[1], bytes_in=number)
    """
)


def logged(folder, **changes):
    return EventLog(file=folder / "events.jsonl", **changes)


def test_an_event_is_read_back_as_it_was_written_and_for_its_owner_alone(tmp_path):
    log = logged(tmp_path)
    aborted = replace(TRAIN, outcome="aborted", reason="PrivacyError", bytes_out=0)
    log.append(TRAIN)
    log.append(aborted)
    assert log.read().events == (TRAIN, aborted)
    assert log.read().totals == Totals(
        messages=2,
        rounds=1,
        last_round=3,
        bytes_in=200,
        bytes_out=20,
        seconds=3.0,
        aborts={"PrivacyError": 1},
    )
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_a_line_holds_what_the_documentation_says_and_nothing_else(tmp_path):
    logged(tmp_path).append(TRAIN)
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {
        "time": "2026-01-31T12:00:00.250Z",
        "party": "site",
        "kind": "message",
        "round": 3,
        "message": "train",
        "clients": None,
        "bytes_in": 100,
        "bytes_out": 20,
        "seconds": 1.5,
        "outcome": "done",
        "reason": None,
    }


def test_a_time_of_another_zone_is_written_in_utc(tmp_path):
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert replace(TRAIN, time=there).fields()["time"] == "2026-01-31T12:00:00.250Z"


def test_four_processes_at_once_lose_and_mix_no_line(tmp_path):
    environment = {**os.environ, VARIABLE: str(tmp_path / "events.jsonl")}
    names = ("a", "b", "c", "d")
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, "50"], env=environment) for name in names
    ]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    read = logged(tmp_path).read()
    assert read.skipped == 0
    for name in names:
        assert [e.round for e in read.events if e.message == f"query.{name}"] == list(range(50))


def test_a_process_that_is_killed_while_it_writes_leaves_whole_lines(tmp_path):
    environment = {**os.environ, VARIABLE: str(tmp_path / "events.jsonl")}
    process = subprocess.Popen([sys.executable, "-c", WRITER, "a", "100000"], env=environment)
    log = logged(tmp_path)
    while len(log.read().events) < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read().events
    log.append(TRAIN)
    assert log.read().events == (*before, TRAIN)
    assert [e.round for e in before] == list(range(len(before)))


def test_half_a_line_is_skipped_and_the_next_event_begins_a_line_of_its_own(tmp_path):
    log = logged(tmp_path)
    log.append(TRAIN)
    with log.file.open("a") as file:
        file.write('{"time": "2026-01-')
    assert log.read().events == (TRAIN,)
    log.append(TRAIN)
    assert log.read().events == (TRAIN, TRAIN)
    assert log.read().skipped == 0


def test_the_log_keeps_its_size_and_its_totals_never_fall(tmp_path):
    log = logged(tmp_path, most_bytes=2000)
    seen = Totals()
    for number in range(60):
        reason = "ProtocolAborted" if number % 7 == 6 else None
        event = replace(TRAIN, round=number, outcome="aborted" if reason else "done", reason=reason)
        log.append(event)
        seen = seen.plus(event)
        assert log.read().totals == seen
        assert log.read().events[-1] == event
        assert sum(f.stat().st_size for f in tmp_path.glob("events.jsonl*")) < 2 * 2000 + 1000
    assert seen.aborts == {"ProtocolAborted": 8}
    assert seen.rounds == 52


def test_totals_survive_a_kill_between_the_steps_of_a_rotation(tmp_path):
    log = logged(tmp_path, most_bytes=1000)
    while not (tmp_path / "events.jsonl.1").exists():
        log.append(TRAIN)
    totals = log.read().totals
    log.file.replace(tmp_path / "events.jsonl.1")  # rotated, nothing written yet
    assert log.read().totals == totals
    log.file.write_text('{"carried": {"mess')  # killed in the first line
    assert log.read().totals == totals
    log.append(TRAIN)
    assert log.read().totals == totals.plus(TRAIN)


HOSTILE = [
    b"",
    b"no json",
    b"[]",
    b"null",
    b'{"time": 1}',
    b"[" * 100_000,
    b"\xff\xfe\x00",
    b"x" * (MOST_LINE_BYTES + 1),
    b'{"carried": {"messages": -5}}',
    b'{"carried": []}',
    json.dumps({"carried": {"messages": 10**400}}).encode(),
]
WRONG = [
    {"time": "yesterday"},
    {"time": "2026-13-31T12:00:00.250Z"},
    {"time": None},
    {"party": "<script>alert(1)</script>"},
    {"party": ["site"]},
    {"kind": "shutdown"},
    {"round": -1},
    {"round": 1.5},
    {"round": True},
    {"round": "3"},
    {"message": "<script>alert(1)</script>"},
    {"message": "a" * 65},
    {"message": "TRAIN"},
    {"clients": -1},
    {"bytes_in": None},
    {"bytes_out": 2**60},
    {"seconds": -0.1},
    {"seconds": "1"},
    {"seconds": 10**30},
    {"seconds": 10**400},
    {"outcome": "well"},
    {"outcome": "aborted"},
    {"reason": "PrivacyError"},
    {"outcome": "aborted", "reason": "c1: /srv/records/clinic.jsonl"},
    {"outcome": "aborted", "reason": "A" * 65},
    {"more": 1},
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_that_is_no_event_is_counted_and_spoils_nothing(tmp_path, line):
    log = logged(tmp_path)
    log.append(TRAIN)
    with log.file.open("ab") as file:
        file.write(line + b"\n")
    log.append(TRAIN)
    assert log.read().events == (TRAIN, TRAIN)
    assert log.read().totals == Totals().plus(TRAIN).plus(TRAIN)
    assert log.read().skipped == 1


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_an_event_with_a_wrong_value_is_refused_in_one_short_line(tmp_path, change):
    with pytest.raises(DataError) as refused:
        Event.from_fields({**TRAIN.fields(), **change})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 250
    log = logged(tmp_path)
    log.file.write_text(json.dumps({**TRAIN.fields(), **change}) + "\n")
    assert log.read().events == ()
    assert log.read().skipped == 1


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(DataError, match="must be a time in UTC"):
        replace(TRAIN, time=NOON.replace(tzinfo=None))


def test_a_file_that_is_too_large_for_a_log_is_refused_unread(tmp_path):
    log = logged(tmp_path, most_bytes=1000)
    log.file.write_bytes(b"x" * 5000)
    with pytest.raises(RunFolderError, match="a log of events is never so large"):
        log.read()


def test_reasons_beyond_a_number_count_together(tmp_path):
    totals = Totals()
    for number in range(MOST_REASONS + 10):
        totals = totals.plus(replace(TRAIN, outcome="aborted", reason=f"Error{number}"))
    assert len(totals.aborts) == MOST_REASONS + 1
    assert totals.aborts[OTHER] == 10
    assert Totals.from_fields(json.loads(json.dumps(vars(totals)))) == totals


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    note("owner", "start")
    monkeypatch.setenv(VARIABLE, "")
    note("owner", "start")
    assert list(tmp_path.iterdir()) == []
    assert logged(tmp_path / "nowhere").read().events == ()


def test_an_event_that_cannot_be_written_is_a_line_of_log_and_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "events.jsonl"))
    note("owner", "start")
    assert "event start is not written" in caplog.text
    with pytest.raises(RunFolderError, match="cannot be written"):
        logged(tmp_path / "file").append(TRAIN)
