"""The command line as Markdown, from the commands' own help."""

from __future__ import annotations

import re
from typing import Any

import typer
from markdown_parts import markdown_table

from fedproxy_secure.cli.app import app

NAME = "fedproxy-secure"


def every_command() -> str:
    """A section for each command: its help, its arguments and options."""
    return "\n\n".join(_command(path, command) for path, command in commands() if len(path) > 1)


def commands() -> list[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, groups before their members."""
    found: list[tuple[tuple[str, ...], Any]] = []

    def walk(path: tuple[str, ...], command: Any) -> None:
        found.append((path, command))
        context = command.make_context(path[-1], [], resilient_parsing=True)
        if hasattr(command, "list_commands"):
            for name in command.list_commands(context):
                walk((*path, name), command.get_command(context, name))

    walk((NAME,), typer.main.get_command(app))
    return found


def _command(path: tuple[str, ...], command: Any) -> str:
    parts = [f"{'#' * len(path)} `{' '.join(path)}`", _text(command.help or "")]
    rows = [
        (_spelled(p), _help(p))
        for p in command.params
        if p.name != "help" and not getattr(p, "hidden", False)
    ]
    if rows:
        parts.append(markdown_table(("argument or option", "meaning"), rows))
    return "\n\n".join(part for part in parts if part)


def _spelled(parameter: Any) -> str:
    metavar = parameter.metavar or (parameter.name or "").upper()
    if parameter.param_type_name == "argument":
        return f"`{metavar}`"
    if getattr(parameter, "is_flag", False):
        return f"`{parameter.opts[0]}`"
    kind = parameter.type.name.partition(" ")[0].upper()
    return f"`{parameter.opts[0]} {parameter.metavar or ('N' if kind in ('INTEGER', 'FLOAT') else kind)}`"


def _help(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", "") or "").split())
    default = parameter.default
    if parameter.required:
        return f"{text} Required.".strip()
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"{text} Default: `{default}`.".strip() if plain else text


def _text(help_text: str) -> str:
    """Help as Markdown; an example stands on a line of its own, as code."""
    text = help_text.replace("\b", "").strip()
    return re.sub(r"Example: `([^`]+)`", r"Example:\n\n```console\n$ \1\n```", text)
