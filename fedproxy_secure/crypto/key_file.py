"""Private keys in files: one key a file, readable by its owner alone (mode 0600).

A file has the word `fedproxy-private-key` and the key in hex. A public key's file has hex alone, so that
neither is taken for the other.
"""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.crypto.primitives import KEY_BYTES
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.files.whole import created_private

PRIVATE_KEY = "fedproxy-private-key"  # begins the file of every private key


def write_key(file: Path, key: Secret) -> None:
    """Write a new key file, whole or not at all.

    Raises `ConfigError` if the file exists, because keys are never overwritten, or it cannot be written.
    """
    try:
        with created_private(file) as partial:
            partial.write_bytes(f"{PRIVATE_KEY} {key.reveal().hex()}\n".encode())
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
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read as a key: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _no_key(file) from None
    word, _, digits = text.partition(" ")
    try:
        key = Secret(bytes.fromhex(digits))
    except ValueError:
        raise _no_key(file) from None
    if word != PRIVATE_KEY or len(key.reveal()) != KEY_BYTES:
        raise _no_key(file)
    if mode & 0o077:
        raise ConfigError(f"{file}: has mode {mode:o}; must be 600, readable by its owner alone")
    return key


def _no_key(file: Path) -> ConfigError:
    return ConfigError(
        f"{file}: is not a private key; must hold {PRIVATE_KEY} and {2 * KEY_BYTES} hex digits; name a "
        "file that this program wrote"
    )
