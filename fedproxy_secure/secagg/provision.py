"""Keys of a federation: one private key per client, and the roster of public keys that all parties share.

    roster.json     every client's public key; the same file for the server and all clients
    NAME.key        one client's private key, readable by its owner alone (mode 0600)
    NAME.journal    what that key has answered (`fedproxy_secure.journal`); always kept beside the key
    NAME.sequence   how often the journal was written, which reveals an older copy of it

`provision` makes all keys in one place, for a federation on one machine. In production each client makes
its own key and sends the public half over a channel that the server does not control.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.crypto.key_file import read_key, write_key
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.journal.newest import SUFFIX as SEQUENCE
from fedproxy_secure.journal.store import SUFFIX as JOURNAL
from fedproxy_secure.journal.store import create_journal
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg.terms import Roster


def provision(clients: Sequence[str], folder: Path) -> Roster:
    """Write one key file and one empty journal per client, and then their roster, into `folder`.

    Keys are never overwritten, because the copies of the roster that other parties hold would no longer
    match.

    Raises `ConfigError` if the folder has keys already or cannot be written, and `RunFolderError` if only
    the roster cannot be written.
    """
    check_unused(folder)
    keys = {name: fresh_secret() for name in clients}
    for name, key in keys.items():
        create_journal(folder, name)
        write_key(folder / f"{name}.key", key)
    roster = Roster(members={name: signing_public(key) for name, key in keys.items()})
    write_bytes(folder / ROSTER, roster.to_json().encode())
    return roster


def check_unused(folder: Path) -> None:
    """Create a folder for keys. Raises `ConfigError` if that fails or the folder has keys already."""
    suffixes = (".key", JOURNAL, SEQUENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [f.name for f in folder.iterdir() if f.name == ROSTER or f.suffix in suffixes]
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error
    if taken:
        raise ConfigError(
            f"{folder}: has {sorted(taken)[0]} already; keys are never overwritten: choose another "
            "folder, or delete this one if an earlier call was cut short and nobody has used its keys"
        )


def load_roster(folder: Path) -> Roster:
    """Return the roster in a folder of keys. Raises `ConfigError` if it cannot be read."""
    return Roster.load(folder / ROSTER)


def load_identity(folder: Path, client: str, roster: Roster) -> Secret:
    """Return a client's private key.

    Raises `ConfigError` if other users may read the file, it holds no key, or the roster has another key
    for this client.
    """
    file = folder / f"{client}.key"
    key = read_key(file)
    if roster.members.get(client) != signing_public(key):
        raise ConfigError(f"{file}: is not the key that the roster has for {client}")
    return key
