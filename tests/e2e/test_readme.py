"""The README's library example runs as printed, and is as short as promised."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_library_example_runs_in_at_most_24_lines(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "accuracy:" in capsys.readouterr().out
    assert (tmp_path / "runs/as-a-library/adapter/adapter_config.json").exists()


def test_every_file_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!#|http)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
