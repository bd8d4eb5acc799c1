"""The examples of deployment call commands that exist, and systemd takes the units."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml

from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.errors import BAD

EXAMPLES = Path(__file__).parents[2] / "examples" / "deploy"
PROGRAM = "/opt/fedproxy/venv/bin/fedproxy-secure"
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def check_command(words):
    """Parse a command as the program would, without running it."""
    command: click.Command = typer.main.get_command(app)
    words = [word for word in words if word != "..."]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words, resilient_parsing=False)


def commands_of_the_page():
    text = DOCS.read_text(encoding="utf-8")
    lines = re.findall(r"^\w+\$ fedproxy-secure (.*?)(?:\s+#.*)?$", text, flags=re.M)
    assert len(lines) >= 8
    return lines


@pytest.mark.parametrize("line", commands_of_the_page())
def test_each_command_of_the_page_is_one(line):
    check_command(shlex.split(line))


@pytest.mark.parametrize("party", ["owner", "site"])
def test_the_units_start_a_command_that_exists(party):
    text = (EXAMPLES / f"fedproxy-{party}.service").read_text(encoding="utf-8")
    (started,) = re.findall(rf"^ExecStart={PROGRAM} (.*)$", text, flags=re.M)
    check_command(shlex.split(started))


@pytest.mark.parametrize("party", ["owner", "site"])
def test_a_unit_is_not_started_again_once_it_was_told_to_stop_or_must_be_repaired(party):
    text = (EXAMPLES / f"fedproxy-{party}.service").read_text(encoding="utf-8")
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, flags=re.M))
    assert unit["Restart"] == "on-failure"
    terminated = 128 + signal.SIGTERM
    assert {int(code) for code in unit["RestartPreventExitStatus"].split()} == {BAD, terminated}
    assert int(unit["SuccessExitStatus"]) == terminated


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("party", ["owner", "site"])
def test_systemd_takes_the_units(party, tmp_path):
    text = (EXAMPLES / f"fedproxy-{party}.service").read_text(encoding="utf-8")
    unit = tmp_path / f"fedproxy-{party}.service"
    unit.write_text(text.replace(PROGRAM, sys.executable))  # it wants a program that is there
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_compose_file_starts_a_command_that_exists():
    site = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))["services"]["site"]
    check_command([str(word) for word in site["command"]])
    assert "ports" not in site
    assert site["read_only"] is True
