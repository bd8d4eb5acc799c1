"""The notebook of the real LLM runs on the embedded LLM in its place; the settings on its page are read."""

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedproxy_secure import load_config

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/real_llm.ipynb"
TINY = ", ".join(
    f"{{name: {name}, task: {name}, train_records: 24, test_records: 8}}"
    for name in ("clinic", "bank", "council")
)
CHANGES = [
    "model={path: demo, device: cpu}",
    "data.public_text=demo",
    f"data.clients=[{TINY}]",
    "compress={remove_ratio: 0.5, calibration_sequences: 4}",
    "heal={steps: 16, learning_rate: 3.0e-4}",
    "federate.rounds=2",
    "local.steps=2",
    "track=[]",
]


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def code() -> list[str]:
    return ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]


def first_cell() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code()[0], names)
    return names


def test_the_notebook_is_short_and_stores_no_outputs():
    assert len(cells()) <= 12
    for cell in cells():
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_every_name_that_the_notebook_imports_exists():
    statements = [node for cell in code() for node in ast.walk(ast.parse(cell))]
    imported = [node for node in statements if isinstance(node, ast.ImportFrom)]
    assert imported
    for statement in imported:
        module = importlib.import_module(statement.module or "")
        for name in statement.names:
            assert hasattr(module, name.name), f"{statement.module} has no {name.name}"


def test_the_settings_of_the_first_cell_are_of_the_packaged_llm_under_masking(monkeypatch):
    monkeypatch.chdir(NOTEBOOK.parent)  # where Jupyter runs it
    named = first_cell()
    config = load_config(named["CONFIG"], named["CHANGES"])
    assert config.model.path == "smollm2"
    assert config.heal.steps > 0
    assert config.protect.scheme == "masking"
    assert config.compress.remove_ratio in config.compare.remove_ratios  # as `make real` has it


def test_the_settings_on_the_page_are_masked_and_leave_records_out_for_choosing_learning_rates(tmp_path):
    page = (ROOT / "docs/real-llm.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(settings, encoding="utf-8")
    config = load_config(tmp_path / "mine.yaml")
    assert config.protect.scheme == "masking"
    assert config.heal.steps > 0
    assert {"exact_h_ties_pcr", "masked_h_ties_block"} < set(config.compare.methods)
    assert {client.train_split for client in config.data.clients} == {"train[:-200]"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_cell_runs_on_the_embedded_llm_and_healing_brings_the_proxy_closer(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(NOTEBOOK.parent)
    names = {**first_cell(), "CHANGES": CHANGES, "FOLDER": str(tmp_path / "notebook")}
    for number, cell in enumerate(code()[1:], start=2):
        exec(compile(cell, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    exact, healed = (float(line.split()[1]) for line in printed.splitlines() if line.startswith("KL "))
    assert healed < exact
    for expected in ("LLM before", "tuned proxy", "fused LLM", "MaskedInput: 3 messages", "accuracy_fused"):
        assert expected in printed
    assert json.loads((tmp_path / "notebook/run/report.json").read_text())["configurations"]
