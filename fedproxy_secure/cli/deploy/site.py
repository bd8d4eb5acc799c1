"""A site's commands: `deploy join`, `accept`, `preflight`, `start`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import StatusPortOption, typed
from fedproxy_secure.errors import ConfigError

SiteArgument = Annotated[Path, typer.Argument(metavar="SITE")]


def join(
    name: Annotated[str, typer.Option(help="The site's name, as the owner calls this client.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The site's new folder. Default: the site's name.")
    ] = None,
) -> None:
    """Site: make this site's keys, and a request with their public halves for the owner.

    The private keys stay in the folder. Calling it again shows the same request.

    Example: `fedproxy-secure deploy join --name clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.site import join as make

        site, document = make(name, out if out is not None else Path(name))
        typer.echo(f"send the owner {site.request}")
        typer.echo(f"and tell her, on another channel, its fingerprint: {document.fingerprint}")


def accept(
    site: SiteArgument,
    file: Annotated[Path, typer.Argument(metavar="KIT")],
    owner: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The key on the owner's card, 64 hex digits; for the first kit."),
    ] = None,
    members: Annotated[
        str | None,
        typer.Option(
            metavar="FP",
            help="The fingerprint of the list of members, as other sites see it; for a kit that changes "
            "the list.",
        ),
    ] = None,
) -> None:
    """Site: accept the owner's kit, and pin her key: later kits must be signed with it.

    The kit contains the list of members, which the owner made. Compare its fingerprint with the other
    sites over another channel, to make sure that all have the same list. Otherwise the owner could fill it
    with clients of her own, and masking would hide this site's update only among those.

    Then edit `client.yaml` in the site's folder: it says where the records are, and what a server may ask.

    Example: `fedproxy-secure deploy accept clinic clinic.kit.json --owner 8a1f...`
    """
    with plain_errors(again=None):
        from fedproxy_secure.audit.keys import parse_public
        from fedproxy_secure.deploy.kit import accept as take
        from fedproxy_secure.deploy.site import open_site

        opened = open_site(site)
        taken, new_policy = take(
            opened, file, owner=None if owner is None else parse_public(owner), members=members
        )
        typer.echo(f"{taken.federation}, epoch {taken.epoch}, owner at {taken.address}")
        names = ", ".join(sorted(taken.roster.members))
        typer.echo(f"members: {names}; compare with other sites: {taken.members_fingerprint}")
        what = "proposed by the owner: edit it" if new_policy else "unchanged"
        typer.echo(f"{opened.client_file}: {what}")


def preflight(site: SiteArgument) -> None:
    """Site: check kit, keys, policy, records, disk, device, and the owner's address, certificate, clock.

    Exit code 2: a check failed. All that is sent is a request for the owner's health page; records whose
    source is `hub:NAME` are fetched from the hub, as in a run.

    Example: `fedproxy-secure deploy preflight clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.kit import needed_kit
        from fedproxy_secure.deploy.preflight import local_checks, network_checks
        from fedproxy_secure.deploy.site import open_site

        opened = open_site(site)
        kit = needed_kit(opened)
        failed = 0
        for check in (*local_checks(opened), *network_checks(kit)):
            failed += not check.ok
            typer.echo(f"{'ok ' if check.ok else 'BAD'}  {check.name}: {check.line}")
        if failed:
            raise ConfigError(f"{failed} of the checks above failed; repair what they name")


def start(
    site: SiteArgument,
    status_port: StatusPortOption = None,
    status_for_all: Annotated[
        bool,
        typer.Option(
            "--status-for-all",
            help="Let other users of this machine read the page and the metrics, which show this site's "
            "exact epsilon and so reveal how many records it has. Default on Linux: only your user may.",
        ),
    ] = False,
) -> None:
    """Site: run this site's node until it is stopped; it waits while the owner is unreachable.

    Runs in the foreground, as service managers require. Logs: `SITE/logs`.

    Example: `fedproxy-secure deploy start clinic`
    """
    again = typed("deploy", "start", site, status_port=status_port, status_for_all=status_for_all)
    with plain_errors(again=again):
        from fedproxy_secure.deploy.node import run_node
        from fedproxy_secure.deploy.site import open_site
        from fedproxy_secure.runtime.escape import printable

        run_node(
            open_site(site),
            status_port=status_port,
            status_for_all=status_for_all,
            tell=lambda line: typer.echo(printable(line)),
        )
