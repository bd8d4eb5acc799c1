"""The command `attack model`: attacks on a model alone, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attacks.commands.options import (
    SeedOption,
    StrictOption,
    SuiteOption,
    check_seconds,
    end,
    profile_of,
    show,
)
from fedproxy_secure.cli.errors import plain_errors


def model_command(
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A Hugging Face folder, a .gguf file, demo or smollm2."),
    ],
    members: Annotated[
        Path | None, typer.Option(help="A6: JSONL of `text` that the model may have been trained on.")
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="A6: JSONL of `text` that it was not trained on.")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option(help="A7: JSONL of `prompt`, `secret` (4 digits) and `repeats`.")
    ] = None,
    proxy: Annotated[
        Path | None, typer.Option(help="A12: the smaller model the adversary holds; MODEL is the victim.")
    ] = None,
    api: Annotated[
        list[str] | None,
        typer.Option(
            "--api",
            metavar="KEY=VALUE",
            help="What MODEL's API returns, as in the section `api` of the settings; may be repeated. "
            "Example: `--api answers=text`",
        ),
    ] = None,
    suite: SuiteOption = "smoke",
    budget_seconds: Annotated[
        float, typer.Option(min=1.0, help="Time limit for one attack, controls included, in seconds.")
    ] = 600.0,
    seed: SeedOption = 0,
    strict: StrictOption = False,
) -> None:
    """Attack a model alone, offline: membership (A6), canaries (A7), extraction (A12).

    The search for the model's hidden size always runs. The other attacks need the files that the options
    name.

    Example: `fedproxy-secure attack model runs/x/seed-0/fused --proxy runs/x/seed-0/proxy`
    """
    with plain_errors(again=None, verdict=strict):
        from attacks.folder import attack_folder
        from fedproxy_secure.config import apply_overrides, parse_config

        check_seconds(budget_seconds)
        policy = parse_config(apply_overrides({}, [f"api.{change}" for change in api or []])).api
        results = attack_folder(
            path,
            members=members,
            others=others,
            canaries=canaries,
            proxy=proxy,
            api=policy,
            profile=profile_of(suite),
            seconds=budget_seconds,
            seed=seed,
        )
        show(results)
    end(results, strict)
