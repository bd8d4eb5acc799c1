"""`python -m fedproxy_secure`: the same as the command `fedproxy-secure`."""

from fedproxy_secure.cli import app

app(prog_name="fedproxy-secure")
