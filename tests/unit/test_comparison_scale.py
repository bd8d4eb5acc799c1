"""What a comparison's tasks can show, what counts of a gap closed, and how like the LLM its proxies are."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedproxy_secure.compress import fidelity as fidelity_module
from fedproxy_secure.config import parse_config
from fedproxy_secure.data.records import Record, Task
from fedproxy_secure.data.tasks import load_tasks
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.sweeps import prepared_proxies
from fedproxy_secure.experiments.sweeps.method_cells import Cell, read_cell
from fedproxy_secure.experiments.sweeps.method_differences import differences_of
from fedproxy_secure.experiments.sweeps.method_notes import proxy_notes, unresolved_gaps
from fedproxy_secure.experiments.sweeps.method_rows import proxy_rows, rows_of
from fedproxy_secure.experiments.sweeps.method_tasks import (
    constant_answers,
    read_constant,
    scale_notes,
    task_scales,
    write_constant,
)
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy, records_of
from fedproxy_secure.report.tables.table import numbers_of
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.table import cell
from fedproxy_secure.runtime.untrusted import read_json
from tests.support.finished_cells import (
    RECORDS,
    always,
    finished,
    on_tasks,
    origin,
    text_alone,
    with_text,
)
from tests.support.sample_report import sample_comparison

ONE_OF_THREE_COUNTS = (
    on_tasks("zero_shot", None, moves=0.1, rarer=0.1, never=0.3),
    on_tasks("centralised_llm", None, moves=0.9, rarer=0.6, never=0.35),
    on_tasks("fedproxy_h_ties", 0.5, moves=0.5, rarer=0.6, never=0.3),
)
CONSTANT = always(moves=0.5, rarer=0.6, never=0.3)


def test_a_task_counts_where_the_ceiling_is_above_zero_shot_and_above_a_constant_answer():
    scales = {s.task: s for s in task_scales(ONE_OF_THREE_COUNTS, CONSTANT)}
    assert [s.task for s in scales.values() if s.counts] == ["moves"]
    assert scales["rarer"].above_zero_shot.low > 0, "it learned which answer is frequent"
    assert scales["rarer"].above_constant.low < 0 < scales["rarer"].above_constant.high
    assert scales["never"].above_zero_shot.low < 0
    assert scales["moves"].constant.value == pytest.approx(0.5)
    assert scales["moves"].above_constant.value == pytest.approx(0.4)
    assert scales["moves"].zero_shot.n == RECORDS


def test_the_gap_closed_over_tasks_that_count_leaves_the_others_out():
    rows = {r.method: r for r in rows_of(ONE_OF_THREE_COUNTS, counting=["moves"])}
    row = rows["fedproxy_h_ties"]
    assert row.gap_closed_counting.value == pytest.approx(0.5)
    assert row.gap_closed_counting.n == RECORDS
    assert row.gap_closed_counting.low < 0.5 < row.gap_closed_counting.high
    assert row.gap_closed.value == pytest.approx((1.4 - 0.5) / (1.85 - 0.5))
    assert rows["centralised_llm"].gap_closed_counting.value == 1
    assert rows_of(ONE_OF_THREE_COUNTS)[-1].gap_closed_counting is None, "no task is known to count"


def test_differences_of_methods_are_paired_by_task_too():
    differences = differences_of(ONE_OF_THREE_COUNTS, ["centralised_llm"])
    (pair,) = (d for d in differences if d.method == "fedproxy_h_ties")
    values = {task: e.value for task, e in pair.tasks.items()}
    assert values == pytest.approx({"moves": -0.4, "rarer": 0.0, "never": -0.05})
    assert {e.n for e in pair.tasks.values()} == {RECORDS}
    assert pair.average.value == pytest.approx(np.mean(list(values.values())))


def test_the_constant_answer_is_the_one_that_training_records_have_most_often():
    def records(*labels):
        return tuple(Record(prompt="q", choices=(" a", " b"), label=label) for label in labels)

    task = Task(name="bank", train=records(1, 0, 1), test=records(1, 0, 0, 1))
    assert constant_answers([task]) == {"bank": (True, False, False, True)}


def test_constant_answers_are_written_for_a_report_that_has_no_records(tmp_path):
    config = parse_config({})
    write_constant(config, tmp_path, load_tasks(config.data))
    raw = json.loads((tmp_path / "constant_answers.json").read_text())
    assert list(raw["right"]) == sorted(c.name for c in config.data.clients)
    task = next(iter(raw["right"]))
    count = len(raw["right"][task])
    made = finished("zero_shot", None, 0, 0.5, made=origin(records=raw["records"]), records=count)
    made = replace(made, outcome=replace(made.outcome, fused={task: made.outcome.fused["bank"]}))
    assert set(read_constant(tmp_path, [made])) == set(raw["right"])
    assert read_constant(tmp_path, [replace(made, origin=origin())]) is None, "of other records"
    short = replace(made, outcome=finished("zero_shot", None, 0, 0.5, records=3).outcome)
    short = replace(short, outcome=replace(short.outcome, fused={task: short.outcome.fused["bank"]}))
    with pytest.raises(RunFolderError, match=r"is damaged: .* records, cells have 3; delete it and resume"):
        read_constant(tmp_path, [short])


def test_a_report_says_why_it_does_not_know_which_tasks_count(tmp_path):
    ends, config = ONE_OF_THREE_COUNTS[:2], parse_config({})
    assert read_constant(tmp_path, ends) is None
    (line,) = scale_notes(config, ends, None)
    assert line.endswith("has no constant_answers.json of these records; `compare --resume` writes it.")
    assert scale_notes(config, ends, CONSTANT) == []
    assert scale_notes(config, ends[:1], None) == [], "without a ceiling nobody expects it"


def test_under_differential_privacy_no_constant_answer_is_written(tmp_path):
    private = parse_config({"privacy": {"unit": "record"}})
    write_constant(private, tmp_path, load_tasks(private.data))
    assert list(tmp_path.iterdir()) == []
    (line,) = scale_notes(private, ONE_OF_THREE_COUNTS, None)
    assert line.endswith("The most frequent answer of training records is private.")


# --- proxies


def record(*, kl, **more):
    numbers = {"agreement": 0.5, "llm_perplexity": 20.0, "proxy_perplexity": 30.0, "tokens": 128}
    return {"fidelity": {**numbers, "kl_nats": kl, "cka": [0.9, 0.7]}, "verbatim_share": 0.5, **more}


HEALING = {"kl_before": 2.0, "kl_after": 0.5, "tokens": 1000, "seconds": 60.0}


def test_a_proxys_record_is_in_the_report_with_the_seeds_it_rests_on(tmp_path):
    config = parse_config({"seeds": [0, 1, 2]})
    for seed, kl in ((0, 0.4), (1, 0.6)):
        proxy = PreparedProxy(remove_ratio=0.25, seed=seed, config=config)
        details = record(kl=kl, before_healing=record(kl=2.5), healing=HEALING)
        proxy.write_record(tmp_path, details, origin())
    results = [finished("fedproxy_h_ties", 0.25, seed, 0.5) for seed in range(3)]
    records = records_of(config, tmp_path, (0.25, 0.5), origin())
    (row,) = proxy_rows(results, records)
    assert row.remove_ratio == 0.25
    assert row.fidelity.kl.value == pytest.approx(0.5)
    assert row.fidelity.kl.seeds == (0, 1)
    assert row.fidelity.kl.low < 0.4
    assert row.fidelity.cka.value == pytest.approx(0.8)
    assert row.before_healing.kl.value == 2.5
    healed, unknown = proxy_notes(results, records)
    assert "KL of the LLM and the proxy 2.00 before, 0.50 nats per token after (seeds 0, 1)" in healed
    assert "at 0.25 (seed 2)" in unknown


def test_a_proxy_that_was_not_healed_has_no_before(tmp_path):
    config = parse_config({})
    PreparedProxy(remove_ratio=0.5, seed=0, config=config).write_record(tmp_path, record(kl=1.0), origin())
    results = [finished("fedproxy_h_ties", 0.5, 0, 0.5)]
    records = records_of(config, tmp_path, (0.5,), origin())
    (row,) = proxy_rows(results, records)
    assert (row.fidelity.kl.value, row.before_healing) == (1.0, None)
    assert proxy_notes(results, records) == []


def test_copied_cells_without_a_proxys_record_are_reported_without_it_and_a_note_says_so(tmp_path):
    config = parse_config({"seeds": [0, 1]})
    results = [finished(m, 0.25, s, 0.5) for m in ("fedproxy_h_ties", "fedot") for s in (0, 1)]
    records = records_of(config, tmp_path, (0.25,), origin())
    assert proxy_rows(results, records) == []
    (line,) = proxy_notes(results, records)
    assert line.startswith("Not told: how like the LLM the proxy is at 0.25 (seeds 0, 1).")
    assert proxy_notes([r for r in results if r.cell.method == "fedot"], records) == []


def test_a_record_of_another_llm_is_left_out(tmp_path):
    config = parse_config({})
    proxy = PreparedProxy(remove_ratio=0.25, seed=0, config=config)
    results = [finished("fedproxy_h_ties", 0.25, 0, 0.5)]
    proxy.write_record(tmp_path, record(kl=1.0), origin(llm="00" * 32))
    records = records_of(config, tmp_path, (0.25,), origin())
    assert records == {0.25: {}}
    assert proxy_rows(results, records) == []
    (unknown,) = proxy_notes(results, records)
    assert unknown.startswith("Not told")


def test_a_record_that_was_measured_in_another_way_is_left_out_and_measured_again(tmp_path, monkeypatch):
    config, values = parse_config({}), iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(fidelity_module, "fidelity_record", lambda *_: record(kl=next(values)))
    proxy = PreparedProxy(remove_ratio=0.25, seed=0, config=config)
    materials, built = SimpleNamespace(llm=None, fidelity_windows=None), SimpleNamespace(details={})

    def known():
        return {
            s: r["fidelity"]["kl_nats"]
            for s, r in records_of(config, tmp_path, (0.25,), origin())[0.25].items()
        }

    with monkeypatch.context() as earlier:
        earlier.setattr(prepared_proxies, "VERSION", prepared_proxies.VERSION - 1)
        for _ in range(2):
            proxy.measure(tmp_path, origin(), materials, built)
        assert known() == {0: 1.0}
    assert known() == {}
    results = [finished("fedproxy_h_ties", 0.25, 0, 0.5)]
    (line,) = proxy_notes(results, records_of(config, tmp_path, (0.25,), origin()))
    assert line.startswith("Not told: how like the LLM the proxy is at 0.25 (seed 0).")
    proxy.measure(tmp_path, origin(), materials, built)
    assert known() == {0: 2.0}
    path = proxy.folder(tmp_path) / "proxy.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "version"}))
    assert known() == {}, "a record without a version is an earlier one"


@pytest.mark.parametrize(
    "raw",
    [
        {"remove_ratio": 0.5, "seed": 0},
        {"remove_ratio": 0.25, "seed": 0},
        {"remove_ratio": 0.25, "seed": 0, **record(kl=1.0), "healing": {}},
        {"remove_ratio": 0.25, "seed": 0, "fidelity": {"kl_nats": 1.0}},
        [],
    ],
    ids=["of another proxy", "empty", "healing", "fidelity", "no mapping"],
)
def test_a_damaged_record_of_a_proxy_is_one_line(tmp_path, raw):
    config = parse_config({})
    proxy = PreparedProxy(remove_ratio=0.25, seed=0, config=config)
    proxy.folder(tmp_path).mkdir(parents=True)
    (proxy.folder(tmp_path) / "proxy.json").write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match=r"proxy\.json: is damaged: .*; delete it$") as raised:
        records_of(config, tmp_path, (0.25,), origin())
    assert "\n" not in str(raised.value)


def test_an_untuned_proxys_accuracy_is_paired_with_the_llms():
    results = [finished("zero_shot", None, s, 0.5) for s in (0, 1)]
    results += [finished("zero_shot_proxy", 0.25, s, 0.4) for s in (0, 1, 2)]
    (row,) = proxy_rows(results, {})
    assert row.fidelity is None
    assert row.above_llm.value == pytest.approx(-0.1)
    assert row.above_llm.seeds == (0, 1)


# --- beside free text

NATS = {"zero_shot": 3.0, "centralised_llm": 1.0, "fedproxy_h_ties": 1.5, "zero_shot_proxy": 4.0}


def mixed_cells():
    """Cells of a task that counts, one that does not, and two tasks of free text."""
    coded = (
        on_tasks("zero_shot", None, moves=0.1, never=0.3),
        on_tasks("centralised_llm", None, moves=0.9, never=0.35),
        on_tasks("zero_shot_proxy", 0.5, moves=0.05, never=0.25),
        on_tasks("fedproxy_h_ties", 0.5, moves=0.5, never=0.3),
    )
    tuned = (replace(c, outcome=replace(c.outcome, tuned=c.outcome.fused)) for c in coded)
    with_proxies = (c if c.cell.remove_ratio else coded[i] for i, c in enumerate(tuned))
    return [with_text(c, notes=NATS[c.cell.method], chats=NATS[c.cell.method]) for c in with_proxies]


def test_coded_tasks_and_free_text_are_joined_side_by_side():
    cells, constant = mixed_cells(), always(moves=0.5, never=0.3)
    scales = task_scales(cells, constant)
    assert [(s.task, s.counts) for s in scales] == [("moves", True), ("never", False)]
    rows = {r.method: r for r in rows_of(cells, counting=["moves"])}
    row = rows["fedproxy_h_ties"]
    assert list(row.tasks) == list(row.tasks_norm) == ["moves", "never"]
    assert row.gap_closed_counting.value == pytest.approx(0.5)
    assert row.gap_closed_norm is not None
    assert row.tuned_proxy_norm.n == row.owners_edge_norm.n == 2 * RECORDS
    assert list(row.tasks_loss) == ["notes", "chats"]
    assert row.loss.value == row.tuned_proxy_loss.value == pytest.approx(1.5)
    assert row.loss_gap_closed.value == pytest.approx(0.75)
    (pair,) = (d for d in differences_of(cells, ["zero_shot"]) if d.method == "fedproxy_h_ties")
    assert {task: e.value for task, e in pair.tasks.items()} == pytest.approx({"moves": 0.4, "never": 0.0})
    losses = {task: e.value for task, e in pair.tasks_loss.items()}
    assert losses == pytest.approx({"notes": -1.5, "chats": -1.5})
    assert pair.loss.value == pytest.approx(-1.5)
    assert pair.loss.high < 0, "what makes records hard cancels out"
    assert pair.average_norm is not None
    (proxy,) = proxy_rows(cells, {})
    assert proxy.above_llm.value == pytest.approx(-0.05)
    assert proxy.above_llm.n == 2 * RECORDS


def test_no_gap_closed_by_loss_is_told_where_centralised_tuning_loses_hardly_less():
    nats = {"zero_shot": (3.0, 3.1), "centralised_llm": (2.9, 3.15), "fedproxy_h_ties": (2.0, 2.0)}
    cells = [
        text_alone(finished(method, 0.5 if "proxy" in method else None, seed, 0.5), notes=value)
        for method, values in nats.items()
        for seed, value in enumerate(values)
    ]
    for some, seeds in ((cells, "several"), ([c for c in cells if c.cell.seed == 1], "one")):
        rows = rows_of(some)
        assert [row.loss_gap_closed for row in rows] == [None] * 3, seeds
        assert all(row.loss is not None for row in rows)
        (line,) = unresolved_gaps(some)
        assert line.startswith(
            "loss_gap_closed of zero_shot, centralised_llm, fedproxy_h_ties at 0.5: the LLM"
        )
    diverged = [
        text_alone(c, notes=float("inf")) if c.cell.method == "fedproxy_h_ties" else c for c in cells
    ]
    (line,) = unresolved_gaps(diverged)
    assert "h_ties" not in line, "another note says that it diverged"


def test_a_comparison_names_the_rows_whose_gap_on_tasks_that_count_is_not_resolved():
    def of_seed(seed, method, ratio, **shares):
        made = on_tasks(method, ratio, **shares)
        return replace(made, cell=replace(made.cell, seed=seed))

    cells = [
        of_seed(0, "zero_shot", None, moves=0.1, other=0.1),
        of_seed(0, "centralised_llm", None, moves=0.9, other=0.9),
        of_seed(1, "zero_shot", None, moves=0.5, other=0.1),
        of_seed(1, "centralised_llm", None, moves=0.4, other=0.9),
        of_seed(1, "fedproxy_h_ties", 0.5, moves=0.45, other=0.5),
    ]
    row = rows_of(cells, counting=["moves"])[-1]
    assert row.gap_closed is not None
    assert row.gap_closed_counting is None
    lines = [line for line in unresolved_gaps(cells, ["moves"]) if "h_ties" in line]
    assert [line.partition(":")[0].partition(" of ")[0] for line in lines] == ["gap_closed_counting"]
    assert not any("counting" in line for line in unresolved_gaps(cells, []))


def test_without_a_coded_task_nothing_is_told_of_accuracies():
    config, cells = parse_config({}), []
    for method, nats in NATS.items():
        made = finished(method, 0.5 if "proxy" in method else None, 0, 0.5)
        cells.append(text_alone(made, notes=nats))
    assert task_scales(cells, {}) == task_scales(cells, None) == []
    assert scale_notes(config, cells, None) == [], "of free text alone nobody expects it"
    assert proxy_rows(cells, {}) == []
    assert proxy_rows(cells, {0.5: {0: record(kl=1.0)}})[0].above_llm is None
    row = next(r for r in rows_of(cells, counting=["notes"]) if r.method == "fedproxy_h_ties")
    lacking = ("average", "average_norm", "gap_closed", "gap_closed_norm", "gap_closed_counting")
    assert all(getattr(row, key) is None for key in (*lacking, "owners_edge", "owners_edge_norm"))
    assert row.loss_gap_closed.value == pytest.approx(0.75)
    (pair,) = (d for d in differences_of(cells, ["zero_shot"]) if d.method == "fedproxy_h_ties")
    assert (pair.average, pair.average_norm, pair.tasks) == (None, None, {})
    assert list(pair.tasks_loss) == ["notes"]
    shown = replace(
        sample_comparison(),
        seeds=(0,),
        rows=tuple(rows_of(cells)),
        differences=tuple(differences_of(cells, ["zero_shot"])),
        task_scales=(),
        proxies=(),
    )
    text = markdown_report(shown)
    assert "## Free text, paired differences in loss\n" in text
    assert "| minus zero_shot (nats) |" in text
    assert "points" not in text
    assert "acc_norm" not in text


def test_free_text_has_no_constant_answer(tmp_path):
    raw = {"task": "instruction", "source": "{data}/{split}.jsonl"}
    row = {"prompt": "call", "response": "line"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(8 * (json.dumps(row) + "\n"))
    texts = [{**raw, "name": name} for name in ("notes", "chats", "mails")]
    config = parse_config({"data": {"root": str(tmp_path), "clients": texts}})
    write_constant(config, tmp_path / "text", load_tasks(config.data))
    assert not (tmp_path / "text").exists()
    row = {"text": "q", "choices": ["no", "yes"], "label": 1}
    for split in ("train", "test"):
        (tmp_path / f"bank.{split}.jsonl").write_text(8 * (json.dumps(row) + "\n"))
    bank = {"name": "bank", "task": "classification", "source": "{data}/bank.{split}.jsonl"}
    config = parse_config({"data": {"root": str(tmp_path), "clients": [bank, *texts]}})
    write_constant(config, tmp_path, load_tasks(config.data))
    assert json.loads((tmp_path / "constant_answers.json").read_text())["right"] == {"bank": "1" * 8}


# --- the documented table


def test_the_documented_table_by_acc_norm_is_that_of_its_cells():
    root = Path(__file__).parents[2]
    text = (root / "docs/results-real-llm.md").read_text()
    found = []
    for file in sorted((root / "docs/tables/paper_small/cells").glob("*.json")):
        raw = read_json(file)
        key = Cell(method=raw["method"], remove_ratio=raw["remove_ratio"], seed=raw["seed"])
        found.append(read_cell(file.parents[1], key))
    columns = ("tuned_proxy_norm", "average_norm", "gap_closed_norm", "owners_edge_norm")
    for row in rows_of(found):
        numbers = numbers_of(row, "", columns)
        shown = [cell(numbers[c]).replace("−", "-") if c in numbers else "" for c in columns]
        line = f"| `{row.method}` | {' | '.join(shown)} |"
        assert " ".join(line.split()) in {" ".join(one.split()) for one in text.splitlines()}, line
