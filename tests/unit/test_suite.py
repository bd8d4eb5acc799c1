"""A suite of attacks: failures stay apart, interrupted suites resume, processes change no result."""

import json
import math
import os
import time
from dataclasses import replace
from multiprocessing import active_children, get_context, parent_process

import pytest

from attacks import registry
from attacks.base import Feeds
from attacks.suite import read_truth, seed_folders
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.evidence.finding import Outcome, read_findings, write_findings
from fedproxy_secure.evidence.kept import read_events
from fedproxy_secure.record.view import view
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.workers import Lost, in_processes
from tests.support.toys import (
    CLIENT,
    SERVER,
    DrawsAtRandom,
    Raises,
    RunsOut,
    Toy,
    suite,
    without_seconds,
)
from threat_models import get as threat_model


def test_attacks_that_fail_stop_none_of_the_others_and_all_are_in_the_results(clean_run):
    attacks = [
        Toy("first"),
        Raises("raises"),
        RunsOut("runs_out"),
        Toy("lacks", needs=(frozenset({"IND"}),)),
        Toy("last"),
    ]
    results = suite(clean_run, *attacks, threat_models=[SERVER, CLIENT])
    row = ["SUCCEEDED", "ERROR", "INCONCLUSIVE", "NOT_APPLICABLE", "SUCCEEDED"]
    assert [str(r.outcome) for r in results] == row * 2
    assert [r.view for r in results] == ["server"] * 5 + ["client"] * 5
    assert read_findings(clean_run) == results


def test_two_suites_are_equal_but_for_their_seconds(clean_run):
    attacks = [registry.get(n) for n in ("lora_span_tokens", "sign_counts")]
    first, second = suite(clean_run, *attacks), suite(clean_run, *attacks)
    assert without_seconds(first) == without_seconds(second)
    assert all(r.headline is not None for r in first)


def test_an_interrupted_suite_leaves_what_it_has_and_goes_on_to_the_same_results(clean_run):
    stops = Raises("stops")
    stops.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        suite(clean_run, Toy("first"), DrawsAtRandom("drawn"), stops, Toy("last"))
    assert [r.attack for r in read_findings(clean_run)] == ["first", "drawn"]

    came = []
    resumed = suite(
        clean_run,
        Toy("first"),
        DrawsAtRandom("drawn"),
        Toy("stops"),
        Toy("last"),
        resume=True,
        on_result=came.append,
    )
    assert [r.attack for r in came] == ["stops", "last"]
    assert read_findings(clean_run) == resumed
    unbroken = suite(clean_run, Toy("first"), DrawsAtRandom("drawn"), Toy("stops"), Toy("last"))
    assert without_seconds(resumed) == without_seconds(unbroken)


def test_a_suite_that_is_begun_anew_and_interrupted_loses_no_result_of_before(clean_run, registered):
    registered(Toy("first"), Toy("second"), Toy("other"))
    suite(clean_run, Toy("first"), Toy("second"), Toy("other"))
    stops = Raises("second")
    stops.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        suite(clean_run, Toy("first"), stops, seed=1)
    assert {r.attack: r.seed for r in read_findings(clean_run)} == {"first": 1, "second": 0, "other": 0}

    came = []
    suite(clean_run, Toy("first"), Toy("second"), seed=1, resume=True, on_result=came.append)
    assert [r.attack for r in came] == ["second"]
    assert {r.attack: r.seed for r in read_findings(clean_run)} == {"first": 1, "second": 1, "other": 0}


def test_after_a_kill_the_results_that_are_in_the_log_alone_are_joined(clean_run, registered):
    registered(Toy("first"), Toy("second"))
    suite(clean_run, Toy("first"))
    (clean_run / "attacks" / "results.json").unlink()  # a kill leaves it unwritten
    suite(clean_run, Toy("second"))
    assert {r.attack for r in read_findings(clean_run)} == {"first", "second"}


def test_results_about_a_seed_that_is_gone_are_dropped_with_one_line(clean_run, caplog):
    (kept, old) = suite(clean_run, Toy("kept"), Toy("old"))  # no attack of this installation is called so
    write_findings(clean_run, [kept, replace(old, attack="lora_span_tokens", seed_folder="seed-7")])
    suite(clean_run, Toy("new"))
    assert {r.attack for r in read_findings(clean_run)} == {"new", "kept", "old"}
    (line,) = caplog.messages
    assert "findings are dropped, as the seed is gone: seed-7" in line
    suite(clean_run, Toy("new"), resume=True)
    assert len(caplog.messages) == 1


def test_lines_of_the_log_that_are_damaged_cost_no_other_its_result(clean_run, registered, caplog):
    registered(Toy("first"), Toy("second"), Toy("third"))
    suite(clean_run, Toy("first"), Toy("second"))
    events = clean_run / "attacks" / "events.jsonl"
    events.write_text(f'[1]\n"x"\n{{\n{{"attack": []}}\n{events.read_text()}')
    came = []
    suite(clean_run, Toy("first"), Toy("second"), resume=True, on_result=came.append)
    assert not came
    assert "events.jsonl: 3 lines are damaged and left out" in caplog.text
    (clean_run / "attacks" / "results.json").write_text("{")
    suite(clean_run, Toy("third"))
    assert "results.json: is damaged" in caplog.text
    assert {r.attack for r in read_findings(clean_run)} == {"first", "second", "third"}


def test_a_line_that_a_crash_left_unfinished_is_made_again(clean_run):
    suite(clean_run, Toy("first"), Toy("second"))
    events = clean_run / "attacks" / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20])
    came = []
    suite(clean_run, Toy("first"), Toy("second"), resume=True, on_result=came.append)
    assert [r.attack for r in came] == ["second"]


def test_errors_and_what_ran_out_of_time_are_tried_again(clean_run):
    suite(clean_run, Raises("raises"), RunsOut("slow"), Toy("fine"))
    came = []
    suite(
        clean_run, Toy("raises"), Toy("slow"), Toy("fine"), resume=True, seconds=60.0, on_result=came.append
    )
    assert [(r.attack, r.outcome) for r in came] == [
        ("raises", Outcome.SUCCEEDED),
        ("slow", Outcome.SUCCEEDED),
    ]


@pytest.mark.parametrize("change", [{"profile": "standard"}, {"seed": 1}, {"resume": False}])
def test_results_of_another_profile_or_seed_are_not_taken_over(clean_run, change):
    suite(clean_run, Toy())
    came = []
    suite(clean_run, Toy(), **({"resume": True, "on_result": came.append} | change))
    assert len(came) == 1


def test_progress_counts_what_is_left_and_names_what_came(clean_run):
    told = []

    class Told:
        def start(self, task, total):
            told.append((task, total))

        def advance(self, task, steps=1, note=""):
            told.append(note)

        def done(self, task):
            told.append(task)

    suite(clean_run, Toy("first"))
    suite(clean_run, Toy("first"), Toy("second"), Raises("third"), resume=True, progress=Told())
    whole = [t for t in told if "server" not in str(t)]
    assert whole == [("smoke suite", 2), "second: SUCCEEDED", "third: ERROR", "smoke suite"]
    each = [t for t in told if "server" in str(t)]
    assert each == [("second, server", 60), "second, server", ("third, server", 60), "third, server"]


def test_a_run_that_was_not_recorded_is_refused(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(RunFolderError, match=r"no seed was recorded, or .*; run with --record"):
        seed_folders(tmp_path)


def test_views_that_cannot_be_had_are_refused_before_anything_runs(clean_run):
    many = replace(threat_model("colluding_clients"), clients=9)
    attack = Toy()
    with pytest.raises(RunFolderError, match="corrupts 9 clients; this run has 4"):
        suite(clean_run, attack, threat_models=[SERVER, many])
    assert attack.guesses == 0


def test_corrupted_clients_are_not_part_of_the_truth(clean_run):
    (seed,) = seed_folders(clean_run)
    assert list(read_truth(seed).clients) == ["c0", "c1", "c2", "c3"]
    assert list(read_truth(seed, honest_besides=2).clients) == ["c2", "c3"]


def test_a_seed_folder_names_each_result(clean_run):
    assert {r.seed_folder for r in suite(clean_run, Toy())} == {"seed-0"}


def test_results_are_plain_json_with_a_schema_version(clean_run):
    suite(clean_run, Toy())
    raw = json.loads((clean_run / "attacks" / "results.json").read_text())
    assert raw["schema_version"] == 4
    assert raw["results"][0]["outcome"] == "SUCCEEDED"


# processes of their own


def test_a_task_that_dies_or_hangs_takes_no_other_with_it(monkeypatch):
    monkeypatch.setattr("fedproxy_secure.runtime.workers.GRACE_S", 0.3)
    assert dict(in_processes(math.sqrt, [4.0, 9.0, 16.0], jobs=2, seconds=60)) == {0: 2, 1: 3, 2: 4}
    assert dict(in_processes(os._exit, [3], jobs=1, seconds=60)) == {0: Lost(timed_out=False, code=3)}
    (index, lost), *none = in_processes(time.sleep, [60], jobs=1, seconds=0)
    assert (index, none) == (0, [])
    assert lost.timed_out


def test_processes_left_behind_are_ended():
    results = in_processes(time.sleep, [0, 50, 50], jobs=3, seconds=60)
    assert next(results) == (0, None)
    results.close()
    assert active_children() == []


@pytest.mark.slow
def test_a_suite_in_processes_has_the_same_results_as_in_one(clean_run):
    warm_up(["attacks.preload"])
    attacks = [registry.get(n) for n in ("lora_span_tokens", "dp_audit", "sign_counts")]
    apart = suite(clean_run, *attacks, jobs=2)
    together = suite(clean_run, *attacks)
    assert without_seconds(apart) == without_seconds(together)


class Names(Toy):
    """An attack whose estimates name the process that made them."""

    def score(self, guess, answer):
        return (replace(*super().score(guess, answer), how=str(os.getpid())),)


class DiesApart(Names):
    """Ends its process, unless that is the first one."""

    def guess(self, view, question, budget, rng):
        if parent_process() is not None:
            os._exit(9)
        return super().guess(view, question, budget, rng)


@pytest.fixture
def registered(monkeypatch):
    """Return a function that registers attacks, which forked processes then know too.

    The fork server, which attacks run in otherwise, is that of
    `test_a_suite_in_processes_has_the_same_results_as_in_one`.
    """
    monkeypatch.setattr("fedproxy_secure.runtime.workers.get_context", lambda _: get_context("fork"))

    def register(*attacks):
        for one in attacks:
            alike = type(
                "Alike", (type(one),), {"info": one.info, "guesses": 0, "__init__": lambda _: None}
            )
            monkeypatch.setitem(registry._REGISTERED, one.info.name, alike)
        return attacks

    registry.every()
    return register


def processes(findings):
    """The process of each attack and view."""
    return {(f.attack, f.view): f.estimates[0].how for f in findings if f.estimates}


def test_attacks_that_share_something_run_in_one_process_others_in_their_own(clean_run, registered):
    attacks = registered(Names("one", shares="it"), Names("two", shares="it"), Names("other"))
    found = processes(suite(clean_run, *attacks, threat_models=[SERVER, CLIENT], jobs=2))
    assert len(found) == 6
    together = {process for (attack, _), process in found.items() if attack != "other"}
    assert len(together) == 1
    assert len(set(found.values())) == 3


def test_a_suite_goes_over_to_processes_once_it_may_run_more_at_once(clean_run, registered):
    attacks = registered(Names("one", long=2), Names("two", long=1), Names("three"))
    answers = iter([1, 2])
    found = processes(suite(clean_run, *attacks, jobs=lambda: next(answers)))
    own = str(os.getpid())
    assert [found[name, "server"] == own for name in ("one", "two", "three")] == [True, False, False]


def test_what_shares_a_process_with_an_attack_that_ends_it_runs_again_by_itself(clean_run, registered):
    attacks = registered(Names("one", shares="it"), DiesApart("dies", shares="it"))
    found = suite(clean_run, *attacks, jobs=2)
    assert {f.attack: f.outcome for f in found} == {"one": Outcome.SUCCEEDED, "dies": Outcome.ERROR}


class TellsApart(Names):
    """Raises in a process of its own what no part of a trial foresees."""

    def __new__(cls, *_, **__):
        if parent_process() is not None:
            raise OSError("no licence here")
        return super().__new__(cls)


def test_why_an_attack_was_lost_in_its_process_is_its_reason(clean_run, registered):
    found = suite(clean_run, *registered(TellsApart("lost")), jobs=2)
    reason = f"ConfigError: attack 'lost' of {__name__}: cannot be made without arguments: no licence here"
    assert [(f.outcome, f.reason) for f in found] == [(Outcome.ERROR, reason)]


def test_a_measure_that_nobody_has_registered_is_refused_before_anything_runs(clean_run):
    feeds = Feeds(measure="token_acu", metric="auc")
    attack = Toy(measures=(feeds,))
    with pytest.raises(
        ConfigError, match="attack 'toy': measures=token_acu: is not known; did you mean 't"
    ):
        suite(clean_run, attack)
    assert attack.guesses == 0


@pytest.mark.parametrize("lacking", ["measures", "schema_version"])
def test_what_another_version_wrote_is_made_again(clean_run, lacking):
    suite(clean_run, Toy())
    events = clean_run / "attacks" / "events.jsonl"
    old = json.loads(events.read_text())
    del old[lacking]
    events.write_text(json.dumps(old) + "\n")
    came = []
    suite(clean_run, Toy(), resume=True, on_result=came.append)
    assert [r.attack for r in came] == ["toy"]


def test_a_line_of_another_version_is_left_out_with_a_warning(clean_run, caplog):
    suite(clean_run, Toy())
    events = clean_run / "attacks" / "events.jsonl"
    events.write_text(events.read_text().replace('"schema_version": 4', '"schema_version": 3'))
    assert read_events(clean_run) == []
    said = "lines of schema_version=3 are left out: must be 4; run their attacks again"
    assert said in caplog.text


def test_a_finding_that_does_not_say_whether_a_number_was_counted_is_refused_in_one_line(clean_run):
    """A counted number would otherwise be read as sampled, and lose its interval."""
    suite(clean_run, Toy())
    results = clean_run / "attacks" / "results.json"
    raw = json.loads(results.read_text())
    del raw["results"][0]["estimates"][0]["nature"]
    results.write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match="is damaged") as raised:
        read_findings(clean_run)
    assert "\n" not in str(raised.value)


def test_findings_of_another_version_are_refused_with_the_way_to_new_ones(clean_run):
    suite(clean_run, Toy())
    results = clean_run / "attacks" / "results.json"
    text = results.read_text()
    results.write_text(text.replace('"schema_version": 4', '"schema_version": 1'))
    with pytest.raises(RunFolderError, match=r"schema_version=1: must be 4; run `attack run` again$"):
        read_findings(clean_run)
    raw = json.loads(text)
    raw["results"][0]["measures"] = {"token_auc": [1]}
    results.write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match=r"is damaged: toy: measures.token_auc: position 1: must be"):
        read_findings(clean_run)


def test_a_view_of_a_recorded_run_offers_what_its_threat_model_says(recorded_run):
    (seed,) = seed_folders(recorded_run)
    assert view(seed, SERVER).surfaces == {"AGG", "MOD", "MR"}
    assert view(seed, CLIENT).surfaces == {"ACT", "AGG", "API", "MOD", "MR"}
    assert view(seed, threat_model("api_user")).surfaces == {"API"}
