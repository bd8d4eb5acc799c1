"""The command `fedproxy-secure`: reads settings, calls the library, prints what came out.

Exit codes: 0 done; 2 a wrong setting, file or installation, explained in one line; 130 interrupted.
Everything heavy is imported inside the commands, so that `--help` does not load torch.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console

from fedproxy_secure import __version__, cli_evidence
from fedproxy_secure.cli_errors import plain_errors
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.errors import ConfigError, FedProxyError, RunFolderError

if TYPE_CHECKING:
    from fedproxy_secure.progress import Progress
    from fedproxy_secure.report.report import Report

PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed; source tree
QUIET = {  # of the libraries below: a user's own setting wins
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
COMMANDS = "fedproxy_secure.commands"

app = typer.Typer(
    name="fedproxy-secure",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Tune an LLM with the private data of many clients; the whole LLM stays on its server.\n\n"
    "The server compresses its LLM to a proxy, clients tune the proxy on their records, the server "
    "merges their updates and plugs them back into the LLM.\n\n"
    "Start here: `fedproxy-secure compare quickstart`",
)

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
    typer.Option("--out", metavar="DIR", help="Where to write. Default: `runs/` and the config's name."),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what is in DIR already; the settings must be the same."),
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
        help="Signs the audit log and the report; made by `audit keygen`. Default: a key of the run's own.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would do and need, then stop.")
]


class _Work(Protocol):
    def __call__(
        self,
        config: Config,
        out: Path,
        *,
        resume: bool,
        progress: Progress | None,
        command: str,
    ) -> Report: ...


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if version:
        typer.echo(f"fedproxy-secure {__version__}")
        raise typer.Exit


@app.command("run")
def run_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    record: RecordOption = False,
    suite: Annotated[
        str,
        typer.Option(metavar="none|smoke|standard|full", help="Then attack the run; implies `--record`."),
    ] = "none",
    signing_key: SigningKeyOption = None,
) -> None:
    """Run FedProxy once per seed: compress, federate, fuse, evaluate; ends with the trilemma of the run.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    Example: `fedproxy-secure run quickstart --set federate.rounds=2`
    """
    recording = ["audit.record=true"] if record or suite != "none" else []
    attacks = [] if suite == "none" else [f"matrix.suite={suite}"]
    more = [*recording, *attacks, *_signed_with(signing_key)]
    _start("run", config, [*(changes or []), *more], out, resume, dry_run, suite)


@app.command("compare")
def compare_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run FedProxy and the methods it is compared with, on the same data and seeds.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    Its section `compare` says which methods, which remove ratios and how many processes.

    Example: `fedproxy-secure compare quickstart --out runs/first`
    """
    _start("compare", config, changes or [], out, resume, dry_run)


@app.command("matrix")
def matrix_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    signing_key: SigningKeyOption = None,
) -> None:
    """Sweep protection x remove ratio x fusion x adapter x seed; run, attack and measure every cell.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    Its section `matrix` says what is swept, which suite of attacks runs and how many processes. A cell that
    fails stands in the report and stops nothing.

    Example: `fedproxy-secure matrix demo_matrix --out runs/first`
    """
    _start("matrix", config, [*(changes or []), *_signed_with(signing_key)], out, resume, dry_run)


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the report.")] = Path(
        "runs/joined"
    ),
) -> None:
    """Join runs and matrices into one report: tables, `report.html`, `report.json`, `report.sarif`.

    DIR... are folders that `run` or `matrix` wrote. Runs of the same settings become one configuration over
    their seeds.

    Example: `fedproxy-secure report runs/a runs/b --out runs/both`
    """
    with plain_errors(again=None):
        from fedproxy_secure.join import join

        typed = shlex.join(["fedproxy-secure", "report", *map(str, folders), "--out", str(out)])
        _show(join(folders, out, command=typed), out)


@app.command("pretrain-demo")
def pretrain_demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the model and its tokenizer.")
    ] = Path("runs/demo_llm"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps, of 2048 tokens each.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
) -> None:
    """Train the small demo LLM from nothing, as the shipped one was; tens of minutes on a CPU.

    Use it with `--set model.path=DIR`.

    Example: `fedproxy-secure pretrain-demo --steps 200 --out runs/tiny`
    """
    with plain_errors(again=None):
        from fedproxy_secure.cli_progress import shown_on
        from fedproxy_secure.world.pretrain import pretrain, save_demo_llm

        try:  # before the training, not after it
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{out}: cannot be written: {error.strerror}") from error
        with shown_on(Console(stderr=True)) as progress:
            task = "pre-training"
            progress.start(task, steps)
            model, tokenizer = pretrain(
                steps=steps,
                seed=seed,
                on_step=lambda _, loss: progress.advance(task, note=f"loss {loss:.3f}"),
            )
            progress.done(task)
        save_demo_llm(model, tokenizer, out)
        typer.echo(f"demo LLM: {out}")


@app.command()
def doctor() -> None:
    """Check this installation: Python, packages, device, demo LLM, threads, disk.

    Ends with exit code 2 if something needs mending.
    """
    with plain_errors(again=None):
        from fedproxy_secure.doctor import checks

        bad = 0
        for check in checks(Path("runs")):
            bad += not check.ok
            typer.echo(f"{'ok ' if check.ok else 'BAD'}  {check.name}: {check.found}")
        if bad:
            raise FedProxyError(f"{bad} of the checks above failed")


@app.command()
def provision(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the keys; must hold none.")] = Path(
        "keys"
    ),
) -> None:
    """Make the roster and, for each client, a private key, its journal and its policy.

    The keys serve federations on this machine: use them with `--set protect.keys=DIR`. Without, `run`
    makes fresh keys every time. Clients on machines of their own make their keys there, and only the public
    halves come together in the roster.

    A journal remembers what its key has answered and stays beside it for good. A policy, NAME.policy.yaml,
    says all that a server may ask of a client: read it, set where the records lie, and start the node with
    `--node-config 'policy="NAME.policy.yaml"'`.

    Example: `fedproxy-secure provision quickstart --out keys`
    """
    with plain_errors(again=None):
        from fedproxy_secure.federate.client_policy import policy_for
        from fedproxy_secure.federate.job import FederationJob
        from fedproxy_secure.secagg.provision import provision as make_keys

        settings = load_config(find_config(config))
        clients = settings.data.clients
        roster = make_keys([c.name for c in clients], out)
        protect = settings.protect.model_copy(update={"keys": str(out.resolve())})
        privacy = settings.privacy
        if privacy.unit != "none" and privacy.ledger is None:
            privacy = privacy.model_copy(update={"ledger": str(out.resolve())})
        settings = settings.model_copy(update={"protect": protect, "privacy": privacy})
        job = FederationJob.from_config(settings, seed=settings.seeds[0])
        for index, client in enumerate(clients):
            policy_for(job, index, seeds=settings.seeds).write(out / f"{client.name}.policy.yaml")
        typer.echo(f"keys, journals and policies of {len(roster.members)} clients, and the roster: {out}")


@app.command()
def selftest(
    protocol: Annotated[
        bool,
        typer.Option(
            "--protocol", help="Masking, journals, policies, ledger and proxies; as yet there is no other."
        ),
    ] = False,
) -> None:
    """Attack this installation; every attack must fail, except on parties with a check taken out.

    First the masking protocol alone, then servers, proxies, Sybils and clients that deviate, over Flower
    messages in this process, with two blocks of the demo LLM: about half a minute. A line with `--` is an
    attack that nothing here stops, and what bounds it.

    Ends with exit code 2 if an attack succeeds, or if one that must succeed does not.
    """
    with plain_errors(again=None):
        from fedproxy_secure.secagg.selftest import Finding, findings

        counts = {"ok ": 0, "-- ": 0, "BAD": 0}

        def show(finding: Finding) -> None:
            mark = "BAD" if not finding.ok else "-- " if finding.limit else "ok "
            counts[mark] += 1
            typer.echo(f"{mark}  {finding.adversary}: {finding.attempt}: {finding.found}")

        for finding in findings():
            show(finding)
        from fedproxy_secure.flower.selftest import findings as over_flower

        for finding in over_flower():
            show(finding)
        typer.echo(f"{counts['ok ']} attempts as they must be, {counts['-- ']} known limits (--)")
        if counts["BAD"]:
            raise FedProxyError(f"{counts['BAD']} of the attempts above did not go as they must")


def add_commands(to: typer.Typer) -> None:
    """Commands of packages above this one, and of others, by the entry point group `COMMANDS`.

    This package does not know who attacks it, so it cannot name them.
    """
    for point in entry_points(group=COMMANDS):
        to.add_typer(point.load(), name=point.name)


def find_config(name: str, folders: Sequence[Path] = CONFIG_FOLDERS) -> Path:
    """The file called `name`, or the shipped one of that name, with or without `.yaml`.

    Raises `ConfigError` that names the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    near = difflib.get_close_matches(name, list(shipped), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; shipped: {', '.join(shipped) or 'none'}"
    raise ConfigError(f"{name}: there is no such file or shipped config{hint}")


def _start(
    command: str,
    name: str,
    changes: list[str],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    suite: str = "none",
) -> None:
    """What `run`, `compare` and `matrix` share: settings in, progress meanwhile, table and report out."""
    with plain_errors(again=None):
        config = load_config(find_config(name), changes)
    folder = out or Path("runs") / config.name
    typed = _typed(command, name, changes, folder, suite)
    with plain_errors(again=f"{typed} --resume"):
        if dry_run:
            for label, value in _plan_rows(command, config):
                typer.echo(f"{label}: {value}")
            return
        from fedproxy_secure.cli_progress import shown_on

        work = _work(command)
        with shown_on(Console(stderr=True)) as progress:
            report = work(config, folder, resume=resume, progress=progress, command=typed)
            if suite != "none":
                from fedproxy_secure.attacked import attacked_report

                report = attacked_report(config, folder, progress=progress, command=typed)
        _show(report, folder)


def _plan_rows(command: str, config: Config) -> list[tuple[str, str]]:
    from fedproxy_secure.comparison import plan_rows
    from fedproxy_secure.run_plan import plan

    if command == "matrix":
        from fedproxy_secure.matrix import plan_rows as matrix_rows

        return [*matrix_rows(config), *plan(config).rows()]
    return [*(plan_rows(config) if command == "compare" else []), *plan(config).rows()]


def _work(command: str) -> _Work:
    if command == "compare":
        from fedproxy_secure.comparison import compare

        return compare
    if command == "matrix":
        from fedproxy_secure.matrix import matrix

        return matrix
    from fedproxy_secure.runs import run

    return run


def _show(report: Report, folder: Path) -> None:
    from fedproxy_secure.escape import printable
    from fedproxy_secure.report.page import HTML_NAME
    from fedproxy_secure.report.table import rich_table
    from fedproxy_secure.report.trilemma_table import rich_trilemma

    console = Console()
    if report.rows:
        console.print(rich_table(report))
    if report.configurations:
        console.print(*rich_trilemma(report.configurations, width=console.width))
    for configuration in report.configurations:
        for line in (*configuration.unsafe, *configuration.failed):
            console.print(printable(f"{configuration.name}: {line}"), markup=False, highlight=False)
    for note in (*report.composition, *report.notes):
        console.print(printable(f"note: {note}"), markup=False, highlight=False)
    console.print(f"report: {folder / HTML_NAME}", markup=False, highlight=False, soft_wrap=True)
    for line in cli_evidence.signed_lines(folder):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _signed_with(key: Path | None) -> list[str]:
    return [] if key is None else [f"audit.signing_key={json.dumps(str(key))}"]


def _typed(command: str, name: str, changes: list[str], folder: Path, suite: str = "none") -> str:
    sets = [part for change in changes for part in ("--set", change)]
    attacks = [] if suite == "none" else ["--suite", suite]
    return shlex.join(["fedproxy-secure", command, name, *sets, *attacks, "--out", str(folder)])


app.command("gate")(cli_evidence.gate)
app.add_typer(cli_evidence.audit_app, name="audit")
add_commands(app)
