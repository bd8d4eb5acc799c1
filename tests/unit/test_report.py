"""A report survives the disk, follows its schema, and its tables show what it holds."""

import io
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.evidence.estimate import Estimate, mean_interval, proportion_interval
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report import Report
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.report import MethodRow
from fedproxy_secure.report.tables.comparison import (
    comparison_tables,
    difference_table,
    effect_table,
    methods_table,
    norm_table,
)
from fedproxy_secure.report.tables.scale import counting_table, proxy_table, scale_table
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.pull_request import pull_request_summary
from fedproxy_secure.report.text.table import cell, rich_tables, table_rows
from fedproxy_secure.report.text.trilemma_table import lines, rich_trilemma
from fedproxy_secure.runtime.artifacts import environment
from tests.support.paired import paired_difference
from tests.support.sample_report import sample_comparison, sample_report

SCHEMA = json.loads((resources.files("fedproxy_secure.report") / "report.schema.json").read_text())


@pytest.fixture
def report() -> Report:
    fused, proxy = {0: 0.70, 1: 0.74}, {0: 0.60, 1: 0.62}
    return Report(
        name="example",
        command="fedproxy-secure compare example.yaml",
        config_sha256="ab" * 32,
        environment=environment(device="cpu"),
        seeds=(0, 1),
        estimates=(mean_interval({0: 12.5, 1: 13.5}, metric="compress time", unit="s"),),
        rows=(
            MethodRow(
                method="zero_shot",
                average=proportion_interval(30, 60, metric="accuracy", seeds=(0,)),
            ),
            MethodRow(
                method="fedproxy_h_ties",
                remove_ratio=0.25,
                tasks={"bank": mean_interval(fused, metric="accuracy", unit="share")},
                average=mean_interval(fused, metric="accuracy", unit="share"),
                gap_closed=mean_interval({0: 0.79, 1: 0.81}, metric="gap closed", unit="share"),
                tuned_proxy=mean_interval(proxy, metric="accuracy", unit="share"),
                owners_edge=paired_difference(fused, proxy, metric="owner's edge", unit="share"),
            ),
        ),
        notes=("3 prompts were truncated",),
    )


def test_no_report_has_two_configurations_of_one_name(tmp_path: Path):
    made = sample_report()
    first, second, *_ = made.configurations
    with pytest.raises(DataError, match=r"^configurations: .* is there twice"):
        replace(made, configurations=(first, replace(second, name=first.name)))
    text = made.to_json().replace(json.dumps(second.name), json.dumps(first.name))
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"report\.json: is damaged: configurations: .* there twice"):
        Report.load(tmp_path)


def test_a_written_report_is_read_back_equal(report: Report, tmp_path: Path):
    assert report.write(tmp_path) == tmp_path / "report.json"
    assert Report.load(tmp_path) == report


def test_a_written_report_follows_the_schema(report: Report, tmp_path: Path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(report.write(tmp_path).read_text()), SCHEMA)


@pytest.mark.parametrize("key", ["n", "low", "high", "seeds", "how"])
def test_the_schema_refuses_a_number_without_what_it_rests_on(report: Report, key: str):
    raw = json.loads(report.to_json())
    del raw["rows"][1]["average"][key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, SCHEMA)


def test_a_report_of_another_version_is_refused(report: Report, tmp_path: Path):
    replace(report, schema_version=9).write(tmp_path)
    with pytest.raises(RunFolderError, match=r"schema_version=9: must be 7; make the report again$"):
        Report.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 7, "seeds": 3}'])
def test_a_damaged_report_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunFolderError, match="is damaged") as raised:
        Report.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[]", '{"a": 1}'])
def test_a_file_that_is_no_report_is_told_in_words_and_not_by_a_key_error(text: str):
    told = "report.json: is damaged, or no report: has no schema_version; give a file that `run`,"
    with pytest.raises(RunFolderError, match=told):
        Report.parse(text.encode(), Path("report.json"))


def test_a_report_that_does_not_say_whether_a_number_was_counted_is_refused(report: Report, tmp_path: Path):
    raw = json.loads(report.to_json())
    del raw["rows"][1]["average"]["nature"]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match="is damaged"):
        Report.load(tmp_path)


def test_a_missing_report_is_named(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"report\.json: cannot be read"):
        Report.load(tmp_path)


def test_cells_show_percent_with_half_the_interval(report: Report):
    headings, (zero_shot, ours) = table_rows(methods_table(report))
    assert headings[:4] == ("method", "removed", "tuned proxy (%)", "fused LLM (%)")
    assert zero_shot[:4] == ("zero_shot", "-", "-", "50.0 ± 12.3")
    assert ours[:2] == ("fedproxy_h_ties", "25 %")
    assert ours[headings.index("gap closed (%)")] == "80.0 ± 12.7"
    assert ours[headings.index("owner's edge (points)")].startswith("+11.0 ± ")


def test_cells_show_lopsided_and_missing_intervals():
    assert cell(Number(proportion_interval(1, 20, metric="m", seeds=(0,)), "")) == "5.0 [0.9, 23.6]"
    assert cell(Number(mean_interval({0: 0.5}, metric="m", unit="share"), "")) == "50.0"
    assert cell(Number(mean_interval({0: 0.5}, metric="m", unit="share"), ""), unit=True) == "50.0 %"
    assert cell(None) == "-"


def test_markdown_holds_rows_tasks_estimates_notes_and_command(report: Report):
    text = markdown_report(report)
    headings, rows = table_rows(methods_table(report))
    assert "| " + " | ".join(rows[1]) + " |" in text
    for part in (*headings, "bank", "compress time", "3 prompts were truncated", report.command):
        assert part in text


def test_cells_do_not_show_a_small_divergence_as_zero():
    left = Estimate(
        metric="KL",
        value=0.032,
        low=0.025,
        high=0.039,
        n=32,
        unit="nats",
        seeds=(0,),
        how="made up",
        nature="sampled",
    )
    assert cell(Number(left, "")) == "0.032 ± 0.007"


def test_every_form_has_every_number_of_every_table():
    made = sample_comparison()
    shown = {form: " ".join(form(made).split()) for form in (printed, markdown_report, page)}
    for table in comparison_tables(made):
        for number in (n for line in table.lines for n in line.numbers.values()):
            assert cell(number) in shown[markdown_report]
            assert f'data-source="{number.source}"' in shown[page]
    for table in comparison_tables(made, by_task=False):
        for _, _, *texts, _, seeds in table_rows(table)[1]:
            assert seeds == str(len(made.seeds))
            assert all(text in shown[printed] for text in texts)


def printed(report: Report, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*rich_tables(report))
    return console.export_text()


def test_a_row_with_fewer_seeds_than_the_report_says_so_in_every_form(report: Report):
    assert [row[-1] for row in table_rows(methods_table(report))[1]] == ["one seed", "2"]
    longer = replace(report, seeds=(0, 1, 2))
    for shown in (printed(longer), markdown_report(longer), page(longer), pull_request_summary(longer)):
        assert "one seed" in shown
        assert "2 of 3" in shown


def test_acc_norm_has_a_table_of_its_own_only_where_it_differs():
    made = sample_comparison()
    same = replace(
        made,
        rows=tuple(replace(r, tasks_norm=r.tasks, average_norm=r.average) for r in made.rows),
    )
    bank = tuple(replace(r, tasks_norm={**r.tasks, "bank": r.tasks_norm["bank"]}) for r in made.rows)
    for form in (printed, markdown_report, page):
        assert "Fused LLM by acc_norm" not in form(same)
        assert "Fused LLM by acc_norm" in form(made)
    beside = ("average (%)", "gap closed (%)", "owner's edge (points)")
    assert [label for _, label in norm_table(replace(made, rows=bank)).columns] == [*beside, "bank (%)"]
    assert [label for _, label in norm_table(made, by_task=False).columns] == [*beside]


def test_paired_differences_have_a_line_a_method_and_ratio_and_a_column_a_reference():
    made = sample_comparison()
    table = difference_table(made)
    assert [label for _, label in table.columns] == [
        "minus fedot (points)",
        "minus fedproxy_h_ties (points)",
    ]
    assert (table.lines[0].name, table.lines[0].about) == ("zero_shot", "25 % removed")
    assert table.lines[2].numbers["fedproxy_h_ties"].estimate == made.differences[2].average
    for form in (printed, markdown_report, page):
        assert "paired differences" in form(made)
        assert "paired differences" not in form(replace(made, differences=()))


def test_what_lies_between_methods_and_the_ceiling_is_shown_where_it_is_known():
    made = sample_comparison()
    table = effect_table(made)
    parts = ["size (points)", "federation (points)", "owner's edge (points)"]
    assert [label for _, label in table.columns] == parts
    assert [line.name for line in table.lines] == [row.method for row in made.rows if row.remove_ratio]
    assert table.lines[0].numbers["size_effect"].estimate == made.rows[2].size_effect
    unknown = tuple(replace(row, size_effect=None, federation_effect=None) for row in made.rows)
    for form in (printed, markdown_report, page):
        assert "between the fused LLM and the ceiling" in form(made)
        assert "between the fused LLM and the ceiling" not in form(replace(made, rows=unknown))


def test_differences_by_acc_norm_have_a_table_only_where_it_is_another_measure():
    made = sample_comparison()
    same = tuple(replace(r, tasks_norm=r.tasks) for r in made.rows)
    table = difference_table(made, "average_norm")
    assert table.lines[2].numbers["fedproxy_h_ties"].estimate == made.differences[2].average_norm
    for form in (printed, markdown_report, page):
        assert "by acc_norm, paired" in form(made)
        assert "by acc_norm, paired" not in form(replace(made, rows=same))


def test_tasks_that_count_and_the_gap_closed_over_them_are_shown_where_some_do_not():
    made = sample_comparison()
    about = [(line.name, line.about) for line in scale_table(made).lines]
    assert about == [("clinic", "counts"), ("bank", "does not count")]
    shown = counting_table(made).lines
    assert [line.name for line in shown] == [r.method for r in made.rows if r.gap_closed_counting]
    assert shown[1].numbers["gap_closed_counting"].estimate == made.rows[2].gap_closed_counting
    every = tuple(replace(scale, counts=True) for scale in made.task_scales)
    none = tuple(replace(scale, counts=False) for scale in made.task_scales)
    without = tuple(replace(row, gap_closed_counting=None) for row in made.rows)
    for form in (printed, markdown_report, page):
        assert "1 of 2 tasks count: clinic." in " ".join(form(made).split())
        assert "No task counts" in form(replace(made, task_scales=none, rows=without))
    for form in (printed, markdown_report, page):
        assert "Gap closed on tasks that count" in form(made)
        assert "Gap closed on tasks that count" not in form(replace(made, task_scales=every))
        assert "Gap closed on tasks that count" not in form(replace(made, rows=without))


def test_proxies_are_shown_before_and_after_healing_with_the_seeds_they_rest_on():
    made = sample_comparison()
    lines = proxy_table(made).lines
    assert [(line.name, line.about) for line in lines] == [
        ("proxy before healing", "25 % removed"),
        ("proxy healed", "25 % removed"),
        ("proxy", "50 % removed"),
    ]
    assert lines[1].numbers["kl"].estimate == made.proxies[0].fidelity.kl
    assert lines[2].numbers["above_llm"].text.startswith("−1")
    unknown = replace(made.proxies[1], fidelity=None)
    assert [key for key, _ in proxy_table(replace(made, proxies=(unknown,))).columns] == ["above_llm"]
    for form in (printed, markdown_report, page):
        assert "Proxies before tuning" in form(made)
        assert "Proxies before tuning" in form(replace(made, proxies=(unknown,)))
        assert "Proxies before tuning" not in form(replace(made, proxies=()))


@pytest.mark.parametrize("width", [80, 100])
def test_a_comparisons_tables_stay_within_the_terminal(width: int):
    assert max(map(len, printed(sample_comparison(), width).splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminals_trilemma_stays_within_its_width_and_folds_no_number(width):
    configurations = sample_report().configurations
    written = io.StringIO()
    Console(width=width, file=written).print(*rich_trilemma(configurations, width=width))
    shown = written.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for _, *texts in lines(configurations):
        for text in texts:
            assert f" {text} " in shown
