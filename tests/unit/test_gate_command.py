"""The command `gate`: its exit codes, its tables and what it says of bad input."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.gate.judge import judge
from fedproxy_secure.gate.table import cells, markdown_gate
from tests.support.gate_samples import SAFE, SIGNER, policy, report


@pytest.fixture
def folder(tmp_path):
    report(SAFE).write(tmp_path)
    (tmp_path / "policy.yaml").write_text("schema_version: 1\nrules:\n- max_verbatim_share: 0.9\n")
    return tmp_path


def gate(folder, *more, report="report.json", policy="policy.yaml"):
    arguments = ["gate", "--report", str(folder / report), "--policy", str(folder / policy), *more]
    return CliRunner().invoke(app, arguments)


def test_the_command_ends_with_0_1_2_or_3(folder):
    assert gate(folder).exit_code == 0
    for bound, code in (("max_verbatim_share: 0.5", 1), ("max_token_auc: 0.53", 3), ("max_token: 1", 2)):
        (folder / "policy.yaml").write_text(f"schema_version: 1\nrules:\n- {bound}\n")
        assert gate(folder).exit_code == code


def test_a_failed_rule_outweighs_what_is_missing(folder):
    (folder / "policy.yaml").write_text(
        "schema_version: 1\nrules:\n- max_api_gain: 1\n- max_verbatim_share: 0.5\n"
    )
    assert gate(folder).exit_code == 1


def test_a_wrong_option_is_2(folder):
    assert gate(folder, "--format", "xml").exit_code == 2
    assert gate(folder, report="reprot.json").exit_code == 2
    assert gate(folder, policy="no.yaml").exit_code == 2
    assert gate(folder, policy="n" * 300).exit_code == 2
    assert gate(folder, report="n" * 300).exit_code == 2


@pytest.mark.parametrize("change", ["version", "cut", "nothing"])
def test_a_damaged_report_or_one_of_another_version_never_passes(folder, change):
    file = folder / "report.json"
    text = file.read_text()
    changed = {
        "version": text.replace('"schema_version": 7', '"schema_version": 3'),
        "cut": text[: len(text) // 2],
        "nothing": "",
    }
    assert changed[change] != text
    file.write_text(changed[change])
    ended = gate(folder)
    assert ended.exit_code == 3
    assert "report.json" in ended.stderr
    assert ended.stdout == ""


def test_a_key_asks_for_a_signature_that_an_unsigned_folder_lacks(folder):
    ended = gate(folder, "--key", SIGNER, "--format", "json")
    assert ended.exit_code == 3
    assert json.loads(ended.stdout)["rows"][0]["verdict"] == "MISSING"


def test_json_has_every_row_in_full(folder):
    ended = gate(folder, "--format", "json")
    made = json.loads(ended.stdout)
    assert (made["verdict"], made["exit_code"], made["schema_version"]) == ("PASSED", 0, 1)
    (row,) = made["rows"]
    assert row["measured"]["value"] == 0.72
    assert row["excess"] == pytest.approx(-0.18)
    assert row["source"] == "result.json#x"


def test_the_tables_say_which_rule_failed_where_and_by_how_much(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "policy.yaml").write_text("schema_version: 1\nrules:\n- max_verbatim_share: 0.5\n")
    for form in ("table", "markdown"):
        shown = gate(folder, "--format", form).stdout
        for part in (
            "max_verbatim_share: 0.5",
            "masking + DP 8",
            "FAILED",
            "0.72, exact",
            "exceeds the bound by 0.22",
        ):
            assert part in shown


def test_a_bar_in_a_name_does_not_break_the_markdown(tmp_path):
    odd = replace(SAFE, name="a|b")
    judgement = judge(report(odd), policy(tmp_path, "- forbid_unsafe: true"))
    assert "a\\|b" in markdown_gate(judgement)
    assert cells(judgement.rows[0])[1] == "a|b"
