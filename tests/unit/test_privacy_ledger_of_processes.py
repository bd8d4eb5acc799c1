"""Processes that use one ledger at once, or are killed while they do, never spend more than it says."""

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
from fedproxy_secure.errors import PrivacyError, RunFolderError
from tests.support.ledgers import HERE, key_of, ledger, never

# of the unit `client`: its accountant needs no torch, so processes start fast
SUM = DiscreteSum(
    mechanism="skellam", variance=4e4, l2=100.0, l1=1000.0, dimension=100, summands=2, rounds=1
)


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
    (folder / f"asks-{os.getpid()}").touch()
    own.open()

    def compute(key):
        (folder / f"computed-{os.getpid()}").touch()
        while len(list(folder.glob("asks-*"))) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
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
