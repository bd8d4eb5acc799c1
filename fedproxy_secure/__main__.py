"""`python -m fedproxy_secure`: the same as the command `fedproxy-secure`."""

from fedproxy_secure.cli.app import app

app(prog_name="fedproxy-secure")
