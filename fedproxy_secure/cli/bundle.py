"""The commands `evidence bundle` and `evidence verify`: one archive of a run that an outsider can check.

Exit codes of `verify`: 0 as the owner of the key made it; 1 it is not; 2 a wrong option, or no bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors

BROKEN = 1

evidence_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Pack what a run proves into one signed archive, and check such an archive.",
)


@evidence_app.command("bundle")
def bundle_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished `run` or `matrix`.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The archive to write.")],
    policy: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="Judge the report by this policy, or a shipped one."),
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The key that signed the run; left out, the run's own beside its folder."
        ),
    ] = None,
) -> None:
    """Pack report, audit log, epsilon, threat models, SBOM, model cards and signatures for an outsider.

    The folder must be unchanged since it was signed. The bundle's in-toto statements, in DSSE envelopes,
    are signed with the same key. A bundle contains no record, transcript, weight, private key or client's
    path. Equal runs give byte-identical bundles. Needs the extra `evidence`.

    Example: `fedproxy-secure evidence bundle runs/demo --out demo.evidence.zip --policy research`
    """
    with plain_errors(again=None):
        from fedproxy_secure.bundle.build import make_bundle
        from fedproxy_secure.gate.policy import find_policy

        rules = None if policy is None else find_policy(policy)
        bundle = make_bundle(run, out, policy=rules, key=signing_key)
        typer.echo(f"{out}: {bundle.files} files, SHA-256 {bundle.sha256}")
        typer.echo(f"signed by {bundle.signer}; pass this key on by another channel than the bundle")


@evidence_app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `evidence bundle` wrote.")],
    key: Annotated[
        str,
        typer.Option(
            metavar="PUB", help="The signer's public key, in hex or a file, from a source you trust."
        ),
    ],
) -> None:
    """Check a bundle: signatures, hashes, no extra or missing file, statements that match the report.

    Needs the public key and nothing else: no network, no run, no extra. Exit code 0: the bundle is as the
    owner of the key made it. 1: it is not. 2: a wrong option, a file that is no bundle, or an
    error of this program.

    Example: `fedproxy-secure evidence verify demo.evidence.zip --key me.key.pub`
    """
    with plain_errors(again=None, verdict=True):
        from fedproxy_secure.audit.keys import parse_public
        from fedproxy_secure.bundle.verify import verify_bundle
        from fedproxy_secure.crypto.primitives import key_id
        from fedproxy_secure.runtime.escape import printable

        public = parse_public(key)
        result = verify_bundle(file, public)
        for line in result.problems:
            typer.echo(f"BAD   {printable(line)}")
        typer.echo(
            f"{result.files} files, {result.statements} statements verified, "
            f"head {printable(result.head) or '-'}"
        )
        # of a key that did not sign, the id alone: it may be a private key, given by mistake
        signer = f"the key whose id begins with {key_id(public)[:16]}" if result.problems else public.hex()
        typer.echo(f"expected signer: {signer}")
    raise typer.Exit(BROKEN if result.problems else 0)
