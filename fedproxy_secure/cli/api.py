"""The commands `api open`, `api ask` and `api ledger`: the fused LLM of a run, asked through its policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.files.names import FUSED, seed_folder

if TYPE_CHECKING:
    from fedproxy_secure.config import ApiConfig
    from fedproxy_secure.serve.disclosure import ApiAnswer
    from fedproxy_secure.serve.ledger import QueryLedger

MOST_BYTES = 2**20  # of a text that is read from a file
SHOWN = 5  # tokens whose probabilities are printed, of those that are told

api_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Query a run's fused LLM as a customer would: the section `api` of the run's settings limits what "
    "is returned, and how often. This does not protect the model from whoever runs these commands.",
)
RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's folder.")]
LedgerOption = Annotated[
    Path | None,
    typer.Option(
        "--ledger", metavar="FILE", help="The query ledger. Default: `DIR.queries`, beside the run."
    ),
]


@api_app.command("open")
def open_command(run: RunOption, ledger: LedgerOption = None) -> None:
    """Create the query ledger of a new API; fails if there is one already.

    The ledger also holds the secret key of the noise. Keep the file: without it the API answers no query.

    Example: `fedproxy-secure api open --run runs/demo`
    """
    with plain_errors(again=None):
        from fedproxy_secure.serve.ledger import QueryLedger

        policy = _policy(run)
        made = QueryLedger.create(_ledger(run, ledger).file)
        typer.echo(policy.says)
        typer.echo(f"ledger: {made.file}")


@api_app.command("ask")
def ask_command(
    run: RunOption,
    customer: Annotated[str, typer.Option(metavar="NAME", help="Who asks.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Read the text from a file, or from standard input (-), in TEXT's place."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to write.")] = 16,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which seed's fused LLM answers. Default: the run's first.")
    ] = None,
    ledger: LedgerOption = None,
) -> None:
    """Continue a text with the fused LLM; print what the policy discloses of each token, likeliest first.

    Every user of the machine can read TEXT in the process list (`ps`), and it is kept in the shell's
    history. To pass a customer's text, use `--file -` instead.

    One call counts as one query; its tokens are those of the text plus `--tokens`. The ledger counts the
    query before anything is computed, and refuses it if it would exceed a limit.

    Example: `fedproxy-secure api ask "The clinic in" --run runs/demo --customer acme`
    """
    with plain_errors(again=None):
        from fedproxy_secure.config import settings_in
        from fedproxy_secure.data.encode import prompt_ids
        from fedproxy_secure.runtime.escape import printable
        from fedproxy_secure.serve.service import OwnersApi

        asked = _asked_text(text, file)
        policy = _policy(run)
        number = settings_in(run).seeds[0] if seed is None else seed
        folder = run / seed_folder(number) / FUSED
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no fused LLM; finish the run, or choose another --seed")
        api = OwnersApi(folder, policy=policy, ledger=_ledger(run, ledger))
        told = api.write(customer, prompt_ids(asked, api.tokenizer), count=count)
        typer.echo(printable(api.tokenizer.decode(told.likeliest.tolist())))
        for line in _numbers(told, api.tokenizer):
            typer.echo(printable(line))
        typer.echo(f"{customer}: {api.asked(customer).text(policy)}")


@api_app.command("ledger")
def ledger_command(run: RunOption, ledger: LedgerOption = None) -> None:
    """Print how many queries and tokens each customer has used, and the limits.

    Example: `fedproxy-secure api ledger --run runs/demo`
    """
    with plain_errors(again=None):
        policy, opened = _policy(run), _ledger(run, ledger)
        customers = opened.customers()
        for name, asked in customers.items():
            typer.echo(f"{name}: {asked.text(policy)}")
        if not customers:
            typer.echo("no queries yet")


def _asked_text(text: str | None, file: str | None) -> str:
    """Return the text that is asked. Raises `ConfigError` unless there is one, and it can be read."""
    if (text is None) == (file is None):
        raise ConfigError("TEXT, --file: must be exactly one; pass a customer's text with `--file -`")
    if text is not None:
        return text
    assert file is not None
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as opened:
            raw = opened.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ConfigError(f"--file {file}: has more than {MOST_BYTES:,} bytes; ask a shorter text")
        return raw.decode().removesuffix("\n")
    except OSError as error:
        raise ConfigError(f"--file {file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--file {file}: is not UTF-8 at byte {error.start}") from None


def _policy(run: Path) -> ApiConfig:
    """Return what the run's settings say of its API. Raises `RunFolderError` for a folder that has none."""
    from fedproxy_secure.config import settings_in

    return settings_in(run).api


def _ledger(run: Path, file: Path | None) -> QueryLedger:
    from fedproxy_secure.serve.ledger import QueryLedger, own_ledger_file

    return QueryLedger(file=own_ledger_file(run) if file is None else file)


def _numbers(told: ApiAnswer, tokenizer: Any) -> list[str]:
    """Return a line for each written token: the likeliest that were told, with their probabilities."""
    if told.numbers is None:
        return []
    likeliest = told.numbers.log_softmax(-1) if told.tokens is None else told.numbers
    best = likeliest.topk(min(SHOWN, likeliest.shape[-1]), dim=-1)
    tokens = best.indices if told.tokens is None else told.tokens.gather(-1, best.indices)
    return [
        "  ".join(
            f"{tokenizer.decode([t])!r} {p:.3f}" for t, p in zip(row, logs.exp().tolist(), strict=True)
        )
        for row, logs in zip(tokens.tolist(), best.values, strict=True)
    ]
