"""Sums of real vectors under CKKS (TenSEAL): additive only, so a small modulus and no rotation keys.

    ring dimension 8192, coefficient moduli [60, 60], scale 2^45: 4096 numbers a ciphertext, 32 bytes each

[60, 60] leaves 60 bits for scale and number after the special prime: numbers, summed over all clients, must
stay below 2^14; `BOUND` is half of that. Others use [60, 40, 40] or more, which only products need.

Guarantees: a party with the public context alone learns nothing from a ciphertext (ring-LWE at the 128-bit
level that TenSEAL enforces for these parameters). Decrypted numbers are rounded to a public grid before
they leave: CKKS's errors depend on the key, and exact decryptions given away can reveal it (Li & Micciancio
2021). Not guaranteed: there is no threshold key. Any one holder of the secret key who works with the server
opens every client's vector. A ciphertext that was altered is not noticed here; the protocol tags them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, DataError

DEGREE = 8192
MODULI = (60, 60)
SCALE_BITS = 45
SLOTS = DEGREE // 2
BOUND = 2.0**13  # on a number in the sum
GRID = 2.0**-27  # what leaves a decryption is a multiple of this: 7.5e-9, above the sum's own error
_HEAD = struct.Struct("<QI")  # length of the vector, number of ciphertexts
_SIZE = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class CkksKeys:
    """Two contexts of one key: `public` can encrypt and add, `secret` can also decrypt."""

    public: bytes
    secret: Secret


def require() -> None:
    """Raise `ConfigError` if TenSEAL is not installed."""
    tenseal()


def make_keys() -> CkksKeys:
    """Return fresh keys from SEAL's generator, which the operating system seeds."""
    ts = tenseal()
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI))
    context.global_scale = 2**SCALE_BITS
    small = {"save_galois_keys": False, "save_relin_keys": False}
    return CkksKeys(
        public=context.serialize(save_public_key=True, save_secret_key=False, **small),
        secret=Secret(context.serialize(save_public_key=True, save_secret_key=True, **small)),
    )


def encrypt(public: bytes, values: np.ndarray) -> bytes:
    """Return ciphertexts of float64 [n], framed.

    Raises `DataError` for NaN, infinity or a number of `BOUND` or more.
    """
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError("values for CKKS: must be one row of finite numbers")
    top = float(np.abs(values).max(initial=0.0))
    if top >= BOUND:
        raise DataError(
            f"values for CKKS: must be below {BOUND:g}"
        )  # without the number: the server reads this
    context, ts = _context(public), tenseal()
    parts = []
    for start in range(0, len(values), SLOTS):
        packed = ts.ckks_vector(context, values[start : start + SLOTS].astype(np.float64)).serialize()
        parts += [_SIZE.pack(len(packed)), packed]
    return _HEAD.pack(len(values), -(-len(values) // SLOTS)) + b"".join(parts)


class CkksSum:
    """Adds encrypted vectors of one length as they arrive; holds one vector whatever their number."""

    def __init__(self, public: bytes, length: int) -> None:
        self._context, self._length = _context(public), length
        self._parts: list[Any] = []

    def add(self, encrypted: bytes) -> None:
        """Add a vector. Raises `DataError`, and changes nothing, for another length or other parameters."""
        parts = _ciphertexts(self._context, encrypted, self._length)
        if not self._parts:
            self._parts = parts
            return
        for mine, theirs in zip(self._parts, parts, strict=True):
            mine.add_(theirs)

    def packed(self) -> bytes:
        """Return the encrypted sum, framed as `encrypt` does."""
        parts = []
        for part in self._parts:
            raw = part.serialize()
            parts += [_SIZE.pack(len(raw)), raw]
        return _HEAD.pack(self._length, len(self._parts)) + b"".join(parts)


def decrypt(secret: Secret, encrypted: bytes, length: int) -> np.ndarray:
    """Return the numbers, float64 [length], rounded to multiples of `GRID`.

    Raises `DataError` for anything but a vector of that length and these parameters, or a key that
    gives no numbers in range.
    """
    context = _context(secret.reveal())
    if not context.is_private():
        raise DataError("CKKS key: is a public one; decryption needs the secret one")
    parts = [np.array(part.decrypt()) for part in _ciphertexts(context, encrypted, length)]
    values = np.concatenate(parts) if parts else np.empty(0)
    if not np.abs(values).max(initial=0.0) <= 2 * BOUND:  # NaN is refused too
        raise DataError("CKKS vector: does not decrypt to numbers in range; the key is not its own")
    rounded: np.ndarray = np.round(values / GRID) * GRID
    return rounded


def expected_bytes(length: int) -> int:
    """Estimate how many bytes `encrypt` returns for a vector of `length` numbers."""
    return _HEAD.size + -(-length // SLOTS) * (_SIZE.size + 2 * DEGREE * 8 + 160)


def _ciphertexts(context: Any, encrypted: bytes, length: int) -> list[Any]:
    ts, wrong = tenseal(), DataError(f"CKKS vector: must be {length} numbers, framed as `encrypt` does")
    if len(encrypted) < _HEAD.size:
        raise wrong
    stated, count = _HEAD.unpack_from(encrypted)
    if stated != length or count != -(-length // SLOTS):
        raise wrong
    at, parts = _HEAD.size, []
    for i in range(count):
        if at + _SIZE.size > len(encrypted):
            raise wrong
        (size,) = _SIZE.unpack_from(encrypted, at)
        at += _SIZE.size
        try:
            part = ts.ckks_vector_from(context, encrypted[at : at + size])
        except (ValueError, RuntimeError) as error:
            raise wrong from error
        if part.size() != min(SLOTS, length - i * SLOTS) or len(part.ciphertext()) != 1:
            raise wrong
        check_form(part, primes=len(MODULI) - 1, scale_bits=SCALE_BITS)
        parts.append(part)
        at += size
    if at != len(encrypted):
        raise wrong
    return parts


def check_form(part: Any, *, primes: int, scale_bits: int) -> None:
    """Raise `DataError` unless this vector of one ciphertext is fresh and of this scale.

    One of another scale or level does not add up, and as the first of a sum it would shut out all others.
    """
    (one,) = part.ciphertext()
    form = (one.size(), one.poly_modulus_degree(), one.coeff_modulus_size(), one.scale, one.is_ntt_form())
    if form != (2, DEGREE, primes, 2.0**scale_bits, True):
        raise DataError("ciphertext: is of another scale or level; must be as `encrypt` makes it")


def read_context(serialised: bytes, *, moduli: Sequence[int], scale_bits: int) -> Any:
    """Read a context. Raises `DataError` for one of other parameters, or none."""
    ts = tenseal()
    try:
        context = ts.context_from(serialised)
        top = context.seal_context().data.key_context_data()
        parameters = (
            top.parms().poly_modulus_degree(),
            top.total_coeff_modulus_bit_count(),
            top.chain_index() + 1,
            context.global_scale,
        )
    except (ValueError, RuntimeError) as error:
        raise DataError("CKKS key: cannot be read") from error
    wanted = (DEGREE, sum(moduli), len(moduli), 2.0**scale_bits)
    if parameters != wanted:
        raise DataError(f"CKKS key: degree, bits, moduli, scale {parameters}; must be {wanted}")
    return context


def _context(serialised: bytes) -> Any:
    return read_context(serialised, moduli=MODULI, scale_bits=SCALE_BITS)


def tenseal() -> Any:
    """Return the library. Raises `ConfigError` if it is not installed."""
    try:
        import tenseal as library
    except ImportError as error:
        raise ConfigError("protect.scheme=ckks: needs the extra `ckks` (tenseal)") from error
    return library
