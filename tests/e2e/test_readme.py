"""The README is short, what it and the pages name is there, and what they print can be run as printed."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedproxy_secure.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *PAGES]


def library_example() -> str:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)[0]


def lines_of_code(text: str) -> list[str]:
    """The lines of code blocks, without prompts and comments, and code of several words within a line."""
    code, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(line.strip().removeprefix("$ ").split("  #")[0].strip())
        else:
            code += [c for c in re.findall(r"(?<!`)`([^`]+)`(?!`)", line) if " " in c]
    assert not fenced, "a code block does not end"
    return code


def commands(program: str) -> list[str]:
    """The commands that the README and the pages print, each once."""
    lines = [line for text in TEXTS for line in lines_of_code(text.read_text(encoding="utf-8"))]
    return sorted({line for line in lines if line.split(" ")[0] == program})


def test_the_library_example_runs_in_at_most_24_lines(tmp_path, monkeypatch, capsys):
    code = library_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/library.md", "exec"), {})
    assert "accuracy:" in capsys.readouterr().out
    assert (tmp_path / "runs/as-a-library/adapter/adapter_config.json").exists()


def test_the_attack_of_ones_own_is_the_file_that_the_tests_run_and_short():
    assert "```{literalinclude} ../examples/own_attack.py" in (ROOT / "docs/extend.md").read_text()
    assert '"own_attack:WorstToken"' in (ROOT / "tests/unit/test_own_attack.py").read_text()
    assert len((ROOT / "examples/own_attack.py").read_text().splitlines()) <= 60


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "text", [*TEXTS, ROOT / "CHANGELOG.md", ROOT / "CODE_OF_CONDUCT.md"], ids=lambda p: p.name
)
def test_no_text_links_to_a_file_that_is_missing(text):
    for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:", "#")):
            continue
        assert (text.parent / target.partition("#")[0]).exists(), target


def test_every_folder_and_file_that_is_named_as_code_is_there():
    named = re.compile(
        r"`((?:fedproxy_secure|attacks|threat_models|tests|configs|examples|docs)/[\w./-]+)`"
    )
    for text in TEXTS:
        for path in named.findall(text.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{text.name}: {path}"


def test_the_texts_print_more_than_thirty_commands():
    assert len(commands("fedproxy-secure")) > 30


@pytest.mark.parametrize("line", commands("fedproxy-secure"))
def test_a_printed_command_is_one_that_is_understood(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "get_command"):
        assert words, f"{line}: names no command"
        name, words = words[0], words[1:]
        command = command.get_command(None, name)  # type: ignore[attr-defined]
        assert command is not None, f"{line}: {name} is no command"
    command.make_context(command.name, words)  # raises for unknown options, values and missing arguments
    shipped = (
        words[0] if words and command.name in ("run", "compare", "matrix", "provision") else "quickstart"
    )
    if re.fullmatch(r"[a-z_]+", shipped):
        assert (ROOT / "configs" / f"{shipped}.yaml").exists(), f"{line}: {shipped} is not shipped"


@pytest.mark.parametrize("line", commands("make"))
def test_a_printed_make_target_is_there(line):
    rules = re.findall(r"^([^\s:=#]+)(?: [^:=]*)?:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in [word for word in line.split()[1:] if "=" not in word]:
        stems = [re.fullmatch(re.escape(rule).replace("%", "(.+)"), target) for rule in rules]
        assert any(stems), target
        if target.startswith("bench-"):
            assert (ROOT / f"tests/bench/{target.removeprefix('bench-').replace('-', '_')}.py").exists(), (
                target
            )


def test_a_command_that_is_wrong_is_found():
    run = typer.main.get_command(app).get_command(None, "run")  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="--no-such-option"):
        run.make_context("run", ["quickstart", "--no-such-option"])
