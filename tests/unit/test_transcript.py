"""The transcript: whole lines, bounded memory, equal arrays once, forgotten rounds; it changes nothing."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.config import parse_config
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.data.planted import draw_canaries
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.asking import Asker
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.recording import WatchedGrid, as_plain, recorder_of
from fedproxy_secure.record.private import PrivateState, read_private, write_records, write_round
from fedproxy_secure.record.transcript import STATE, Recorder, read_events
from tests.support.recorded import AUDIT, prepared

PLAIN = {"scheme": "unsafe_plaintext"}


def note(recorder, kind="train", arrays=None, **values):
    recorder.note(kind, sender="server", receiver="a", values=values, arrays=arrays or {})


def test_events_come_back_in_order_with_their_values_and_arrays(tmp_path):
    recorder = Recorder(tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    note(recorder, "one", {"vectors/x": x}, n=1, names=["a", "b"])
    recorder.round = 3
    note(recorder, "two")
    one, two = read_events(tmp_path)
    assert (one.index, one.round, one.kind, one.values) == (0, 0, "one", {"n": 1, "names": ["a", "b"]})
    assert one.arrays()["vectors/x"].tobytes() == x.tobytes()
    assert (two.index, two.round, two.kind, two.arrays()) == (1, 3, "two", {})


def test_a_line_that_a_crash_left_unfinished_is_absent_and_the_next_one_whole(tmp_path):
    recorder = Recorder(tmp_path)
    note(recorder, "one")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"index": 1, "kind": "ha')
    assert [e.kind for e in read_events(tmp_path)] == ["one"]
    note(Recorder(tmp_path), "two")
    assert [(e.index, e.kind) for e in read_events(tmp_path)] == [(0, "one"), (1, "two")]


def test_an_event_that_cannot_be_written_raises_and_leaves_no_line(tmp_path):
    recorder = Recorder(tmp_path)
    note(recorder, "one")
    (tmp_path / "blobs").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot be written"):
        note(recorder, "two", {"x": np.zeros(3)})
    assert [e.kind for e in read_events(tmp_path)] == ["one"]


def test_equal_arrays_are_kept_once_and_others_apart(tmp_path):
    recorder = Recorder(tmp_path)
    for value in (1.0, 1.0, 2.0):
        note(recorder, arrays={"x": np.full(5, value)})
    assert len(list((tmp_path / "blobs").iterdir())) == 2
    assert [e.arrays()["x"][0] for e in read_events(tmp_path)] == [1.0, 1.0, 2.0]


def test_memory_stays_that_of_one_event(tmp_path):
    recorder, size = Recorder(tmp_path), 1_000_000
    tracemalloc.start()
    for index in range(12):
        note(recorder, arrays={"x": np.full(size, index, dtype=np.uint8)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4.5 * size
    assert len(list(read_events(tmp_path))) == 12


def test_a_round_that_starts_again_is_forgotten_with_all_it_left(tmp_path):
    recorder = Recorder(tmp_path)
    for number, value in ((0, 1.0), (1, 1.0), (1, 2.0)):
        recorder.round = number
        note(recorder, arrays={"x": np.full(3, value)})
        write_round(tmp_path, "a", number, np.full(3, value), [0])
    again = Recorder(tmp_path)
    again.forget_from(1)
    (kept,) = read_events(tmp_path)
    assert kept.arrays()["x"][0] == 1.0
    assert len(list((tmp_path / "blobs").iterdir())) == 1
    assert [f.name for f in (tmp_path / "clients" / "a").iterdir()] == ["round-0.safetensors"]
    note(again, "next")
    assert [e.index for e in read_events(tmp_path)] == [0, 1]


def test_forgetting_what_never_was_changes_nothing(tmp_path):
    Recorder(tmp_path).forget_from(0)
    recorder = Recorder(tmp_path)
    note(recorder)
    before = (tmp_path / "events.jsonl").read_bytes()
    recorder.forget_from(1)
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_a_missing_or_damaged_transcript_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="holds no transcript; run with --record"):
        list(read_events(tmp_path))
    recorder = Recorder(tmp_path)
    note(recorder, arrays={"x": np.zeros(3)})
    (event,) = read_events(tmp_path)
    next((tmp_path / "blobs").iterdir()).write_bytes(b"no tensors")
    with pytest.raises(RunFolderError, match="is not a transcript's blob"):
        event.arrays()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"index": 1}) + "\n")
    with pytest.raises(RunFolderError, match="is damaged"):
        list(read_events(tmp_path))


def test_a_clients_state_comes_back_as_it_was_written(tmp_path):
    train = (Encoded(ids=(1, 2, 3), response_start=2), Encoded(ids=(4, 5), response_start=1))
    state = PrivateState(
        client="a", train=train, holdout=(), canaries=draw_canaries("a", [1, 4], seed=0), rounds={}
    )
    write_records(tmp_path, "a", train=train, holdout=(), canaries=state.canaries)
    assert read_private(tmp_path, "a") == state
    for number in (2, 10):
        write_round(tmp_path, "a", number, np.full(3, number, dtype=np.float32), [1, 0, 1])
    rounds = read_private(tmp_path, "a").rounds
    assert list(rounds) == [2, 10]
    assert rounds[10].update.tolist() == [10, 10, 10]
    assert rounds[10].used.tolist() == [1, 0, 1]


def test_a_missing_or_damaged_state_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="is not a client's state"):
        read_private(tmp_path, "a")
    write_records(tmp_path, "a", train=[Encoded(ids=(1, 2), response_start=1)], holdout=[], canaries=[])
    (tmp_path / "clients" / "a" / "canaries.json").write_text('[{"prompt": 1}]')
    with pytest.raises(RunFolderError, match="is not a client's state"):
        read_private(tmp_path, "a")


def test_messages_become_plain_values_and_arrays_and_a_part_of_the_proxy_its_hash():
    content = RecordDict(
        {
            "vectors": ArrayRecord({"update": Array(np.ones(2, dtype=np.float32))}),
            "protocol": ConfigRecord({"client": "a", "key": b"\1\2", "sealed": [b"", b"\3"], "none": b""}),
            "data": ConfigRecord({"bytes": b"{}"}),
            "metrics": ConfigRecord({"loss": float("nan"), "steps": 3}),
        }
    )
    values, arrays = as_plain(content)
    assert values == {
        "protocol/client": "a",
        "data/bytes": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "metrics/loss": "nan",
        "metrics/steps": 3,
    }
    assert {k: v.tolist() for k, v in arrays.items()} == {
        "vectors/update": [1, 1],
        "protocol/key": [1, 2],
        "protocol/sealed/1": [3],
    }


def test_a_node_never_writes_under_another_clients_name_into_a_transcript(tmp_path):
    def answer(message, context):
        lies = context.node_id == 3 and message.metadata.message_type != wire.SETUP
        ready = wire.Ready(ready=True, client="c2" if lies else f"c{context.node_id}")
        return Message(wire.encode_ready(ready), reply_to=message)

    asker = Asker(WatchedGrid(InProcessGrid(answer, 2), Recorder(tmp_path)), timeout_s=5.0)
    contents = dict.fromkeys((2, 3), RecordDict({"it": ConfigRecord({"x": 1})}))
    kinds = (wire.SETUP, wire.TRAIN, wire.PART, wire.SHARE)
    for kind in kinds:
        assert len(list(asker.ask(kind, contents, "round 0", lambda content: content))) == 2
    told = [(e.kind, e.sender) for e in read_events(tmp_path) if e.kind.endswith(".reply")]
    assert sorted(told) == sorted((f"{kind}.reply", name) for kind in kinds for name in ("c2", "c3"))


def test_a_number_that_is_not_finite_does_not_stop_the_recorder(tmp_path):
    values, arrays = as_plain(RecordDict({"metrics": ConfigRecord({"loss": float("inf")})}))
    Recorder(tmp_path).note("train.reply", sender="a", receiver="server", values=values, arrays=arrays)
    (event,) = read_events(tmp_path)
    assert event.values == {"metrics/loss": "inf"}


# recorded federations


@pytest.fixture(scope="module", params=["masking", "unsafe_plaintext"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return *prepared(folder, protect={"scheme": request.param}, fusion={"rule": "fedavg"}), folder


def runs_in(world, place, on_client=None, **audit):
    job, proxy, initial, _ = world
    place.mkdir(parents=True)
    job = job.changed(audit=job.audit.model_copy(update=audit))
    return federate(job, proxy, initial, run_folder=place, on_client=on_client)


@pytest.fixture(scope="module")
def recorded(world, tmp_path_factory):
    """The state that a recorded run ends in, and its transcript."""
    folder = tmp_path_factory.mktemp("recorded")
    return runs_in(world, folder / "run"), folder / "run" / "transcript"


def test_a_run_that_records_nothing_unless_asked_for_ends_like_a_recorded_one_bit_for_bit(
    world, recorded, tmp_path
):
    quiet = runs_in(world, tmp_path / "quiet", record=False)
    assert not (tmp_path / "quiet" / "transcript").exists()
    state, transcript = recorded
    assert state.adapter.tobytes() == quiet.adapter.tobytes()
    assert (transcript / "events.jsonl").exists()


class Killed(BaseException):
    pass


def repeatable(transcript):
    """What does not come from fresh keys: broadcasts, updates in the clear, the server's states."""
    found = []
    for event in read_events(transcript):
        if event.kind in ("train", "train.reply", STATE):
            kept = {
                k: v.tobytes()
                for k, v in event.arrays().items()
                if k in ("adapter", "sums/update") or k.startswith("vectors/")
            }
            values = {
                k: v for k, v in event.values.items() if k not in ("terms/attempt", "metrics/seconds")
            }
            found.append((event.round, event.kind, event.sender, event.receiver, values, kept))
    return found


def test_a_recorded_run_killed_within_a_round_resumes_to_the_transcript_of_an_unbroken_one(
    world, recorded, tmp_path
):
    seen = []

    def kill(client):
        seen.append(client)
        if len(seen) == 6:  # the second client of the second round
            raise Killed

    (unbroken, whole), broken = recorded, tmp_path / "broken"
    with pytest.raises(Killed):
        runs_in(world, broken, on_client=kill)
    assert {e.round for e in read_events(broken / "transcript")} == {0, 1}
    job, proxy, initial, _ = world
    resumed = federate(job, proxy, initial, run_folder=broken)
    assert resumed.adapter.tobytes() == unbroken.adapter.tobytes()
    assert repeatable(broken / "transcript") == repeatable(whole)
    for client in ("c0", "c3"):
        one, two = (read_private(p, client) for p in (whole, broken / "transcript"))
        assert one.train == two.train
        assert {r: (d.update.tobytes(), d.used.tobytes()) for r, d in one.rounds.items()} == {
            r: (d.update.tobytes(), d.used.tobytes()) for r, d in two.rounds.items()
        }


def test_what_a_client_wrote_down_is_what_it_sent_and_what_it_was_drawn_from(world, recorded):
    _, transcript = recorded
    states = [read_private(transcript, f"c{i}") for i in range(4)]
    for state in states:
        assert len(state.train) + len(state.holdout) == 12 + sum(AUDIT["canaries"])
        assert [c.repeats for c in state.canaries] == AUDIT["canaries"]
        assert sorted(state.rounds) == [0, 1, 2]
        assert all(len(d.used) == 2 * 4 and d.used.max() < len(state.train) for d in state.rounds.values())
        assert not set(state.holdout) & set(state.train)
    first = next(e for e in read_events(transcript) if e.kind == STATE)
    step = first.arrays()["adapter"] - world[2].adapter
    mean = np.mean([s.rounds[0].update for s in states], axis=0)
    np.testing.assert_allclose(step, mean, atol=1e-6)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_nobody_but_the_owner_reads_a_transcript_whatever_the_umask(tmp_path, umask):
    place, before = tmp_path / "seed-0" / "federation" / "transcript", os.umask(umask)
    try:
        recorder = Recorder(place)
        note(recorder, "train.reply", {"vectors/update": np.zeros(3)})
        recorder.round = 1
        note(recorder, "train")
        recorder.forget_from(1)
        item = Encoded(ids=(1, 2), response_start=1)
        write_records(place, "a", train=[item], holdout=[], canaries=draw_canaries("a", [1], seed=0))
        write_round(place, "a", 0, np.zeros(3, dtype=np.float32), [0])
    finally:
        os.umask(before)
    found = {p.relative_to(place).as_posix(): p.stat().st_mode & 0o777 for p in place.rglob("*")}
    assert place.stat().st_mode & 0o777 == 0o700
    assert {name: mode for name, mode in found.items() if (place / name).is_dir()} == dict.fromkeys(
        ("blobs", "clients", "clients/a"), 0o700
    )
    files = {name: mode for name, mode in found.items() if (place / name).is_file()}
    assert len(files) == 5
    assert set(files.values()) == {0o600}
    assert read_private(place, "a").train == (item,)


def test_a_transcript_that_others_could_read_is_closed_when_it_goes_on(tmp_path):
    place = tmp_path / "transcript"
    place.mkdir(mode=0o755)
    (place / "events.jsonl").touch(mode=0o644)
    note(Recorder(place), "one")
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_recorded_federation_leaves_nothing_that_others_may_read(recorded):
    _, transcript = recorded
    for place in (transcript, *transcript.rglob("*")):
        assert place.stat().st_mode & 0o077 == 0, place


def recorded_into(folder, seed, run=None, **changes):
    """The job of a seed of a run that records into `folder`, and its recorder, before the first round."""
    job = FederationJob.from_config(
        parse_config({"audit": {"record": True, "folder": str(folder)}, **changes}), seed=seed
    )
    return job, recorder_of(job, 0, run)


def test_seeds_that_record_into_one_folder_keep_their_transcripts_apart(tmp_path):
    for seed in (0, 1):
        _, recorder = recorded_into(tmp_path / "all", seed)
        note(recorder, f"seed {seed}")
    for seed in (0, 1):
        assert [e.kind for e in read_events(tmp_path / "all" / f"seed-{seed}")] == [f"seed {seed}"]


def test_a_folder_with_the_transcript_of_another_run_is_refused_and_stays(tmp_path):
    run = tmp_path / "run"
    job, recorder = recorded_into(tmp_path, 0, run)
    note(recorder, "first")
    for changes in ({"local": {"steps": 7}}, {"data": {"root": "other"}}):
        with pytest.raises(RunFolderError, match=r"seed-0: holds the transcript of another run; delete it"):
            recorded_into(tmp_path, 0, run, **changes)
    assert [e.kind for e in read_events(tmp_path / "seed-0")] == ["first"]
    recorder_of(job, 1, run)  # its own goes on
    (tmp_path / "seed-0" / "job.sha256").unlink()
    with pytest.raises(RunFolderError, match="holds the transcript of another run"):
        recorder_of(job, 1, run)


@pytest.mark.parametrize("first", ["one", None])
def test_a_second_run_of_the_same_settings_destroys_no_transcript(tmp_path, first):
    _, recorder = recorded_into(tmp_path / "all", 0, first and tmp_path / first)
    note(recorder, "first")
    for second in (tmp_path / "two", None):
        with pytest.raises(RunFolderError, match="holds the transcript of another run"):
            recorded_into(tmp_path / "all", 0, second)
    assert [e.kind for e in read_events(tmp_path / "all" / "seed-0")] == ["first"]


def test_a_run_that_was_moved_together_with_its_transcript_goes_on(tmp_path):
    _, recorder = recorded_into(tmp_path / "here/all", 0, tmp_path / "here/run")
    note(recorder, "first")
    (tmp_path / "here").rename(tmp_path / "there")
    job, _ = recorded_into(tmp_path / "there/all", 0, tmp_path / "there/run")
    assert recorder_of(job, 1, tmp_path / "there/run") is not None


def test_recording_without_a_folder_to_record_into_is_refused(world):
    job, proxy, initial, _ = world
    with pytest.raises(ConfigError, match=r"audit.record=true: needs a run folder, or audit.folder"):
        federate(job, proxy, initial)
