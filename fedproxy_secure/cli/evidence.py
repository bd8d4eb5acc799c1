"""The commands `gate` and `audit`: judge a report, and check that a run's folder is as it was written.

Exit codes of both: 0 fine; 1 a rule was broken, or something was tampered with; 2 a wrong option or file; 3
evidence is missing or inconclusive, something is not signed, or the expected signer was not named.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import AuditError, ConfigError, RunFolderError
from fedproxy_secure.runtime.files.names import AUDIT_LOG, REPORT_JSON, SIGNATURE

if TYPE_CHECKING:
    from fedproxy_secure.audit.verify import Verified
    from fedproxy_secure.gate.judge import Judgement, Signed

BROKEN, UNSETTLED = 1, 3
FORMATS = ("table", "markdown", "json")

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="PUB", help="The signer's public key, in hex or a file, from a source you trust."
    ),
]


def gate(
    report: Annotated[Path, typer.Option(metavar="FILE", help="A `report.json`.")],
    policy: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="A policy, or a shipped one: `release`, `research`.")
    ],
    key: KeyOption = None,
    format: Annotated[str, typer.Option(metavar="table|markdown|json", help="How to print it.")] = "table",
) -> None:
    """Check that every configuration of a report keeps every rule of a policy; made for CI.

    Exit code 0: all rules are kept. 1: a rule is broken. 3: evidence is missing or inconclusive, or the
    report cannot be read. 2: a wrong option or policy, no such file, or an error of this program.

    Example: `fedproxy-secure gate --report runs/demo/report.json --policy research`
    """
    with plain_errors(again=None, verdict=True):
        from dataclasses import replace

        from fedproxy_secure.audit.keys import parse_public
        from fedproxy_secure.gate.judge import judge
        from fedproxy_secure.gate.policy import find_policy, load_policy
        from fedproxy_secure.report.report import Report
        from fedproxy_secure.runtime.artifacts import read_file
        from fedproxy_secure.runtime.escape import printable

        if format not in FORMATS:
            raise ConfigError(f"--format {format}: must be {', '.join(FORMATS)}")
        if report.is_dir():
            raise ConfigError(
                f"--report {report}: is a folder; must be a file: give {report / REPORT_JSON}"
            )
        if not report.is_file():
            raise ConfigError(f"--report {report}: there is no such file")
        rules = load_policy(find_policy(policy))
        if key is not None:
            rules = replace(rules, require_signed_audit=True, signer=parse_public(key).hex())
        try:
            raw = read_file(report)  # once: what is judged is what must be signed
            loaded = Report.parse(raw, report)
        except RunFolderError as error:
            typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(UNSETTLED) from None
        signed = signed_as(report, raw) if rules.require_signed_audit else None
        judgement = judge(loaded, rules, signed=signed)
        _print(judgement, format)
    raise typer.Exit(judgement.exit_code)


audit_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Check that a run's folder is as it was written: its log is a signed chain, its report is signed. "
    "Erase the records in it.",
)


@audit_app.command("verify")
def verify_command(folder: Annotated[Path, typer.Argument(metavar="DIR")], key: KeyOption = None) -> None:
    """Find altered, missing, moved or cut-off lines of a run's audit log, and altered files.

    DIR is a folder that `run` or `matrix` wrote. Exit code 0: everything is as the owner of the key in
    --key wrote it. 1: something was altered. 3: the folder is consistent, but --key was not given, so the
    signer is unverified (anybody can forge a folder and sign it with another key); or part of the folder is
    not signed, as during a run. 2: a wrong option or file, or an error of this program.

    Example: `fedproxy-secure audit verify runs/demo --key me.key.pub`
    """
    with plain_errors(again=None, verdict=True):
        from fedproxy_secure.audit.keys import parse_public
        from fedproxy_secure.audit.verify import verify_run
        from fedproxy_secure.runtime.escape import printable

        result = verify_run(folder, key=None if key is None else parse_public(key))
        for line in result.problems:
            typer.echo(f"BAD   {printable(line)}")
        for line in result.unsettled:
            typer.echo(f"open  {printable(line)}")
        typer.echo(f"{result.lines} lines, {result.files} files, head {printable(result.head)}")
        typer.echo(_signer(result))
    raise typer.Exit(BROKEN if result.problems else 0 if result.verified else UNSETTLED)


@audit_app.command("keygen")
def keygen_command(
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File for the private key; neither it nor FILE.pub may exist."),
    ],
) -> None:
    """Make a key that signs audit logs and reports; its public half goes to FILE.pub.

    Use it with `--signing-key FILE` of `run` and `matrix`, and give others the public half beforehand.

    Example: `fedproxy-secure audit keygen --out me.key`
    """
    with plain_errors(again=None):
        from fedproxy_secure.audit.keys import PUBLIC_SUFFIX, make_key

        public = make_key(out)
        typer.echo(f"private key: {out}; public key: {out}{PUBLIC_SUFFIX}: {public.hex()}")


@audit_app.command("show")
def show_command(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Print a run's audit log, one line per event. The log is not checked: `audit verify` does that.

    Example: `fedproxy-secure audit show runs/demo`
    """
    with plain_errors(again=None):
        from fedproxy_secure.audit.chain import parse_line
        from fedproxy_secure.audit.examine import read_log
        from fedproxy_secure.audit.show import event_text

        *whole, unfinished = read_log(folder).split(b"\n")
        for number, line in enumerate(whole, start=1):
            try:
                typer.echo(event_text(parse_line(line)))
            except AuditError as error:
                raise AuditError(f"{folder / AUDIT_LOG}: line {number}: {error}") from None
        if unfinished:
            typer.echo(f"line {len(whole) + 1} is cut short: it is being written, or the run was killed")


@audit_app.command("erase")
def erase_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    signing_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key that signed the log. Default: DIR.audit.key."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, not only say what would go.")] = False,
) -> None:
    """Delete the transcripts of a finished run or matrix: records and updates in the clear.

    The signed log names the files that were erased, and the report is signed again, so that `audit verify`
    still passes. The run cannot be attacked any more. Copies and backups are not touched.

    Example: `fedproxy-secure audit erase runs/attacked --yes`
    """
    with plain_errors(again=None):
        from fedproxy_secure.audit.erase import erase_transcripts, transcripts_of
        from fedproxy_secure.audit.keys import own_key_file

        transcripts = transcripts_of(folder)
        for name in transcripts.others:
            typer.echo(f"left: {name} has not finished; its transcript goes with its folder", err=True)
        if not transcripts.begun:
            raise AuditError(
                f"{folder}: has no transcript that can be erased; a run has one with --record or --suite, "
                "and in its own folder unless audit.folder names another"
            )
        size = f"{transcripts.files:,} files of transcripts, {transcripts.bytes / 1e6:.1f} MB"
        if not yes:
            typer.echo(f"would delete {size}; nothing was erased; add --yes")
            return
        head = erase_transcripts(folder, own_key_file(folder) if signing_key is None else signing_key)
        typer.echo(f"deleted {size}; the report is signed over the audit log's head {head}")


def signed_lines(folder: Path) -> list[str]:
    """Return a line that says who signed a run's report, for readers who pin the key; [] if nobody did."""
    from fedproxy_secure.audit.seal import read_seal

    seal = read_seal(folder)
    return [] if seal is None else [f"signed by {seal.public_key} over the audit log's head {seal.head}"]


def signed_as(report: Path, raw: bytes) -> Signed | None:
    """Return what is known of the signature of `raw`, read from the file `report`; None if there is none.

    Whoever can write to the folder may change the report between two reads. Therefore the signature must
    match the bytes in `raw`, not the current content of the file.
    """
    from fedproxy_secure.audit.verify import verify_run
    from fedproxy_secure.gate.judge import Signed

    if report.name != REPORT_JSON:
        return None
    try:
        result = verify_run(report.parent)
    except AuditError:
        return None
    problems = result.problems
    if not problems and result.sealed and result.sealed.get(REPORT_JSON) != hashlib.sha256(raw).hexdigest():
        problems = (f"{REPORT_JSON}: was altered: its content does not match {SIGNATURE}",)
    signer = None if result.public is None else result.public.hex()
    return Signed(problems=problems, unsettled=result.unsettled, signer=signer)


def _signer(result: Verified) -> str:
    if result.public is None:
        return "signer: none is named"
    if result.pinned:
        return f"signer: {result.public.hex()}, as expected"
    return (
        f"signer: {result.public.hex()}, not verified: anybody may have re-signed this folder; pass the "
        "expected key with --key PUB"
    )


def _print(judgement: Judgement, format: str) -> None:
    from rich.console import Console

    from fedproxy_secure.gate.table import json_gate, markdown_gate, rich_gate, summary

    if format == "json":
        typer.echo(json_gate(judgement), nl=False)
    elif format == "markdown":
        typer.echo(markdown_gate(judgement), nl=False)
    else:
        console = Console()
        console.print(rich_gate(judgement))
        console.print(summary(judgement), markup=False, highlight=False, soft_wrap=True)
