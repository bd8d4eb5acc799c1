"""Signing keys of audit logs: Ed25519, hex in a file that its owner alone may read (mode 0600).

A run without a key makes one, `NAME.audit.key` beside its folder `NAME`. Such a signature proves only that
nothing changed since to whoever noted the public key when the run ended; one that others know beforehand
(`audit keygen`) also proves who ran it.
"""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.secagg.key_file import read_key, write_key
from fedproxy_secure.secagg.primitives import KEY_BYTES, fresh_secret, signing_public
from fedproxy_secure.secagg.secret import Secret

PUBLIC_SUFFIX = ".pub"


def make_key(file: Path) -> bytes:
    """Write a new private key to `file` and its public half to `file.pub`; returns that, 32 bytes.

    Raises `ConfigError` if there is a file already, or none can be written.
    """
    key = fresh_secret()
    write_key(file, key)
    public = signing_public(key)
    write_bytes(file.with_name(file.name + PUBLIC_SUFFIX), public.hex().encode() + b"\n")
    return public


def own_key_file(run: Path) -> Path:
    """Where the key lies that a run makes for itself: beside its folder, so that it is not passed on."""
    place = run.resolve()
    return place.with_name(f"{place.name}.audit.key")


def run_key(run: Path, named: str | None, *, make: bool) -> Secret:
    """The key in the file that the settings name, or the run's own; with `make`, a missing own one is made.

    Raises `ConfigError` if it cannot be read, and if it is missing and not to be made.
    """
    file = own_key_file(run) if named is None else Path(named)
    if named is None and not file.exists():
        if not make:
            raise ConfigError(f"{file}: is missing; {run} goes on with the key it began with alone")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_key(file, fresh_secret())
    return read_key(file)


def parse_public(text: str) -> bytes:
    """A public key from 64 hex digits or the name of a file with them, 32 bytes.

    Raises `ConfigError` for anything else.
    """
    digits = text
    if len(text) != 2 * KEY_BYTES:
        try:
            digits = Path(text).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text}: is no public key, nor a file that holds one") from error
    try:
        public = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"{text}: must hold {2 * KEY_BYTES} hex digits, an Ed25519 public key") from None
    if len(public) != KEY_BYTES:
        raise ConfigError(f"{text}: must hold {2 * KEY_BYTES} hex digits, an Ed25519 public key")
    return public
