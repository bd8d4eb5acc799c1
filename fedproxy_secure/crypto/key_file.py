"""Private keys in files: one key a file, in hex, readable by its owner alone (mode 0600)."""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.crypto.primitives import KEY_BYTES
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.files.whole import created_private


def write_key(file: Path, key: Secret) -> None:
    """Write a new key file, whole or not at all.

    Raises `ConfigError` if the file exists, because keys are never overwritten, or it cannot be written.
    """
    try:
        with created_private(file) as partial:
            partial.write_bytes(key.reveal().hex().encode() + b"\n")
    except FileExistsError:
        raise ConfigError(f"{file}: is there already; keys are never overwritten") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error


def read_key(file: Path) -> Secret:
    """Return the key in a file, 32 bytes.

    Raises `ConfigError` if other users may read the file, or it cannot be read or holds no key.
    """
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
    return key
