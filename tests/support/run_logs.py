"""What stands in the audit log of a run, and who signed it."""

from pathlib import Path

from fedproxy_secure.audit.chain import parse_line
from fedproxy_secure.runtime.files.names import AUDIT_LOG


def events(folder: Path):
    return [parse_line(line) for line in (folder / AUDIT_LOG).read_bytes().splitlines()]


def signer_of(folder):
    return events(folder)[0].body["public_key"]
