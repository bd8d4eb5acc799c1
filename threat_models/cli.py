"""The command `fedproxy-secure threat-model`: who attacks and what they hold."""

from __future__ import annotations

import typer

from fedproxy_secure.cli.errors import plain_errors

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Who attacks, what they hold, what is not covered."
)


@app.command("list")
def list_command() -> None:
    """List all threat models: name and title."""
    with plain_errors(again=None):
        from threat_models import every

        for name, model in every().items():
            typer.echo(f"{name:<27} {model.title}")


@app.command()
def show(name: str) -> None:
    """Show one threat model: capabilities, assumptions, what it is not meant to show, the attacks that fit.

    Example: `fedproxy-secure threat-model show server`
    """
    with plain_errors(again=None):
        from fedproxy_secure.runtime.registry import answers_of
        from threat_models import get

        model = get(name)
        typer.echo(model.text())
        for lines in answers_of("fedproxy_secure.attacks_that_fit", model):
            typer.echo("attacks that fit:")
            for line in lines:
                typer.echo(f"  - {line}")
