"""Commands of owner and site: `deploy status`, `stop`, `rotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import ConfigError

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR")]


def status(folder: FolderArgument) -> None:
    """Owner and site: show which process runs in an owner's or a site's folder, and its progress.

    Example: `fedproxy-secure deploy status clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.running import standing_of
        from fedproxy_secure.monitor.page import tables
        from fedproxy_secure.runtime.only_one import running

        process, standing = running(folder), standing_of(folder)
        typer.echo("nothing runs here" if process is None else f"runs as process {process}")
        typer.echo(f"{standing.name}: {standing.why}")
        for title, rows in tables(standing).items():
            if rows:
                typer.echo(title)
            for label, value in rows:
                typer.echo(f"  {label}: {value}")


def stop(folder: FolderArgument) -> None:
    """Owner and site: stop the process in an owner's or a site's folder; the current round can be resumed.

    Example: `fedproxy-secure deploy stop clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.federation import is_federation
        from fedproxy_secure.deploy.running import stop as end
        from fedproxy_secure.deploy.site import open_site

        if not is_federation(folder):
            open_site(folder)
        typer.echo("stopped" if end(folder) else "nothing runs here")


def rotate(
    folder: FolderArgument,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="Owner: make a new certificate authority, too, because a key may be in other hands. All "
            "sites need new kits, and a site that has accepted its own refuses the old authority.",
        ),
    ] = False,
) -> None:
    """Owner and site: make new keys for a site, or renew the certificate of an owner's SuperLink.

    A site gets new keys and a new request, which its old key vouches for. The owner approves the request
    and makes new kits, which all sites accept. An owner's certificate is renewed by the same authority, so
    no kit changes, unless `--new-authority` is given. A certificate from an authority of her own cannot be
    renewed here.

    Example: `fedproxy-secure deploy rotate clinic`
    """
    with plain_errors(again=None):
        from fedproxy_secure.deploy.authority import make_server, renew_all
        from fedproxy_secure.deploy.federation import is_federation, open_federation
        from fedproxy_secure.deploy.site import open_site, rotate_site

        if is_federation(folder):
            federation = open_federation(folder)
            if not (folder / "authority" / "authority.key").exists():
                raise ConfigError(
                    f"{folder}: its certificate was issued by your own authority; replace "
                    "authority/server.pem and authority/server.key with the renewed ones"
                )
            if new_authority:
                renew_all(folder / "authority", federation.name, [federation.host])
                typer.echo("authority and certificate are new; `deploy kit`, send every site its kit, and")
                typer.echo(
                    "restart `deploy run`; until a site has accepted it, it trusts the old authority"
                )
                return
            make_server(folder / "authority", [federation.host])
            typer.echo("certificate renewed; restart `deploy run` to use it")
            return
        if new_authority:
            raise ConfigError(f"{folder}: is a site's folder; --new-authority is the owner's")
        site, document = rotate_site(open_site(folder))
        typer.echo(f"keys of generation {site.generation}; send the owner {site.request}")
        typer.echo(f"and tell her its fingerprint: {document.fingerprint}")
