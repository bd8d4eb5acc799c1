"""The real clients answer what the model of `test_state_space` answers, and nothing more can be computed.

Clients, journals and Flower's records are the project's own; after every message all that a server can take
off the masked vectors is taken off, and all combinations are tried.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedproxy_secure.journal.store import writing
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.terms import TermsPolicy
from tests.security.test_state_space import BROKEN, attack_on, broken, safe, tries, world
from tests.support.client_model import Message, decide, ended_by, fresh, messages, sendable
from tests.support.leakage import judge, learned
from tests.support.real_clients import Held, RealWorld
from tests.support.real_sums import sums
from tests.support.state_space import explore
from tests.support.state_tables import State, smallest_name

pytestmark = pytest.mark.no_cover  # what runs here is counted where `tests/secagg.txt` says
EXAMPLES = {"nightly": 3000, "short": 10}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 40)
NAMES = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def expected_sums(case, members):
    """What the model says that a server can compute, as coefficients by honest client."""
    bases = [learned(case, a, [m.said[number] for m in members]) for number, a in enumerate(case.attempts)]
    least = min(a.threshold for a in case.attempts) - case.corrupted
    verdict = judge(case, bases, least=least)
    assert not verdict.wrong
    return {tuple(support >> i & 1 for i in range(case.honest)) for support in verdict.supports}


def differs(member, message):
    """Whether a message is another one than for the attempt under way: survivors are named without it."""
    return message.kind != "confirm" or member.sessions[message.attempt] or not any(member.sessions)


def changed(members, me, member):
    return (*members[:me], member, *members[me + 1 :])


# every state of three clients


def walked(case, folder, *, refusals):
    """Send the real clients every message that the model accepts in any state; how many there were.

    `refusals`: of the messages that it refuses, this share is sent too, in one state for each state of
    client 0.
    """
    real = RealWorld(world=case, folder=folder)
    start = State(clients=(fresh(case),) * case.honest)
    seen, met, moves = {start}, set(), 0
    queue = [(start.clients, real.save())]
    for members, saved in queue:  # grows
        for me in range(case.honest):
            for number, message in enumerate(messages(case)):
                after = decide(case, me, members[me], message)
                if after is None or not sendable(case, members, me, message):
                    if me or (members[0], message) in met or number % refusals:
                        continue
                    if not differs(members[0], message):
                        continue
                    met.add((members[0], message))
                    real.load(saved)
                    assert not real.send(me, message), (members, message)
                    continue
                moves += 1
                real.load(saved)
                assert real.send(me, message), (members, me, message)
                following = changed(members, me, after)
                name = smallest_name(case, State(clients=following), NAMES)
                if name not in seen:
                    seen.add(name)
                    queue.append((following, real.save()))
                    assert sums(real) == expected_sums(case, following)
    return len(seen), moves


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_real_clients_answer_as_the_model_in_every_state_of_two_attempts(tmp_path):
    case = world(3, 0, safe(3, count=2))
    found = explore(case)
    assert walked(case, tmp_path / "keys", refusals=11) == (found.states, found.messages)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_real_clients_refuse_all_that_the_model_refuses(tmp_path, split):
    case = world(3, 0, safe(3, count=2), split=split)
    found = explore(case)
    assert walked(case, tmp_path / "keys", refusals=1) == (found.states, found.messages)


# four and five clients, as chance has it

CASES = {
    "4": world(4, 0, safe(4, count=2)),
    "4, answers held back": world(4, 0, safe(4, count=2), split=True),
    "4, one corrupted": world(3, 1, safe(4, 1, count=2)),
    "4, one corrupted, answers held back": world(3, 1, safe(4, 1, count=2), split=True),
    "4, two thresholds": world(4, 0, tries(4, 3) + tries(4, 4)),
    "5, one corrupted": world(4, 1, safe(5, 1, count=2)),
}


class HostileServer(RuleBasedStateMachine):
    """A server that sends anything to anybody; the model goes along."""

    @initialize(name=st.sampled_from(sorted(CASES)))
    def begin(self, name):
        self.case = CASES[name]
        self.folder = Path(tempfile.mkdtemp())
        self.real = RealWorld(world=self.case, folder=self.folder / "keys")
        self.members = (fresh(self.case),) * self.case.honest
        self.checked = True
        self.all = list(messages(self.case))

    def teardown(self):
        shutil.rmtree(self.folder)

    def send(self, me, message, seed=0):
        after = decide(self.case, me, self.members[me], message)
        accepted = after is not None and sendable(self.case, self.members, me, message)
        accepted = accepted and (seed == 0 or message.kind == "leave")
        assert self.real.send(me, message, seed=seed) == accepted, (self.members[me], message)
        if not accepted:
            after = ended_by(self.members[me], message)
        self.members = changed(self.members, me, after)
        self.checked = False

    def acceptable(self, me):
        return [
            m
            for m in self.all
            if decide(self.case, me, self.members[me], m) and sendable(self.case, self.members, me, m)
        ]

    @rule(data=st.data())
    def one_client_goes_on(self, data):
        me = data.draw(st.integers(0, self.case.honest - 1))
        if choice := self.acceptable(me):
            self.send(me, data.draw(st.sampled_from(choice)))

    @rule(data=st.data())
    def all_clients_go_on(self, data):
        self.together(data)

    @rule(data=st.data())
    def all_clients_go_on_again(self, data):
        self.together(data)

    def together(self, data):
        """The same message to all that accept it, in any order, and their answers leave."""
        first = data.draw(st.integers(0, self.case.honest - 1))
        choice = [m for m in self.acceptable(first) if m.kind != "begin" or not self.members[first].begun]
        choice = choice or self.acceptable(first)
        if not choice:
            return
        message = data.draw(st.sampled_from(choice[-6:]))  # larger sets, steps before new attempts
        for me in data.draw(st.permutations(range(self.case.honest))):
            for sent in (message, Message("leave", message.attempt)):
                if sent in self.acceptable(me):
                    self.send(me, sent)

    @rule(data=st.data())
    def something_is_sent(self, data):
        """Anything, or what is next, but after another job was set up."""
        me, seed = data.draw(st.integers(0, self.case.honest - 1)), data.draw(st.sampled_from((0, 0, 1)))
        choice = self.acceptable(me) if seed else [m for m in self.all if differs(self.members[me], m)]
        if choice:
            self.send(me, data.draw(st.sampled_from(choice)), seed=seed)

    @rule(me=st.integers(0, 2))
    def flower_forgets(self, me):
        self.real.renew(me)

    @precondition(lambda self: not self.checked)
    @invariant()
    def no_more_than_one_sum_can_be_computed(self):
        self.checked = True
        event(f"attempts unmasked: {len({key[0] for key in self.real.heard if key[2] == 'unmask'})}")
        assert sums(self.real) == expected_sums(self.case, self.members)


@pytest.mark.timeout(0)
def test_whatever_a_server_sends_it_computes_one_sum_of_a_threshold_of_clients():
    run_state_machine_as_test(
        HostileServer,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# the attacks that the search finds on the model without a rule, on real clients without it


class GrantsTwice(Held):
    """Known-bad: each step can be taken again until the next is, with the same session."""

    def take(self, step):
        with writing(self.file) as database:
            rows = dict(database.execute("SELECT name, value FROM kept").fetchall())
            again = {n.removeprefix("before "): v for n, v in rows.items() if n.startswith("before ")}
            now = {n: v for n, v in rows.items() if not n.startswith("before ")}
            if step == "mask" and "words" not in now:
                now = again
            database.execute("DELETE FROM kept")
            kept = [(f"before {n}", v) for n, v in now.items()]
            database.executemany("INSERT INTO kept VALUES (?, ?)", kept)
            database.execute("UPDATE current SET busy = 1")
            return now


class PinsNothing(Held):
    """Known-bad: any survivors, at every attempt."""

    def check_survivors(self, **_):
        pass

    def release(self, context, **said):
        with writing(self.file) as database:
            database.execute("UPDATE rounds SET survivors = NULL")
        super().release(context, **said)


class AnyCohort(Held):
    """Known-bad: another cohort at every attempt."""

    def begin(self, asked):
        with writing(self.file) as database:
            database.execute("UPDATE rounds SET cohort = ?", (json.dumps(sorted(asked.cohort)),))
        super().begin(asked)


def without_threshold(monkeypatch):
    monkeypatch.setattr(TermsPolicy, "check", lambda *_, **__: None)


def without_signatures(monkeypatch):
    monkeypatch.setattr(ClientSession, "_check_signature", lambda *_: None)


ATTACKS = {
    "a masked vector twice": (GrantsTwice, lambda _: None),
    "survivors not pinned": (PinsNothing, lambda _: None),
    "survivors not pinned, one corrupted": (PinsNothing, lambda _: None),
    "cohort not pinned": (AnyCohort, lambda _: None),
    "threshold of 2 for 4": (Held, without_threshold),
    "threshold of 2 for 4, one corrupted": (Held, without_threshold),
    "nothing confirmed": (Held, without_signatures),
}


def played(real, trace, *, confirm):
    """Send a trace; the number of messages that are answered before one is refused."""
    for number, (me, message, _) in enumerate(trace):
        if message.kind == "unmask" and not confirm:  # what would be unmasked is said one step earlier
            if not real.send(me, message._replace(kind="confirm")):
                return number
            message = message._replace(names=0)
        if not real.send(me, message):
            return number
    return len(trace)


def independent(found):
    """Whether the combinations are more than multiples of one sum of several clients."""
    return len(found) > 1 or any(sum(row) < 2 or set(row) - {0, 1} for row in found)


@pytest.mark.parametrize("name", broken(ATTACKS))
def test_a_found_attack_succeeds_on_real_clients_without_the_rule_and_fails_on_the_installed(
    name, tmp_path, monkeypatch
):
    case = BROKEN[name][0]
    found = attack_on(name)
    played_case = world(case.honest, case.corrupted, found.attempts)
    whole = len(found.trace)
    more = {
        "participation": 0.8 if name.startswith("cohort") else 1.0,
        "forged": b"" if case.rules.confirm else bytes(64),
    }
    installed = RealWorld(world=played_case, folder=tmp_path / "installed", **more)
    assert played(installed, found.trace, confirm=case.rules.confirm) < whole
    assert not independent(sums(installed))
    journal, take_out = ATTACKS[name]
    take_out(monkeypatch)
    broken = RealWorld(world=played_case, folder=tmp_path / "broken", journal=journal, **more)
    assert played(broken, found.trace, confirm=case.rules.confirm) == whole, str(found)
    assert independent(sums(broken))
