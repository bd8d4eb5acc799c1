"""Options that several commands share, and the search for a file of settings by its name."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedproxy_secure.runtime.nearest import file_or_shipped

PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed; source tree

# Explained in the commands' texts: typer 0.20 on click 8.5 loses an argument's own help.
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting; may be repeated. Example: `--set compress.remove_ratio=0.25`",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Output folder. Default: `runs/` and the config's name."),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what DIR holds; command and settings must be the same."),
]
RecordOption = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Write all messages and every party's state, records included, for `attack run`.",
    ),
]
SigningKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--signing-key",
        metavar="FILE",
        help="Private key, made by `audit keygen`, to sign the audit log and the report. "
        "Default: a key of the run's own.",
    ),
]
StatusPortOption = Annotated[
    int | None,
    typer.Option(metavar="PORT", help="Serve a status page and /metrics on this machine, at this port."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would do and need, then stop.")
]


def typed(*words: object, **options: object) -> str:
    """Return a command as a shell takes it, to type again: words, then options that are not their default.

    None, False and empty lists are left out; True is a flag; each value of a list has its option.

    >>> typed("attack", "run", run="my run", jobs=2, strict=True, view=["server"], seed=None)
    "fedproxy-secure attack run --run 'my run' --jobs 2 --strict --view server"
    """
    parts = ["fedproxy-secure", *map(str, words)]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            parts.append(option)
        elif value is not None and value is not False:
            each = value if isinstance(value, list | tuple) else [value]
            parts += [part for one in each for part in (option, str(one))]
    return shlex.join(parts)


def find_config(name: str, folders: Sequence[Path] = CONFIG_FOLDERS) -> Path:
    """Return the file called `name`, or the shipped config of that name, with or without `.yaml`.

    Raises `ConfigError` that names shipped configs.
    """
    return file_or_shipped(name, folders, kind="config")
