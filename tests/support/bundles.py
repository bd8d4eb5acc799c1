"""The policy and the statements of bundles that tests make, and what is found in altered ones."""

import json

from fedproxy_secure.bundle import archive
from fedproxy_secure.gate.policy import find_policy

RESEARCH = find_policy("research")
STATEMENTS = (archive.CONTENTS, archive.FINDINGS, archive.GATE)


def problems(outcome):
    code, lines = outcome
    assert code == 1
    return [line.removeprefix("BAD   ") for line in lines if line.startswith("BAD")]


def altered(files, name, change):
    value = json.loads(files[name])
    change(value)
    return {**files, name: (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()}
