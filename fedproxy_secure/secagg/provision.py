"""Keys for a federation: one identity a client, and the roster that all of them share.

    roster.json     every client's public key; the same file for the server and all clients
    NAME.key        one client's private key, readable by its owner alone (mode 0600)

In production each client makes its own key and sends the public half over a channel that the server does
not control; `provision` makes all of them in one place, for a federation on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.secagg.primitives import KEY_BYTES, fresh_secret, signing_public
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.terms import Roster

ROSTER = "roster.json"


def provision(clients: Sequence[str], folder: Path) -> Roster:
    """Write a new roster and one key file a client into `folder`.

    Raises `ConfigError` if there are keys already, or the folder cannot be written: keys are never
    overwritten, because a roster that others hold would no longer match.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if taken := [f.name for f in folder.iterdir() if f.name == ROSTER or f.suffix == ".key"]:
            raise ConfigError(f"{folder}: has {sorted(taken)[0]} already; keys are never overwritten")
        keys = {name: fresh_secret() for name in clients}
        for name, key in keys.items():
            descriptor = os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key.reveal().hex().encode() + b"\n")
        roster = Roster(members={name: signing_public(key) for name, key in keys.items()})
        (folder / ROSTER).write_text(roster.to_json(), encoding="utf-8")
        return roster
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def load_roster(folder: Path) -> Roster:
    """The roster in a folder of keys."""
    return Roster.load(folder / ROSTER)


def load_identity(folder: Path, client: str, roster: Roster) -> Secret:
    """A client's private key.

    Raises `ConfigError` if others may read the file, it holds no key, or it is not the roster's.
    """
    file = folder / f"{client}.key"
    try:
        mode = file.stat().st_mode & 0o777
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a key: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"{file}: has mode {mode:o}; must be 600, readable by its owner alone")
    try:
        key = Secret(bytes.fromhex(text))
    except ValueError:
        raise ConfigError(f"{file}: is not a key") from None
    if len(key.reveal()) != KEY_BYTES:
        raise ConfigError(f"{file}: is not a key")
    if roster.members.get(client) != signing_public(key):
        raise ConfigError(f"{file}: is not the key that the roster has for {client}")
    return key
