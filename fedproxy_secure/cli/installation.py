"""The commands `doctor` and `pretrain-demo`: this installation and its demo LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import FedProxyError, RunFolderError


def pretrain_demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the model and its tokenizer; must be empty.")
    ] = Path("runs/demo_llm"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps, of 2048 tokens each.")] = 3000,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same model.")
    ] = 0,
) -> None:
    """Train the small demo LLM from nothing, as the shipped one was; tens of minutes on a CPU.

    Use it with `--set model.path=DIR`.

    Example: `fedproxy-secure pretrain-demo --steps 200 --out runs/tiny`
    """
    with plain_errors(again=None):
        from fedproxy_secure.cli.progress import shown_on
        from fedproxy_secure.runtime.files.saving import saving
        from fedproxy_secure.world.pretrain import pretrain, save_demo_llm

        try:  # find out before the training, not after it
            out.mkdir(parents=True, exist_ok=True)
            taken = next(out.iterdir(), None)
        except OSError as error:
            raise RunFolderError(f"{out}: cannot be written: {error.strerror}") from error
        if taken is not None:
            raise RunFolderError(f"{out}: is not empty: has {taken.name}; choose another --out")
        with shown_on(Console(stderr=True)) as progress:
            task = "pre-training"
            progress.start(task, steps)
            model, tokenizer = pretrain(
                steps=steps,
                seed=seed,
                on_step=lambda _, loss: progress.advance(task, note=f"loss {loss:.3f}"),
            )
            progress.done(task)
        with saving(out):
            save_demo_llm(model, tokenizer, out)
        typer.echo(f"demo LLM: {out}")


def doctor() -> None:
    """Check this installation: Python, packages, disk, device, threads, demo LLM, GGUF, SmolLM2.

    Exit code 2: a check failed.
    """
    with plain_errors(again=None):
        from fedproxy_secure.cli.doctor import checks

        bad = 0
        for check in checks(Path("runs")):
            bad += not check.ok
            typer.echo(f"{'ok ' if check.ok else 'BAD'}  {check.name}: {check.found}")
        if bad:
            raise FedProxyError(f"{bad} of the checks above failed")
