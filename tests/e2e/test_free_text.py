"""Clients with free text: their loss in the records, reports and gate of run, compare and matrix; chats."""

import json
import math

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.finding import Outcome, read_findings
from fedproxy_secure.experiments.compare import compare, compare_report
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.gate.judge import judge
from fedproxy_secure.gate.policy import parse_policy
from fedproxy_secure.gate.verdict import Verdict
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.table import rich_tables
from fedproxy_secure.runtime.files.names import REPORT_PAGE
from tests.support.page_walk import faults, parse
from tests.support.tiny import tiny_settings, tiny_tokenizer

LOSSES = {"loss_zero_shot", "loss_zero_shot_proxy", "loss_tuned_proxy", "loss_fused"}
METHODS = ["zero_shot", "zero_shot_proxy", "centralised_llm", "fedproxy_fedavg", "local_only"]


SIDE_BY_SIDE = (
    "Free text: loss on test records",
    "Fused LLM, paired differences",
    "Free text, paired differences in loss",
    "What each task can show",
    "Proxies before tuning",
)


def text_settings(folder, texts, **changes):
    """Settings of three clients, of whom the first `texts` have free text."""
    raw = tiny_settings(folder, **changes)
    for client in range(texts):
        for split in ("train", "test"):
            rows = [{"prompt": f"call {i}", "response": f"line {client} is {i % 3}"} for i in range(12)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / f"{client}.{split}.jsonl").write_text(lines)
        raw["data"]["clients"][client]["task"] = "instruction"
    return raw


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return text_settings(
        tmp_path_factory.mktemp("mixed"),
        1,
        compare={"methods": METHODS, "remove_ratios": [0.5], "against": ["zero_shot"], "jobs": 1},
        matrix={"protections": [{"scheme": "unsafe_plaintext"}], "remove_ratios": [0.5], "jobs": 1},
    )


@pytest.fixture(scope="module")
def text_alone(tmp_path_factory):
    return text_settings(
        tmp_path_factory.mktemp("text"),
        3,
        local={"steps": 8, "batch_size": 4, "learning_rate": 0.02},
        compare={
            "methods": ["zero_shot", "centralised_llm", "fedproxy_fedavg"],
            "remove_ratios": [0.5],
            "against": ["zero_shot"],
            "jobs": 1,
        },
    )


def chat_settings(folder):
    """Settings of three clients with conversations, and of a tokenizer with a chat template."""
    raw = text_settings(folder, 3, audit={"record": True})
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}"
    tokenizer.save_pretrained(folder / "llm")
    for client in range(3):
        for split in ("train", "test"):
            rows = [
                {
                    "messages": [
                        {"role": "user", "content": f"{split} {client}"},
                        {"role": "assistant", "content": f"line {i % 3}"},
                    ]
                }
                for i in range(12)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / f"{client}.{split}.jsonl").write_text(lines)
    return raw


def keys(report):
    return {m.key for c in report.configurations for m in c.measures}


def test_a_run_of_coded_tasks_and_free_text_tells_of_both(mixed, tmp_path):
    report = run(parse_config(mixed), tmp_path / "run")
    result = json.loads((tmp_path / "run/seed-0/result.json").read_text())
    for model in ("zero_shot", "proxy", "tuned", "fused"):
        assert list(result[model]) == ["c1", "c2"]
        assert len(result[f"{model}_loss"]["c0"]["nats"]) == 12
    assert LOSSES | {"accuracy_fused"} <= keys(report)
    (fused,) = (m.estimate for m in report.configurations[0].measures if m.key == "loss_fused")
    assert fused.low < fused.value < fused.high
    assert fused.n == 12
    row = report.rows[-1]
    assert row.loss == row.tasks_loss["c0"] or row.loss.value == row.tasks_loss["c0"].value == fused.value
    assert row.average is not None
    assert row.tuned_proxy_loss is not None
    text = (tmp_path / "run/report.md").read_text()
    assert "fused LLM, loss (nats)" in text
    assert f"| {math.exp(fused.value):.0f} [" in text
    assert "Free text: loss on test records" in (tmp_path / "run" / REPORT_PAGE).read_text()
    assert Report.load(tmp_path / "run") == report


@pytest.fixture(scope="module")
def of_text_alone(text_alone, tmp_path_factory):
    """The folder and the report of a run of two seeds."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, run(parse_config({**text_alone, "seeds": [0, 1]}), folder)


def test_a_run_of_free_text_alone_has_losses_and_no_accuracy(of_text_alone):
    folder, report = of_text_alone
    assert keys(report) >= LOSSES | {"owners_edge_nats"}
    assert not any("accuracy" in key or key == "owners_edge" for key in keys(report))
    assert all(row.average is None and row.loss is not None for row in report.rows)
    assert any("Left out of all accuracies: all clients" in note for note in report.notes)
    zero, _, fused = (row.loss.value for row in report.rows)
    assert fused < zero
    assert [t.title.plain for t in rich_tables(report)] == ["Free text: loss on test records"]
    assert "| method | removed | tuned proxy (%)" not in markdown_report(report)
    page = (folder / REPORT_PAGE).read_text()
    assert "Least loss on free text" in page
    assert "Most correct answers" not in page
    assert faults(parse(page)) == []


def test_a_gate_judges_free_text_by_its_loss(of_text_alone, tmp_path):
    _, report = of_text_alone
    (fused,) = (m.estimate for m in report.configurations[0].measures if m.key == "loss_fused")
    for limit, opens in ((fused.high + 0.1, True), (fused.low - 0.1, False)):
        text = f"schema_version: 1\nname: p\nrules: [{{max_loss_fused: {limit}}}]\n"
        judged = judge(report, parse_policy(text.encode(), tmp_path / "p.yaml"))
        assert [row.verdict for row in judged.rows] == [Verdict.PASSED if opens else Verdict.FAILED]


def test_a_comparison_has_losses_their_gap_closed_and_their_differences(mixed, tmp_path):
    config = parse_config(mixed)
    report = compare(config, tmp_path / "compare")
    rows = {row.method: row for row in report.rows}
    assert all(row.loss is not None and row.average is not None for row in rows.values())
    assert rows["zero_shot"].loss_gap_closed.value == 0
    assert rows["centralised_llm"].loss_gap_closed.value == 1
    assert rows["local_only"].tuned_proxy_loss is not None
    for d in report.differences:
        assert d.loss.value == pytest.approx(rows[d.method].loss.value - rows["zero_shot"].loss.value)
        assert d.loss.unit == "nats"
        assert list(d.tasks_loss) == ["c0"]
        assert d.average is not None
        assert d.average_norm is not None
        assert list(d.tasks) == ["c1", "c2"]
    assert [scale.task for scale in report.task_scales] == ["c1", "c2"]
    assert list(json.loads((tmp_path / "compare/constant_answers.json").read_text())["right"]) == [
        "c1",
        "c2",
    ]
    (proxy,) = report.proxies
    assert proxy.fidelity.kl.value > 0
    assert proxy.above_llm.n == rows["zero_shot"].average.n == 24
    assert rows["fedproxy_fedavg"].tuned_proxy_norm is not None
    assert compare_report(config, tmp_path / "compare") == report  # from what the cells keep
    text = (tmp_path / "compare/report.md").read_text()
    page = (tmp_path / "compare" / REPORT_PAGE).read_text()
    for title in SIDE_BY_SIDE:
        assert title in text
        assert title in page
    assert faults(parse(page)) == []


@pytest.mark.slow
def test_a_comparison_of_free_text_alone_has_no_accuracy(text_alone, tmp_path):
    report = compare(parse_config(text_alone), tmp_path / "compare")
    assert all(row.average is None and row.gap_closed is None for row in report.rows)
    assert all(d.average is None and d.loss is not None for d in report.differences)
    assert report.task_scales == ()
    assert not any("Not told: on which tasks" in note for note in report.notes)
    assert not (tmp_path / "compare/constant_answers.json").exists()
    assert [proxy.above_llm for proxy in report.proxies] == [None]
    (fused,) = (row for row in report.rows if row.method == "fedproxy_fedavg")
    assert fused.loss_gap_closed.low <= fused.loss_gap_closed.value <= fused.loss_gap_closed.high
    losses, differences, proxies = rich_tables(report)
    assert [len(table.columns) for table in (losses, differences)] == [10, 4]  # three tasks have columns
    assert proxies.title.plain == "Proxies before tuning"


@pytest.mark.slow
def test_a_matrix_closes_the_gap_of_free_text_beside_that_of_coded_tasks(mixed, tmp_path):
    report = matrix(parse_config({**mixed, "attacks": {"suite": "none"}}), tmp_path / "matrix")
    assert LOSSES | {"loss_centralised", "loss_gap_closed", "accuracy_centralised"} <= keys(report)
    measures = {m.key: m.estimate.value for m in report.configurations[0].measures}
    zero, fused, ceiling = (measures[f"loss_{k}"] for k in ("zero_shot", "fused", "centralised"))
    assert measures["loss_gap_closed"] == pytest.approx((zero - fused) / (zero - ceiling))


def test_conversations_are_trained_and_judged_as_the_chat_template_writes_them(tmp_path):
    report = run(parse_config(chat_settings(tmp_path)), tmp_path / "run")
    result = json.loads((tmp_path / "run/seed-0/result.json").read_text())
    assert set(result["fused_loss"]["c0"]["tokens"]) == {len("line 0;")}
    assert report.rows[-1].tuned_proxy_loss.value < report.rows[1].loss.value  # the proxy has learned
    kept = (tmp_path / "run/seed-0/proxy/chat_template.jinja").read_text()
    assert kept.startswith("{% for m in messages %}")


@pytest.mark.slow
def test_attacks_read_conversations_as_they_were_trained_on(tmp_path):
    run(parse_config(chat_settings(tmp_path)), tmp_path / "run")
    words = ("attack", "run", "--run", tmp_path / "run", "--spec", "A2", "--view", "server", "--jobs", "1")
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    findings = read_findings(tmp_path / "run")
    assert findings
    assert all(f.outcome != Outcome.ERROR for f in findings)
