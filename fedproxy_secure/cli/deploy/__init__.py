"""The commands `deploy ...`: an owner and her clients on machines of their own.

Exit code 0: done; 2: an error that must be repaired, explained in one line; 75: a round was aborted because
of too few clients, or another process holds the folder, so the same command may succeed later; 130:
interrupted; 143: stopped by SIGTERM, which `deploy stop` sends.
"""

from __future__ import annotations

import typer

from fedproxy_secure.cli.deploy import both, owner, site

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Run a federation of an owner and her clients on machines of their own.\n\n"
    "Owner: `init`, `approve` the sites' requests, `kit`, `run`. Site: `join`, `accept` the kit, "
    "`preflight`, `start`. Private keys are created on the machine that uses them and never leave it.",
)
app.command("init")(owner.init)
app.command("join")(site.join)
app.command("approve")(owner.approve)
app.command("kit")(owner.kit)
app.command("accept")(site.accept)
app.command("preflight")(site.preflight)
app.command("start")(site.start)
app.command("run")(owner.run_command)
app.command("status")(both.status)
app.command("stop")(both.stop)
app.command("rotate")(both.rotate)
app.command("revoke")(owner.revoke)
