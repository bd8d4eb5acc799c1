"""A report composes seeds, configurations and joined runs that train on the same records, in every form."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import yaml

from fedproxy_secure.config import parse_config
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian, to_fields
from fedproxy_secure.dp.guarantees import rounded_up
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.run_report import report_of
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.engines import with_ledger
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.report.composition import (
    Training,
    merged,
    to_json,
)
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.measured import configuration_of, read_seed, read_seeds
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import guarantees_of, total, unfinished_training
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.pull_request import pull_request_summary
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.support.finished_run import write_run
from tests.support.page_walk import faults, parse

DELTA = 1e-5
WHOLE = SampledGaussian(noise_multiplier=3.0, sampling_rate=1.0, steps=2)  # no sampling: known exactly
PRIVATE = {"privacy": {"unit": "record", "target_epsilon": 8, "target_delta": DELTA}}


def private_run(folder: Path, *, seeds=(0, 1, 2), events=(WHOLE,)) -> Path:
    """A run whose two clients spent these events in every seed."""
    write_run(folder, seeds=seeds)
    for seed in seeds:
        file = folder / f"seed-{seed}" / "result.json"
        result = json.loads(file.read_text())
        cost = asdict(spent(merged(events), delta=DELTA))
        result["spent"] = {"clinic": cost, "bank": cost}
        result["events"] = to_json({"clinic": events, "bank": events})
        RunFolder(path=folder).write_json(f"seed-{seed}/result.json", result)
    return folder


def configuration(folder: Path, seeds=(0, 1, 2), name="c", besides=(), **settings):
    config = parse_config({**PRIVATE, **settings})
    read = [read_seed(folder, s, root=folder) for s in seeds]
    return configuration_of(read, config, name=name, settings={}, besides=besides)


def test_the_measure_that_counts_is_composed_and_the_others_say_what_they_are(tmp_path):
    found = configuration(private_run(tmp_path))
    alone = spent([WHOLE], delta=DELTA).epsilon
    together = spent([replace(WHOLE, steps=6)], delta=DELTA).epsilon
    values = {m.key: m.estimate for m in found.measures if m.axis == "privacy"}
    assert values["epsilon_spent"].value == pytest.approx(together)
    assert values["epsilon_spent_one_seed"].value == pytest.approx(alone)
    assert values["epsilon_claimed"].value == 8
    assert values["delta"].value == DELTA
    assert "3 trainings together" in values["epsilon_spent"].metric
    assert "composed by the PRV accountant" in values["epsilon_spent"].how
    assert all("one seed alone" in values[k].metric for k in ("epsilon_claimed", "epsilon_spent_one_seed"))
    assert found.spends == {name: (replace(WHOLE, steps=6),) for name in ("clinic", "bank")}


def test_a_result_whose_events_are_none_is_one_line(tmp_path):
    folder = private_run(tmp_path)
    file = folder / "seed-0" / "result.json"
    for events in ({"clinic": [{"kind": "free"}], "bank": []}, {"clinic": 3, "bank": []}, [1]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "events": events}))
        with pytest.raises(RunFolderError, match=r"seed-0/result\.json: ") as raised:
            configuration(folder)
        assert "\n" not in str(raised.value)


def test_a_seed_that_did_not_finish_has_spent_what_is_in_its_ledgers(tmp_path):
    config = parse_config(PRIVATE)
    header = {
        "schema_version": 1,
        "client": "clinic",
        "run": "r",
        "unit": "record",
        "delta": DELTA,
        "max_epsilon": 8.0,
    }
    place = RunFolder(path=tmp_path / "seed-3" / "federation" / "privacy")
    place.append_jsonl("clinic.ledger.jsonl", header)
    assert unfinished_training(tmp_path, 3, config) == []
    place.append_jsonl("clinic.ledger.jsonl", {"round": 0, "inputs": "00", "event": to_fields(WHOLE)})
    (lost,) = unfinished_training(tmp_path, 3, config)
    assert lost.events == {"clinic": (WHOLE,)}
    found = configuration(private_run(tmp_path / "run"), besides=[lost])
    four = spent([replace(WHOLE, steps=8)], delta=DELTA).epsilon
    assert found.measure("epsilon_spent").estimate.value == pytest.approx(four)
    assert found.measure("epsilon_spent").estimate.seeds == (0, 1, 2)


@pytest.mark.parametrize("text", ["{}\n", "not JSON\n", "", "[" * 200_000 + "\n"])
def test_a_ledger_that_cannot_be_read_makes_the_cost_unknown_not_free(tmp_path, text):
    RunFolder(path=tmp_path).write_text("seed-3/federation/privacy/clinic.ledger.jsonl", text)
    lost = unfinished_training(tmp_path, 3, parse_config(PRIVATE))
    assert lost == [Training(delta=DELTA)]
    found = configuration(private_run(tmp_path / "run"), besides=lost)
    assert found.measure("epsilon_spent") is None
    assert judged(report(found), "max_epsilon: 8") == {
        Verdict.PASSED,
        Verdict.MISSING,
    }  # the claim alone passes


def report(*configurations, same_records=True):
    together = total(configurations, same_records=same_records)
    return Report(
        name="r",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0, 1, 2),
        configurations=configurations,
        total_epsilon=together.epsilon,
        composition=together.says,
    )


def rows_of(made, *rules):
    text = "schema_version: 1\nrules:\n" + "".join(f"- {rule}\n" for rule in rules)
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return judge(made, load_policy(Path(file.name))).rows


def judged(made, *rules):
    return {row.verdict for row in rows_of(made, *rules)}


def test_all_configurations_together_cost_what_all_their_events_cost(tmp_path):
    one, two = (configuration(private_run(tmp_path / n), name=n) for n in ("one", "two"))
    made = report(one, two)
    six = spent([replace(WHOLE, steps=12)], delta=DELTA).epsilon
    assert made.total_epsilon.value == pytest.approx(six)
    assert f"All configurations together: ({rounded_up(six)}, {DELTA:g})-DP" in made.composition[1]
    alone = one.measure("epsilon_spent").estimate.value
    assert one.measure("epsilon_spent").estimate.value == alone < six
    bound = (alone + six) / 2
    assert judged(made, "max_epsilon: 8", "max_total_epsilon: 100") == {Verdict.PASSED}
    assert judged(made, f"max_total_epsilon: {bound}") == {Verdict.FAILED}


def test_a_configuration_without_differential_privacy_leaves_no_finite_total(tmp_path):
    private = configuration(private_run(tmp_path / "one"), name="one")
    bare = replace(private, name="bare", privacy_unit="none", measures=(), spends={})
    made = report(private, bare)
    assert made.total_epsilon is None
    assert "no finite epsilon, because bare trains on the same records" in made.composition[-1]
    assert judged(made, "max_total_epsilon: 1000") == {Verdict.FAILED}
    assert report(bare).composition == ()


def beside_a_finished_one(place: Path, died_in: Path, **settings):
    """A report of a private configuration, and of one whose only seed died in the folder `died_in`."""
    config = parse_config({**PRIVATE, **settings})
    died = configuration_of(
        [], config, name="died", settings={}, besides=unfinished_training(died_in, 0, config)
    )
    return report(configuration(private_run(place / "whole"), name="whole"), died)


def test_a_training_without_privacy_leaves_no_finite_total_even_if_it_died(tmp_path):
    RunFolder(path=tmp_path).write_text("died/seed-0/federation/rounds.jsonl", "{}\n")
    made = beside_a_finished_one(tmp_path, tmp_path / "died", privacy={"unit": "none"})
    assert made.total_epsilon is None
    assert "no finite epsilon, because died trains on the same records" in made.composition[-1]
    assert judged(made, "max_total_epsilon: 1000") == {Verdict.FAILED}
    made.write(tmp_path)
    assert judged(Report.load(tmp_path), "max_total_epsilon: 1000") == {Verdict.FAILED}


@pytest.mark.parametrize("ledger", ["not JSON\n", None])
def test_a_private_training_that_died_without_a_readable_ledger_leaves_no_known_total(tmp_path, ledger):
    RunFolder(path=tmp_path).write_text("died/seed-0/federation/job.json", "{}")  # as of a deployment
    if ledger is not None:
        RunFolder(path=tmp_path).write_text("died/seed-0/federation/privacy/c0.ledger.jsonl", ledger)
    made = beside_a_finished_one(tmp_path, tmp_path / "died")
    assert made.total_epsilon is None
    assert "not known, because died does not say what it spent" in " ".join(made.composition)
    assert judged(made, "max_total_epsilon: 1000") == {Verdict.MISSING}


@pytest.mark.parametrize("unit", ["none", "record"])
def test_a_configuration_that_did_not_begin_to_train_costs_nothing_and_is_named(tmp_path, unit):
    privacy = {**PRIVATE["privacy"], "unit": unit} if unit != "none" else {"unit": unit}
    made = beside_a_finished_one(tmp_path, tmp_path / "died", privacy=privacy)
    assert made.total_epsilon.value == pytest.approx(spent([replace(WHOLE, steps=6)], delta=DELTA).epsilon)
    assert "Not counted, because they did not begin to train: died." in made.composition
    rows = rows_of(made, "max_total_epsilon: 1000")
    assert [row.verdict for row in rows] == [Verdict.PASSED]
    assert rows[0].why.startswith("1 of 2 configurations began to train; together: within the bound")


@pytest.mark.parametrize("unit", ["none", "record"])
def test_a_seed_whose_folder_of_rounds_is_empty_did_not_begin_to_train(tmp_path, unit):
    (tmp_path / "seed-0/federation").mkdir(parents=True)
    privacy = {**PRIVATE["privacy"], "unit": unit} if unit != "none" else {"unit": unit}
    assert unfinished_training(tmp_path, 0, parse_config({**PRIVATE, "privacy": privacy})) == []


def test_a_seed_on_one_machine_that_was_stopped_before_its_clients_exist_costs_nothing(tmp_path):
    config, rounds = parse_config(PRIVATE), tmp_path / "seed-3/federation"
    with with_ledger(FederationJob.from_config(config, seed=3), rounds) as ready:
        assert ready.privacy.ledger == str(rounds.resolve() / "privacy")
    RunFolder(path=rounds).write_text("job.json", "{}")  # as of Flower's own processes
    besides = unfinished_training(tmp_path, 3, config)
    assert besides == []
    assert (
        configuration(private_run(tmp_path / "run"), besides=besides).measure("epsilon_spent") is not None
    )


def test_a_total_that_is_not_known_does_not_pass(tmp_path):
    private = configuration(private_run(tmp_path / "one"), name="one")
    untold_ = replace(
        private,
        name="two",
        spends={},
        measures=tuple(m for m in private.measures if m.key != "epsilon_spent"),
    )
    made = report(private, untold_)
    assert made.total_epsilon is None
    assert "not known, because two does not say what it spent" in " ".join(made.composition)
    assert judged(made, "max_total_epsilon: 1000") == {Verdict.MISSING}
    unlisted = report(private, replace(private, name="two", spends={}))
    assert unlisted.total_epsilon is None
    assert "two does not say what it spent" in " ".join(unlisted.composition)
    units = report(private, replace(private, name="two", privacy_unit="client"))
    assert "their units differ" in " ".join(units.composition)
    assert judged(units, "max_total_epsilon: 1000") == {Verdict.MISSING}


def test_where_the_records_may_differ_epsilons_are_added_up_at_the_same_delta(tmp_path):
    one, two = (configuration(private_run(tmp_path / n), name=n) for n in ("one", "two"))
    known, unknown = report(one, two), report(one, two, same_records=False)
    half = spent([replace(WHOLE, steps=6)], delta=DELTA / 2).epsilon
    assert unknown.total_epsilon.value == pytest.approx(2 * half)
    assert unknown.total_epsilon.value > known.total_epsilon.value
    assert f"at delta {DELTA:g}" in unknown.total_epsilon.how
    assert "It is not known whether they train on the same records; this assumes" in unknown.composition[1]


def test_every_form_of_a_report_says_what_composes_with_what(tmp_path):
    made = report(*(configuration(private_run(tmp_path / n), name=n) for n in ("one", "two")))
    html = page(made)
    text = parse(html).text
    for line in made.composition:
        assert line in text
        assert line in markdown_report(made)
        assert line in pull_request_summary(made)
    assert "ε spent, all seeds" in text
    assert "ε claimed, one seed" in text
    assert "ε of all configurations together" in text
    assert faults(parse(html)) == []
    assert "epsilon spent, all seeds" in markdown_report(made)
    Report.read(made.write(tmp_path))


def test_a_runs_guarantee_and_estimates_are_of_all_its_seeds(tmp_path):
    config = parse_config({**PRIVATE, "seeds": [0, 1, 2]})
    private_run(tmp_path)
    made = report_of(config, tmp_path, read_seeds(tmp_path, (0, 1, 2), root=tmp_path), "c")
    together = spent([replace(WHOLE, steps=6)], delta=DELTA).epsilon
    alone = spent([WHOLE], delta=DELTA).epsilon
    assert f"({rounded_up(together)}, {DELTA:g})-DP" in made.guarantees[0]
    assert (
        f"Seeds compose: the 3 trainings use the same records, so epsilon {rounded_up(together)}"
        in made.guarantees[1]
    )
    told = {e.metric: e.value for e in made.estimates}
    assert told["epsilon spent, client that spent most"] == pytest.approx(together)
    assert told["epsilon spent by one seed alone, client that spent most"] == pytest.approx(alone)
    assert told["epsilon spent, by the RDP accountant, client that spent most"] > together
    assert made.total_epsilon.value == pytest.approx(together)


def test_where_ledgers_lie_with_clients_the_guarantee_is_the_sum_of_the_limits():
    config = parse_config(PRIVATE)
    lines = guarantees_of(config, [Training(delta=DELTA)] * 3)
    assert "(24, 3e-05)-DP" in lines[0]
    assert "the ledgers, which would allow a tighter bound, stay with the clients" in lines[1]
    (first, *_), (only, *_) = (guarantees_of(config, [Training(delta=DELTA)] * n) for n in (1, 1))
    assert "(8, 1e-05)-DP" in first == only


# --- runs that are joined


def run_folder(place: Path, *, seeds, **changes) -> Path:
    config = parse_config({**PRIVATE, "seeds": list(seeds), **changes})
    RunFolder(path=place).write_text("config.yaml", yaml.safe_dump(config.model_dump(mode="json")))
    return private_run(place, seeds=seeds)


def test_joined_seeds_of_one_setting_compose(tmp_path):
    folders = [run_folder(tmp_path / f"r{s}", seeds=(s,)) for s in (0, 1, 2)]
    made = join(folders, tmp_path / "out", command="c")
    (one,) = made.configurations
    together = spent([replace(WHOLE, steps=6)], delta=DELTA).epsilon
    assert one.measure("epsilon_spent").estimate.value == pytest.approx(together)
    assert f"({rounded_up(together)}, {DELTA:g})-DP" in one.guarantees[0]
    assert made.total_epsilon.value == pytest.approx(together)


def test_the_same_seed_run_twice_is_paid_twice_and_the_same_folder_named_twice_once(tmp_path):
    folders = [run_folder(tmp_path / n, seeds=(0,)) for n in ("a", "b")]
    twice = join(folders, tmp_path / "out", command="c").configurations[0]
    assert twice.measure("epsilon_spent").estimate.value == pytest.approx(
        spent([replace(WHOLE, steps=4)], delta=DELTA).epsilon
    )
    once = join([folders[0], folders[0]], tmp_path / "once", command="c").configurations[0]
    assert once.measure("epsilon_spent").estimate.value == pytest.approx(
        spent([WHOLE], delta=DELTA).epsilon
    )


def test_runs_on_other_records_are_counted_as_if_they_were_the_same_and_it_says_so(tmp_path):
    names = ("clinic", "bank", "insurer")
    other = {"data": {"root": "elsewhere", "clients": [{"name": n, "task": n} for n in names]}}
    folders = [
        run_folder(tmp_path / "a", seeds=(0,)),
        run_folder(tmp_path / "b", seeds=(0,), **other),
    ]
    made = join(folders, tmp_path / "out", command="c")
    half = spent([WHOLE], delta=DELTA / 2).epsilon
    assert made.total_epsilon.value == pytest.approx(2 * half)
    assert "this assumes that they do" in " ".join(made.composition)
    alike = [run_folder(tmp_path / f"c{r}", seeds=(0,), compress={"remove_ratio": r}) for r in (0.25, 0.5)]
    known = join(alike, tmp_path / "alike", command="c")
    assert "not known" not in " ".join(known.composition)
    assert known.total_epsilon.value == pytest.approx(spent([replace(WHOLE, steps=4)], delta=DELTA).epsilon)


def test_two_runs_with_one_name_are_two_configurations_and_a_lost_seed_of_either_counts(tmp_path):
    first = run_folder(tmp_path / "first", seeds=(0, 1), compress={"remove_ratio": 0.25})
    second = run_folder(tmp_path / "second", seeds=(0,), compress={"remove_ratio": 0.5})
    (first / "seed-1" / "result.json").unlink()
    made = join([first, second], tmp_path / "out", command="c")
    lame, whole = made.configurations
    assert (lame.name, whole.name) == ("demo (first)", "demo (second)")
    assert lame.failed == ("seed 1: did not finish",)
    assert whole.failed == ()
    assert judged(made, "forbid_unsafe: true") == {Verdict.PASSED, Verdict.MISSING}
    assert judged(Report.load(tmp_path / "out"), "forbid_unsafe: true") == {Verdict.PASSED, Verdict.MISSING}


def test_a_seed_that_one_of_two_runs_finished_is_not_lost(tmp_path):
    folders = [run_folder(tmp_path / n, seeds=(0,)) for n in ("a", "b")]
    (folders[0] / "seed-0" / "result.json").unlink()
    (one,) = join(folders, tmp_path / "out", command="c").configurations
    assert one.failed == ()


def test_folders_of_one_name_are_told_apart_by_number_so_that_no_path_names_a_user(tmp_path):
    folders = [
        run_folder(tmp_path / name / "run", seeds=(0,), compress={"remove_ratio": ratio})
        for name, ratio in (("a", 0.25), ("b", 0.5))
    ]
    names = [c.name for c in join(folders, tmp_path / "out", command="c").configurations]
    assert names == ["demo (run, folder 1)", "demo (run, folder 2)"]


@pytest.mark.parametrize(
    ("of_answers", "of_losses"),
    [({"b": "01"}, {}), ({"c": "0101"}, {}), ({}, {"note": [3, 4]}), ({}, {"letter": [3, 5]})],
)
def test_runs_of_other_test_records_do_not_share_an_interval(tmp_path, of_answers, of_losses):
    folders = [run_folder(tmp_path / f"r{s}", seeds=(s,)) for s in (0, 1)]

    def change(folder, answers, losses):
        (file,) = folder.glob("seed-*/result.json")
        result = json.loads(file.read_text())
        for model in ("zero_shot", "proxy", "tuned", "fused"):
            for key in (model, f"{model}_norm"):
                result[key] |= answers
            result[f"{model}_loss"] = {t: {"nats": [1.0, 2.0], "tokens": n} for t, n in losses.items()}
        file.write_text(json.dumps(result))

    for folder in folders:
        change(folder, {}, {"note": [3, 5]})
    (one,) = (made := join(folders, tmp_path / "alike", command="c")).configurations
    assert one.seeds == (0, 1)
    assert any("whether records and LLM are the same was not checked" in note for note in made.notes)
    change(folders[1], of_answers, {"note": [3, 5], **of_losses})
    with pytest.raises(RunFolderError, match=r"r1, seed 1: has other test records of \w+ than .*seed 0"):
        join(folders, tmp_path / "out", command="c")
