"""The owner's tracing key: it draws every codeword, and its commitment is in the audit log.

Guarantees: the key lies in a file that only its owner can read; codewords are pseudo-random to everybody
else (HKDF-SHA256, then AES-256 in counter mode); the commitment, SHA-256 of 256 random bits, reveals
nothing about the key and fits no other key, so codewords cannot be chosen after a leak. Not guaranteed:
that the owner did not leak a client's copy herself. She can make every copy, so a trace convinces others
only as far as they trust her.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedproxy_secure.crypto.key_file import read_key, write_key
from fedproxy_secure.crypto.primitives import derive, digest, fresh_secret, keystream
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError

NAME = "trace.key"  # beside the folder of the proxy
_DOMAIN = b"fedproxy-secure trace 1"


def key_file(proxy: Path) -> Path:
    """Return the file of the tracing key for the proxy in a folder; it lies beside that folder."""
    return proxy.resolve().with_name(NAME)


def trace_key(proxy: Path, *, make: bool = False) -> Secret:
    """Return the tracing key of a proxy; with `make`, create it if it is missing.

    Raises `ConfigError` if the key is missing without `make`, or if others than its owner can read it.
    """
    file = key_file(proxy)
    if not file.exists():
        if not make:
            raise ConfigError(f"{file}: is missing; only the key that marked the copies can trace them")
        write_key(file, fresh_secret())
    return read_key(file)


def commitment(key: Secret) -> str:
    """Return the key's commitment, 64 hex digits."""
    return digest(_DOMAIN, b"commitment", key.reveal()).hex()


def uniforms(key: Secret, purpose: str, count: int) -> np.ndarray:
    """Return pseudo-random numbers in [0, 1), float64 [count], from a stream of its own per `purpose`."""
    stream = keystream(derive(key, info=_DOMAIN + b"\0" + purpose.encode()))
    words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
