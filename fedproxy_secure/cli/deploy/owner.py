"""The owner's commands: `deploy init`, `approve`, `kit`, `run`, `revoke`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import ConfigArgument, SetOption, StatusPortOption, find_config, typed
from fedproxy_secure.errors import ConfigError

FederationArgument = Annotated[Path, typer.Argument(metavar="FEDERATION")]


def init(
    config: ConfigArgument,
    address: Annotated[
        str,
        typer.Option(metavar="HOST[:PORT]", help="Where sites reach this machine. Port: 9092 if left out."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The owner's new folder.")] = Path("federation"),
    changes: SetOption = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The SuperLink's certificate (PEM), if you have one; with --key and --authority.",
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    authority: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The authority that signed it (PEM).")
    ] = None,
) -> None:
    """Owner: make the folder of a federation, with its certificate authority and the key that signs kits.

    CONFIG is a YAML file of settings, or the name of a shipped one. Its clients are the sites that may ask
    to take part; the records it names for them are your own test records for their tasks.

    Example: `fedproxy-secure deploy init quickstart --address owner.example --out federation`
    """
    with plain_errors(again=None):
        from fedproxy_secure.config import load_config
        from fedproxy_secure.deploy.authority import TlsFiles
        from fedproxy_secure.deploy.federation import init as make

        own = [file for file in (certificate, key, authority) if file is not None]
        if len(own) not in (0, 3):
            raise ConfigError("--certificate, --key, --authority: must be given together")
        tls = TlsFiles(certificate=own[0], key=own[1], authority=own[2]) if own else None
        settings = load_config(find_config(config), changes)
        federation = make(settings, out, address=address, own_certificate=tls)
        typer.echo(f"federation {federation.name} at {federation.address}: {out}")
        typer.echo(f"give each site the key on {out / 'card.txt'}, on another channel than its kit")


def approve(
    federation: FederationArgument,
    requests: Annotated[list[Path], typer.Argument(metavar="REQUEST...")],
    fingerprints: Annotated[
        list[str] | None,
        typer.Option(
            "--fingerprint",
            metavar="FP",
            help="The fingerprint that the site gave you, in upper or lower case; repeat for each request. "
            "Without this option, on a terminal, the command shows it and asks you to confirm it.",
        ),
    ] = None,
) -> None:
    """Owner: approve the sites that sent these requests.

    An attacker who can alter a request in transit could replace the site's keys by its own. Comparing the
    fingerprint with the site over another channel, such as the telephone, rules this out.

    Example: `fedproxy-secure deploy approve federation clinic.request.json --fingerprint 1f0c-...`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.federation import open_federation
        from fedproxy_secure.deploy.members import approve as let_in
        from fedproxy_secure.deploy.members import check_approvable
        from fedproxy_secure.deploy.signed import plain, read_document
        from fedproxy_secure.deploy.site import REQUEST

        opened = open_federation(federation)
        documents = {file: read_document(file, REQUEST) for file in requests}
        confirmed = {plain(one) for one in fingerprints or []}
        for file, document in documents.items():
            name, fingerprint = check_approvable(opened, document).name, document.fingerprint
            if fingerprints is None and sys.stdin.isatty():
                if not typer.confirm(f"{name}: does the site say {fingerprint}?"):
                    raise ConfigError(f"site {name}: is not approved")
            elif fingerprints is None:
                raise ConfigError(
                    f"{file}: --fingerprint is missing; must be given off a terminal, where nobody can "
                    "confirm: ask the site for it over another channel"
                )
            elif plain(fingerprint) not in confirmed:  # not shown in the error: a user might just copy it
                raise ConfigError(
                    f"{file}: matches none of the fingerprints given by --fingerprint; it was altered in "
                    "transit, or a fingerprint was misheard: ask the site again"
                )
        for document in documents.values():
            typer.echo(f"approved {let_in(opened, document).name}")


def kit(
    federation: FederationArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]")] = None,
) -> None:
    """Owner: make the kits of the approved sites, or of the ones named.

    Every kit contains the list of members. So all sites need new kits after a site was approved or has
    rotated its keys. After a site was revoked, new kits are needed only if too few sites are left.

    Example: `fedproxy-secure deploy kit federation`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.federation import open_federation
        from fedproxy_secure.deploy.kit import make_kit
        from fedproxy_secure.deploy.members import next_epoch

        opened = open_federation(federation)
        epoch = next_epoch(opened)
        for name in names or sorted(epoch.roster.members):
            typer.echo(f"epoch {epoch.number}: {make_kit(opened, epoch, name)}")


def run_command(
    federation: FederationArgument,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to wait for the other sites once enough are there."
        ),
    ] = 120.0,
    status_port: StatusPortOption = None,
) -> None:
    """Owner: start the SuperLink and run the job with the sites of the newest kits, or resume it.

    Waits up to `federate.timeout_s` for as many sites as a round needs: `federate.min_clients`, and under
    masking and CKKS the round's threshold (more than two thirds by default). Models, report and audit log
    go to `FEDERATION/run`. Logs: `FEDERATION/superlink` and `FEDERATION/logs`.

    Example: `fedproxy-secure deploy run federation`
    """
    with plain_errors(again=typed("deploy", "run", federation, wait=f"{wait:g}", status_port=status_port)):
        from fedproxy_secure.cli.experiments import show_report
        from fedproxy_secure.cli.progress import shown_on
        from fedproxy_secure.deploy.federation import open_federation
        from fedproxy_secure.deploy.owner import run_owner

        opened = open_federation(federation)
        with shown_on(Console(stderr=True)) as progress:
            report = run_owner(
                opened,
                wait_s=wait,
                status_port=status_port,
                tell=lambda line: typer.echo(line, err=True),
                progress=progress,
                command=typed("deploy", "run", federation),
            )
        show_report(report, opened.run_folder)


def revoke(federation: FederationArgument, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Owner: revoke a site; its node is refused from the next start of `deploy run` on.

    The other sites continue without it. `deploy kit` then starts an epoch without it.

    Example: `fedproxy-secure deploy revoke federation clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.federation import open_federation
        from fedproxy_secure.deploy.members import revoke as take_out

        take_out(open_federation(federation), name)
        typer.echo(f"revoked {name}; stop and run `deploy run` again, or `deploy kit` for a new epoch")
