"""No customer is answered more than is counted, whatever is killed, run at once, removed or damaged."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedproxy_secure.config import ApiConfig
from fedproxy_secure.errors import ConfigError, QueryRefused, RunFolderError
from fedproxy_secure.journal.store import create_journal
from fedproxy_secure.serve.ledger import QueryLedger, Usage
from fedproxy_secure.serve.service import OwnersApi
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[2]
NO_LIMIT = ApiConfig()


@pytest.fixture
def ledger(tmp_path) -> QueryLedger:
    return QueryLedger.create(tmp_path / "api.queries")


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A real process that runs a script; each answer that leaves it is one dot on its output."""
    head = """
        import os, signal, sys
        from pathlib import Path
        from fedproxy_secure.config import ApiConfig
        from fedproxy_secure.errors import QueryRefused
        from fedproxy_secure.serve.ledger import QueryLedger
        ledger = QueryLedger(file=Path(sys.argv[1]))
        answer = lambda: os.write(1, b".")
    """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen) -> bytes:
    with process:
        return process.communicate(timeout=100)[0]


def test_a_process_that_is_killed_at_any_moment_has_answered_no_more_than_is_counted(ledger):
    answered = 0
    for kill in range(3):
        process = start("while True: ledger.spend('acme', [3, 4], ApiConfig()); answer()", ledger.file)
        with process:
            answered += len(process.stdout.read(5 + 7 * kill))  # it answers, and goes on
            process.send_signal(signal.SIGKILL)
            answered += len(process.stdout.read())
        assert process.returncode == -signal.SIGKILL
        counted = ledger.asked("acme")
        assert counted == Usage(
            queries=counted.queries, tokens=counted.queries // 2 * 7
        )  # whole calls alone
        assert answered <= counted.queries // 2 <= answered + kill + 1  # one a kill was counted in vain
    left = ApiConfig(queries=counted.queries + 4)  # a limit holds over all that went before
    ledger.spend("acme", [1, 1, 1], left)
    with pytest.raises(QueryRefused):
        ledger.spend("acme", [1, 1], left)


@pytest.mark.parametrize(
    ("order", "answers", "counts"),
    [
        ("ledger.spend('acme', [5], ApiConfig(queries=1)); die(); answer()", 0, 1),
        # known-bad: whoever counts after the answer has answered for nothing
        ("answer(); die(); ledger.spend('acme', [5], ApiConfig(queries=1))", 1, 0),
    ],
    ids=["counts first", "known-bad"],
)
def test_a_process_killed_between_count_and_answer_loses_an_answer_never_a_count(
    ledger, order, answers, counts
):
    process = start(f"die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n{order}", ledger.file)
    assert len(finished(process)) == answers
    assert ledger.asked("acme").queries == counts


def test_processes_at_once_are_answered_as_often_as_the_limit_allows_and_not_once_more(ledger):
    code = """
        policy = ApiConfig(queries=30, tokens=10_000)
        for _ in range(25):
            try:
                ledger.spend('acme', [2], policy)
            except QueryRefused:
                break
            answer()
    """
    processes = [start(code, ledger.file) for _ in range(3)]
    assert sum(len(finished(p)) for p in processes) == 30
    assert ledger.asked("acme") == Usage(queries=30, tokens=60)


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_api_that_is_killed_while_it_answers_goes_on_with_what_is_left(ledger, tmp_path):
    folder = save_tiny(tmp_path / "llm")
    code = """
        from fedproxy_secure.serve.service import OwnersApi
        api = OwnersApi(Path(sys.argv[2]), policy=ApiConfig(), ledger=ledger)
        while True:
            api.ask('acme', [[1, 40, 50]])
            answer()
    """
    killed = start(code, ledger.file, folder)
    with killed:
        answered = len(killed.stdout.read(2))
        killed.send_signal(signal.SIGKILL)
        answered += len(killed.stdout.read())
    counted = ledger.asked("acme").queries
    assert 2 <= answered <= counted <= answered + 1
    left = OwnersApi(folder, policy=ApiConfig(queries=counted + 2), ledger=ledger)
    for _ in range(2):
        left.ask("acme", [[1, 40, 50]])
    with pytest.raises(QueryRefused):
        left.ask("acme", [[1, 40, 50]])
    assert ledger.asked("acme") == Usage(queries=counted + 2, tokens=3 * (counted + 2))


@pytest.mark.parametrize("tokens", [2**63, 2**63 - 3, 10**5000], ids=["2^63", "2^63-3", "huge"])
def test_more_tokens_than_a_ledger_can_count_are_refused_and_not_counted(ledger, tokens):
    ledger.spend("acme", [3], NO_LIMIT)
    for policy in (NO_LIMIT, ApiConfig(queries=9)):
        with pytest.raises(QueryRefused, match=r"would have asked over 9,223,372,036,854,775,807; must be"):
            ledger.spend("acme", [tokens], policy)
    assert ledger.asked("acme") == Usage(queries=1, tokens=3)
    assert ledger.spend("acme", [2**63 - 4], NO_LIMIT).tokens == 2**63 - 1


def test_without_its_ledger_an_api_answers_nothing_and_makes_no_other(ledger):
    os.unlink(ledger.file)
    for call in (ledger.noise_key, ledger.customers, lambda: ledger.spend("acme", [1], NO_LIMIT)):
        with pytest.raises(ConfigError, match="answers nothing"):
            call()
    assert not ledger.file.exists()


def test_a_ledger_is_never_overwritten(ledger):
    ledger.spend("acme", [1], NO_LIMIT)
    key = ledger.noise_key().reveal()
    with pytest.raises(ConfigError, match="is there already"):
        QueryLedger.create(ledger.file)
    assert ledger.asked("acme").queries == 1
    assert ledger.noise_key().reveal() == key


def test_a_ledger_that_others_may_read_is_refused_since_it_holds_the_noise_key(ledger):
    assert ledger.file.stat().st_mode & 0o777 == 0o600
    ledger.file.chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 640; must be 600"):
        ledger.spend("acme", [1], NO_LIMIT)


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look like one" * 4])
def test_a_damaged_ledger_answers_nothing(ledger, content):
    ledger.file.write_bytes(content)
    with pytest.raises(RunFolderError) as refused:
        ledger.spend("acme", [1], NO_LIMIT)
    assert "so the number of past queries is unknown" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_database_of_something_else_is_no_ledger(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be used"):
        QueryLedger(file=create_journal(tmp_path, "clinic")).asked("acme")


def test_every_ledger_has_a_key_of_its_own(tmp_path):
    keys = {QueryLedger.create(tmp_path / str(i)).noise_key().reveal() for i in range(4)}
    assert len(keys) == 4
