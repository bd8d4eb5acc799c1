"""The installed command, as a user calls it."""

import subprocess
import sys


def run_command(*arguments: str) -> None:
    """Run it without its output on the terminal; raises if it does not end with 0."""
    subprocess.run(
        [sys.executable, "-m", "fedproxy_secure", *arguments], check=True, stdout=subprocess.DEVNULL
    )
