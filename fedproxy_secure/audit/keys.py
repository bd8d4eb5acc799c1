"""Signing keys of audit logs: Ed25519, in a file that only its owner may read (mode 0600).

A run without a key makes one, `NAME.audit.key` beside its folder `NAME`. To someone who noted its public
key when the run ended, a signature by it proves that nothing has changed since. A signature by a key that
others knew before the run (`audit keygen`) also proves who ran it.
"""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.crypto.key_file import PRIVATE_KEY, read_key, write_key
from fedproxy_secure.crypto.primitives import KEY_BYTES, fresh_secret, signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.artifacts import write_bytes

PUBLIC_SUFFIX = ".pub"
_NAME_THE_PUBLIC = f"must be the public key; give its hex digits or its file, such as me.key{PUBLIC_SUFFIX}"


def make_key(file: Path) -> bytes:
    """Write a new private key to `file` and its public half to `file.pub`; return the latter, 32 bytes.

    Raises `ConfigError` if either file is there already, or cannot be written.
    """
    public_file = file.with_name(file.name + PUBLIC_SUFFIX)
    if public_file.exists():  # others may use it already
        raise ConfigError(f"{public_file}: is there already; keys are never overwritten")
    key = fresh_secret()
    write_key(file, key)
    public = signing_public(key)
    try:
        write_bytes(public_file, public.hex().encode() + b"\n")
    except BaseException:  # nobody has the public half, and the private one would block the next try
        file.unlink(missing_ok=True)
        raise
    return public


def own_key_file(run: Path) -> Path:
    """Return the file of a run's own key: beside the folder, so that it does not travel with the folder."""
    folder = run.resolve()
    return folder.with_name(f"{folder.name}.audit.key")


def run_key(run: Path, named: str | None, *, make: bool) -> Secret:
    """Return the key in the file that the settings name, or else the run's own; `make` makes a missing one.

    Raises `ConfigError` if the key cannot be read, or is missing and `make` is false.
    """
    file = own_key_file(run) if named is None else Path(named)
    if named is None and not file.exists():
        if not make:
            raise ConfigError(f"{file}: is missing; {run} can go on only with the key that it began with")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_key(file, fresh_secret())
    return read_key(file)


def parse_public(text: str) -> bytes:
    """Return a public key, 32 bytes, from 64 hex digits or the name of a file with them.

    Raises `ConfigError` for anything else. A private key, by mistake in the place of the public one, is
    refused and not shown.
    """
    digits = text
    if PRIVATE_KEY in text:
        raise ConfigError(f"the key given is a private one; {_NAME_THE_PUBLIC}")
    if len(text) != 2 * KEY_BYTES:
        try:
            digits = Path(text).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text}: is no public key, nor a file that holds one") from error
        if PRIVATE_KEY in digits:
            raise ConfigError(f"{text}: holds a private key; {_NAME_THE_PUBLIC}")
    try:
        public = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"{text}: must hold {2 * KEY_BYTES} hex digits, an Ed25519 public key") from None
    if len(public) != KEY_BYTES:
        raise ConfigError(f"{text}: must hold {2 * KEY_BYTES} hex digits, an Ed25519 public key")
    return public
