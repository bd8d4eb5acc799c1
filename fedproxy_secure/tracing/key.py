"""The owner's key of a tracing: it draws every codeword, and its commitment stands in the audit log.

Guarantees: the key lies in a file that its owner alone can read; codewords are pseudo-random to everybody
else (HKDF-SHA256, then AES-256 in counter mode); the commitment, SHA-256 of 256 random bits, tells nothing
about the key and fits no other one, so codewords cannot be chosen after a leak. Not guaranteed: that the
owner did not leak a client's copy herself: she can make every copy, so a trace convinces her, and a judge
only as far as he trusts her.
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
    """Return where the key of the tracing of the proxy in a folder lies: beside that folder."""
    return proxy.resolve().with_name(NAME)


def trace_key(proxy: Path, *, make: bool = False) -> Secret:
    """Return the key of a proxy's tracing; with `make`, a fresh one if there is none.

    Raises `ConfigError` if it is missing and not to be made, or cannot be read by its owner alone.
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
    """Return pseudo-random numbers in [0, 1), float64 [count], that `purpose` has to itself."""
    stream = keystream(derive(key, info=_DOMAIN + b"\0" + purpose.encode()))
    words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
