"""The README's library example runs as printed, and is as short as promised."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_library_example_runs_in_at_most_24_lines(tmp_path, monkeypatch, capsys):
    code, _ = examples()
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "accuracy:" in capsys.readouterr().out
    assert (tmp_path / "runs/as-a-library/adapter/adapter_config.json").exists()


def test_the_attack_of_ones_own_is_the_file_that_the_tests_run_and_short():
    _, shown = examples()
    assert shown == (ROOT / "tests/support/third_party_attack.py").read_text()
    assert len(shown.splitlines()) <= 30


def test_every_file_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!#|http)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
