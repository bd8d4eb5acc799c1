"""A site's policy as its node uses it: `client.yaml`, with the folders of keys and ledger filled in.

The module also lists where the policy differs from the owner's proposal (`differences`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedproxy_secure.config import OWN
from fedproxy_secure.deploy.site import Site
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy, policy_of
from fedproxy_secure.runtime.artifacts import private_folder
from fedproxy_secure.runtime.untrusted import parse_yaml, yaml_reason

FILE = "policy.yaml"


def effective_policy(site: Site) -> ClientPolicy:
    """Return a site's policy.

    Raises `ConfigError` if `client.yaml` is missing or wrong, names another client, or combines settings
    that cannot give the protection it names.
    """
    file = site.client_file
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: is missing; `deploy accept` a kit, which proposes one") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {yaml_reason(error)}") from None
    if not isinstance(raw, dict) or not all(isinstance(raw.get(s), dict) for s in ("protect", "privacy")):
        raise ConfigError(f"{file}: must hold a policy, with sections protect and privacy")
    raw["protect"] |= {"keys": str(site.keys.resolve())}
    raw["privacy"] |= {"ledger": str(site.ledger.resolve())}
    policy = policy_of(raw, file=file)
    if policy.client.name != site.name:
        raise ConfigError(f"{file}: client.name={policy.client.name}: must be {site.name}")
    if policy.audit.record or policy.audit.canaries:
        raise ConfigError(f"{file}: audit: must not set record or canaries at a site; leave both out")
    return policy


def write_effective_policy(site: Site) -> Path:
    """Write the policy for the node, and return its file. Raises what `effective_policy` does."""
    policy = effective_policy(site)
    if policy.privacy.unit != "none":
        private_folder(site.ledger)
    policy.write(site.folder / FILE)
    return site.folder / FILE


def differences(proposal: ClientPolicy, policy: ClientPolicy) -> list[str]:
    """Return the differences between the owner's proposal and the site's policy, one line each."""
    requested, granted = _flat(proposal), _flat(policy)
    return [
        f"{name}: the job has {requested.get(name)!r}, client.yaml has {granted.get(name)!r}"
        for name in sorted({*requested, *granted})
        if requested.get(name) != granted.get(name)
    ]


def _flat(policy: ClientPolicy) -> dict[str, Any]:
    """Return the settings that must be the same at both parties, by dotted name."""
    values = policy.without(OWN)
    del values["client"]  # its name, which the kit is made for
    flat: dict[str, Any] = {"seeds": list(policy.seeds)}
    for section, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{section}.{name}": inner for name, inner in value.items()}
        else:
            flat[section] = value
    return flat
