"""The ledger is written before privacy is spent, says no in time, and gives a round one result."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian
from fedproxy_secure.dp.ledger import PrivacyLedger, own_salt, read_all
from fedproxy_secure.errors import PrivacyError, RunFolderError

# without sampling, what it costs is known at once
ROUND = SampledGaussian(noise_multiplier=20.0, sampling_rate=1.0, steps=10)
# of the unit `client`: its accountant needs no torch, so processes start fast
SUM = DiscreteSum(
    mechanism="skellam", variance=4e4, l2=100.0, l1=1000.0, dimension=100, summands=2, rounds=1
)
HERE, THERE = b"h" * 32, b"t" * 32


def ledger(folder, **changes):
    settings = {
        "folder": folder,
        "client": "clinic",
        "run": "run",
        "unit": "record",
        "delta": 1e-5,
        "max_epsilon": 2.0,
    }
    made = PrivacyLedger(**(settings | changes))
    made.open()
    return made


def key_of(own, round=0, inputs=HERE, event=ROUND):
    """A round whose result is its noise key: what a test may look at and a client never does."""
    return own.once(round=round, inputs_sha256=inputs, event=event, compute=lambda key: key)


def other_each_time(key):
    return os.urandom(8)


def never(key):
    raise AssertionError("was computed again")


@pytest.mark.torch
def test_a_round_is_on_disk_before_its_key_is_given(tmp_path):
    own, seen = ledger(tmp_path), []
    assert own.events() == []

    def compute(key):
        seen.append(ledger(tmp_path).events())
        return b"result"

    assert own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute) == b"result"
    assert seen == [[ROUND]] == [own.events()]
    assert 0 < own.spent().epsilon < 2


@pytest.mark.torch
def test_the_same_round_again_has_the_same_result_computes_nothing_and_is_free(tmp_path):
    """Also where computing again would give other numbers, as on a GPU that is not exact to the bit."""
    own = ledger(tmp_path)
    first = own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=other_each_time)
    again = ledger(tmp_path)
    assert again.once(round=0, inputs_sha256=HERE, event=ROUND, compute=never) == first
    assert again.events() == [ROUND]


@pytest.mark.torch
@pytest.mark.parametrize("other", [(0, THERE), (1, HERE)])
def test_another_input_or_round_has_other_noise_and_is_paid_for(tmp_path, other):
    own = ledger(tmp_path)
    assert key_of(own) != key_of(own, *other)
    assert len(own.events()) == 2


@pytest.mark.torch
def test_a_round_whose_result_was_overwritten_is_paid_for_again(tmp_path):
    own = ledger(tmp_path)
    first = key_of(own)
    key_of(own, round=1)
    assert key_of(own) != first
    assert len(own.events()) == 3


@pytest.mark.torch
def test_no_noise_key_outlives_its_round(tmp_path):
    own, during = ledger(tmp_path), []

    def compute(key):
        during.append(key.hex() in (tmp_path / "clinic.noise.key").read_text())
        return b"result"

    own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute)
    assert during == [True]
    assert sorted(os.listdir(tmp_path)) == [
        "clinic.ledger.jsonl",
        "clinic.ledger.lock",
        "clinic.result.key",
    ]


@pytest.mark.torch
def test_the_limit_holds_and_what_is_refused_is_not_written(tmp_path):
    own = ledger(tmp_path)

    def spend(rounds):
        for number in range(rounds):
            key_of(own, round=number)

    with pytest.raises(
        PrivacyError, match=r"client clinic, round \d+: epsilon would become .* must be <= 2 "
    ):
        spend(100)
    taken = len(own.events())
    assert 1 < taken < 100
    assert own.spent().epsilon <= 2
    with pytest.raises(PrivacyError):  # also after a restart
        ledger(tmp_path).once(round=200, inputs_sha256=HERE, event=ROUND, compute=never)
    assert len(own.events()) == taken
    key_of(own, round=taken - 1)  # the last round's result is still there
    assert len(own.events()) == taken


@pytest.mark.torch
def test_a_line_cut_short_was_never_spent_and_does_not_spoil_the_next(tmp_path):
    own = ledger(tmp_path)
    key_of(own)
    with own.path.open("ab") as file:
        file.write(b'{"round": 1, "inp')
    assert ledger(tmp_path).events() == [ROUND]
    key_of(own, round=1)
    assert ledger(tmp_path).events() == [ROUND, ROUND]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"run": "another"}, r"is of another run: run differs$"),
        ({"delta": 1e-6}, r"is of another run: delta differs \(1e-05\); must be 1e-06"),
        ({"unit": "client"}, r"is of another run: unit differs \('record'\)"),
    ],
)
def test_a_ledger_of_another_run_is_refused(tmp_path, change, line):
    ledger(tmp_path)
    with pytest.raises(RunFolderError, match=line):
        ledger(tmp_path, **change)


@pytest.mark.parametrize(
    "content",
    [b"", b"no json\n", b"[]\n", b'{"client": "clinic"}\n{"event": {"kind": "x"}}\n', b"{}\n[1]\n"],
)
def test_a_damaged_ledger_stops_everything(tmp_path, content):
    own = ledger(tmp_path)
    own.path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"is damaged: .* what was spent is unknown"):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=never)


def test_a_folder_that_cannot_be_read_or_written_stops_everything(tmp_path):
    own = ledger(tmp_path)
    own.path.unlink()
    with pytest.raises(RunFolderError, match="cannot be read"):
        own.spent()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file: cannot be .*: File exists"):
        ledger(tmp_path / "file")
    (tmp_path / "a" / "clinic.ledger.lock").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="cannot be locked: Is a directory"):
        ledger(tmp_path / "a")


@pytest.mark.torch
def test_all_that_is_written_is_for_the_client_alone(tmp_path):
    folder = tmp_path / "privacy"
    own, modes = ledger(folder), {}

    def compute(key):
        modes.update({p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()})
        return b"result"

    own_salt(folder, "clinic")
    own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute)
    modes.update({p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(modes) == [
        "clinic.ledger.jsonl",
        "clinic.ledger.lock",
        "clinic.noise.key",
        "clinic.result.key",
        "clinic.salt.key",
    ]
    assert set(modes.values()) == {0o600}


@pytest.mark.torch
@pytest.mark.parametrize("field", ["round", "inputs", "line", "key"])
def test_a_kept_key_that_was_changed_is_not_used(tmp_path, field):
    own = ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=interrupted)
    file = tmp_path / "clinic.noise.key"
    kept = json.loads(file.read_text())
    other = {"round": 7, "inputs": THERE.hex(), "line": 0, "key": "00"}[field]
    file.write_text(json.dumps({**kept, field: other}))
    assert key_of(own).hex() not in (kept["key"], other)
    assert len(own.events()) == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: b"[" * 100_000]
)
def test_a_damaged_result_is_never_returned(tmp_path, spoil):
    own = ledger(tmp_path)
    first = key_of(own)
    file = tmp_path / "clinic.result.key"
    file.write_bytes(spoil(file.read_bytes()))
    assert key_of(own) != first
    assert len(own.events()) == 2


def interrupted(key):
    raise KeyboardInterrupt


@pytest.mark.torch
def test_an_error_is_an_answer_so_its_noise_does_not_serve_again(tmp_path):
    own, keys = ledger(tmp_path), []

    def fail(key):
        keys.append(key)
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=fail)
    assert not (tmp_path / "clinic.noise.key").exists()
    assert key_of(own) != keys[0]
    assert len(own.events()) == 2


@pytest.mark.torch
def test_an_interrupted_round_goes_on_with_its_noise_and_is_paid_for_once(tmp_path):
    own, keys = ledger(tmp_path), []

    def stop(key):
        keys.append(key)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=stop)
    assert key_of(ledger(tmp_path)) == keys[0]
    assert own.events() == [ROUND]


@pytest.mark.torch
def test_the_key_of_an_interrupted_round_does_not_serve_other_inputs(tmp_path):
    own = ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=interrupted)
    kept = json.loads((tmp_path / "clinic.noise.key").read_text())["key"]
    assert key_of(own, inputs=THERE).hex() != kept
    assert key_of(own).hex() != kept
    assert len(own.events()) == 3


# real processes


CHILD = """
import os, signal, sys, time
from pathlib import Path
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.dp.ledger import PrivacyLedger, own_salt
from fedproxy_secure.errors import PrivacyError

SUM = DiscreteSum(
    mechanism="skellam", variance=4e4, l2=100.0, l1=1000.0, dimension=100, summands=2, rounds=1
)
folder = Path(sys.argv[1])
own = PrivacyLedger(
    folder=folder, client="clinic", run="run", unit="client", delta=1e-5, max_epsilon=float(sys.argv[2])
)

def once(inputs=b"h" * 32, compute=lambda key: key):
    return own.once(round=0, inputs_sha256=inputs, event=SUM, compute=compute)

print("ready", flush=True)
sys.stdin.readline()
"""


def child(body, folder, *arguments, limit=100.0):
    """A process that has imported everything and waits for a line."""
    made = subprocess.Popen(
        [sys.executable, "-c", CHILD + textwrap.dedent(body), str(folder), str(limit), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdout.readline() == "ready\n"
    return made


def go(*children):
    """Let all run at once; what each of them prints."""
    for one in children:
        one.stdin.write("go\n")
        one.stdin.flush()
    return [one.communicate(timeout=60)[0].strip() for one in children]


def sums(folder, **changes):
    return ledger(folder, unit="client", **{"max_epsilon": 100.0, **changes})


def test_of_four_processes_at_once_a_limit_for_one_admits_one(tmp_path):
    body = """
    own.open()
    try:
        print(once(sys.argv[3].encode() * 32).hex())
    except PrivacyError:
        print("refused")
    """
    sums(tmp_path, max_epsilon=3.0)
    found = go(*(child(body, tmp_path, str(i), limit=3.0) for i in range(4)))
    assert sorted(f == "refused" for f in found) == [False, True, True, True]
    own = sums(tmp_path, max_epsilon=3.0)
    assert own.events() == [SUM]
    assert own.spent().epsilon <= 3.0


@pytest.mark.torch
def test_of_four_threads_at_once_a_limit_for_one_admits_one(tmp_path):
    """With the accountant of records: it takes long enough for all to pass a check without a lock."""
    event = SampledGaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=40)
    limit = 1.1 * spent([event], delta=1e-5).epsilon
    own = ledger(tmp_path, max_epsilon=limit)

    def ask(number):
        try:
            return key_of(own, round=number, event=event)
        except PrivacyError:
            return None

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert found.count(None) == 3
    assert own.events() == [event]
    assert own.spent().epsilon <= limit


def test_two_processes_with_the_same_inputs_get_one_result_and_one_computes(tmp_path):
    body = """
    own.open()

    def compute(key):
        (folder / f"computed-{os.getpid()}").touch()
        time.sleep(1)
        return os.urandom(16)

    print(once(compute=compute).hex())
    """
    first, second = go(child(body, tmp_path), child(body, tmp_path))
    assert len(first) == 32
    assert first == second
    assert len(list(tmp_path.glob("computed-*"))) == 1
    assert sums(tmp_path).events() == [SUM]


def test_threads_of_one_process_keep_each_other_out_too(tmp_path):
    own, inside, most = sums(tmp_path), [], []

    def compute(key):
        inside.append(threading.get_ident())
        time.sleep(0.05)
        most.append(len(inside))
        inside.pop()
        return key

    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(
                lambda i: own.once(round=i // 2, inputs_sha256=HERE, event=SUM, compute=compute), range(8)
            )
        )
    assert set(most) == {1}
    assert len(own.events()) == len(most) >= 4  # one result is kept: who comes late to a round pays again
    assert len(set(results)) == len(most)


def test_processes_that_start_the_ledger_at_once_start_one(tmp_path):
    body = """
    own.open()
    once(sys.argv[3].encode() * 32)
    print(own_salt(folder, "clinic").hex())
    """
    folder = tmp_path / "privacy"
    salts = go(*(child(body, folder, str(i)) for i in range(4)))
    assert len(set(salts)) == 1
    assert sums(folder).events() == [SUM] * 4


# where a process is killed, the lines of the ledger that are left, and whether the kept key serves again
CRASHES = [
    ("open", "clinic.ledger.jsonl", "None", 0, False),  # a read has a mode
    ("open", ".partial-clinic.noise.key", None, 1, False),
    ("os.rename", "clinic.noise.key", None, 1, False),
    ("compute", "", None, 1, True),
    ("open", ".partial-clinic.result.key", None, 1, True),
    ("os.rename", "clinic.result.key", None, 1, True),
    ("os.remove", "clinic.noise.key", None, 1, True),
    ("returned", "", None, 1, True),
]


@pytest.mark.parametrize(("event", "name", "mode", "events", "serves"), CRASHES)
def test_a_process_may_be_killed_anywhere_and_nothing_is_under_counted(
    tmp_path, event, name, mode, events, serves
):
    """The process kills itself just before a call to the operating system; what it computes is its key."""
    body = """
    own.open()
    event, name, mode = sys.argv[3:]
    armed = False

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(happened, arguments):
        if not armed or happened != event:
            return
        path = arguments[1] if happened == "os.rename" else arguments[0]
        wanted = mode in ("", str(arguments[1]))
        if isinstance(path, (str, os.PathLike)) and os.path.basename(path) == name and wanted:
            kill()

    def compute(key):
        (folder / "seen").write_bytes(key)
        if event == "compute":
            kill()
        return key

    sys.addaudithook(hook)
    armed = True
    once(compute=compute)
    kill()
    """
    killed = child(body, tmp_path, event, name, mode or "")
    go(killed)
    assert killed.returncode == -signal.SIGKILL
    own = sums(tmp_path)
    assert len(own.events()) == events
    seen = (tmp_path / "seen").read_bytes() if (tmp_path / "seen").exists() else None
    stored = event in ("os.remove", "returned")
    again = own.once(round=0, inputs_sha256=HERE, event=SUM, compute=never if stored else lambda key: key)
    assert (again == seen) == serves
    assert len(own.events()) == (1 if serves else events + 1)
    assert own.once(round=0, inputs_sha256=HERE, event=SUM, compute=never) == again
    left = {p.name for p in tmp_path.iterdir()} - {"seen"}
    assert left == {"clinic.ledger.jsonl", "clinic.ledger.lock", "clinic.result.key"}


def test_a_kept_key_never_serves_an_earlier_event_with_the_same_inputs(tmp_path):
    """Killed between the two writes of a round that is asked for a second time, after another one."""
    own = sums(tmp_path)
    first = key_of(own, event=SUM)
    key_of(own, round=1, event=SUM)
    body = """
    own.open()

    def hook(happened, arguments):
        if happened == "open" and str(arguments[0]).endswith(".partial-clinic.noise.key"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    once()
    """
    go(child(body, tmp_path))
    assert len(own.events()) == 3  # paid, though nothing was drawn
    assert key_of(own, event=SUM) != first
    assert len(own.events()) == 4


def test_a_process_that_hangs_is_named_and_its_lock_ends_with_it(tmp_path):
    body = """
    own.open()

    def hang(key):
        (folder / "seen").write_bytes(key)
        print("hangs", flush=True)
        time.sleep(600)

    once(compute=hang)
    """
    stuck = child(body, tmp_path)
    stuck.stdin.write("go\n")
    stuck.stdin.flush()
    assert stuck.stdout.readline() == "hangs\n"
    patient = sums(tmp_path, wait_s=0.3)
    with pytest.raises(
        RunFolderError, match=rf"has been locked by process {stuck.pid} for more than 0.3 s; wait"
    ):
        patient.once(round=0, inputs_sha256=HERE, event=SUM, compute=never)
    assert patient.events() == [SUM]  # reading waits for nobody
    stuck.kill()
    stuck.communicate()
    assert key_of(patient, event=SUM) == (tmp_path / "seen").read_bytes()
    assert patient.events() == [SUM]


def test_a_process_forked_while_a_round_is_computed_does_not_keep_its_lock(tmp_path):
    body = """
    own.open()

    def fork(key):
        if os.fork() == 0:
            os.close(1)
            time.sleep(30)
            os._exit(0)
        return key

    once(compute=fork)
    print("done")
    """
    assert go(child(body, tmp_path)) == ["done"]
    key_of(sums(tmp_path, wait_s=0.3), round=1, event=SUM)


@pytest.mark.torch
def test_all_ledgers_of_a_run_are_read_together(tmp_path):
    key_of(ledger(tmp_path))
    ledger(tmp_path, client="bank")
    found = read_all(tmp_path)
    assert found["clinic"].epsilon > found["bank"].epsilon == 0


@pytest.mark.torch
def test_a_ledger_of_an_earlier_version_is_read_and_a_key_it_left_does_not_serve(tmp_path):
    own = ledger(tmp_path)
    place = {
        "round": 0,
        "inputs": HERE.hex(),
        "event": {"kind": "sampled_gaussian", **vars(ROUND)},
    }
    with own.path.open("a") as file:
        file.write(json.dumps(place) + "\n")
    (tmp_path / "clinic.noise.key").write_text(json.dumps({**place, "key": "ab" * 32}))
    assert read_all(tmp_path)["clinic"].epsilon > 0
    assert key_of(own).hex() != "ab" * 32
    assert own.events() == [ROUND, ROUND]


def test_a_salt_is_made_once_for_each_client_and_nobody_else_reads_it(tmp_path):
    one, two = own_salt(tmp_path, "one"), own_salt(tmp_path, "two")
    assert one != two
    assert own_salt(tmp_path, "one") == one
    assert (tmp_path / "one.salt.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "two.salt.key").write_bytes(b"short")
    with pytest.raises(RunFolderError, match="has 5 bytes; must have 32"):
        own_salt(tmp_path, "two")
