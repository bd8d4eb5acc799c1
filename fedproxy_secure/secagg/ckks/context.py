"""Sums of real vectors under CKKS (TenSEAL): `make_keys`, `encrypt`, `CkksSum`, `decrypt`.

    ring dimension 8192, coefficient moduli [60, 60], scale 2^45: 4096 numbers a ciphertext, 32 bytes each

Guarantees: a party that has only the public context learns nothing from a ciphertext (ring-LWE at the
128-bit level that TenSEAL enforces for these parameters). `decrypt` rounds numbers to a public grid before
it returns them: CKKS's errors depend on the key, and exact decryptions that are given away can reveal it
(Li & Micciancio 2021).

Not guaranteed: there is no threshold key. Any one holder of the secret key who works with the server can
decrypt every client's vector. An altered ciphertext is not noticed here; the protocol tags ciphertexts.

Why these parameters: vectors are only added, so rotation keys and a third modulus, as in [60, 40, 40], are
not needed; only products need them. Beside the special prime, [60, 60] leaves 60 bits for scale and number:
numbers, summed over all clients, must stay below 2^14. `encrypt` refuses numbers of half of that or more.
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
BOUND = 2.0**13  # on a number that is encrypted
GRID = 2.0**-27  # decrypted numbers are multiples of this: 7.5e-9, more than the error of a sum
_HEAD = struct.Struct("<QI")  # length of the vector, number of ciphertexts
_SIZE = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class CkksKeys:
    """Two serialised contexts of one key: `public` can encrypt and add, `secret` can also decrypt."""

    public: bytes
    secret: Secret


def require() -> None:
    """Raise `ConfigError` if TenSEAL is not installed."""
    tenseal()


def make_keys() -> CkksKeys:
    """Return fresh keys from SEAL's random generator, which the operating system seeds."""
    ts = tenseal()
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI))
    context.global_scale = 2**SCALE_BITS
    small = {"save_galois_keys": False, "save_relin_keys": False}
    return CkksKeys(
        public=context.serialize(save_public_key=True, save_secret_key=False, **small),
        secret=Secret(context.serialize(save_public_key=True, save_secret_key=True, **small)),
    )


def encrypt(public: bytes, values: np.ndarray) -> bytes:
    """Return the ciphertexts of float64 [n], framed.

    Raises `DataError` for NaN, infinity or a number whose magnitude is `BOUND` or more.
    """
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError("values for CKKS: must be one row of finite numbers")
    top = float(np.abs(values).max(initial=0.0))
    if top >= BOUND:
        raise DataError(
            f"values for CKKS: must be below {BOUND:g}"
        )  # without the number, because the server reads this error
    context, ts = _context(public), tenseal()
    parts = []
    for start in range(0, len(values), SLOTS):
        packed = ts.ckks_vector(context, values[start : start + SLOTS].astype(np.float64)).serialize()
        parts += [_SIZE.pack(len(packed)), packed]
    return _HEAD.pack(len(values), -(-len(values) // SLOTS)) + b"".join(parts)


class CkksSum:
    """A running sum of encrypted vectors of one length; holds one vector, whatever their number."""

    def __init__(self, public: bytes, length: int) -> None:
        self._context, self._length = _context(public), length
        self._parts: list[Any] = []

    def add(self, encrypted: bytes) -> None:
        """Add a vector. Raises `DataError`, and adds nothing, for another length or other parameters."""
        parts = _ciphertexts(self._context, encrypted, self._length)
        if not self._parts:
            self._parts = parts
            return
        for total, part in zip(self._parts, parts, strict=True):
            total.add_(part)

    def packed(self) -> bytes:
        """Return the encrypted sum, framed as by `encrypt`."""
        parts = []
        for part in self._parts:
            raw = part.serialize()
            parts += [_SIZE.pack(len(raw)), raw]
        return _HEAD.pack(self._length, len(self._parts)) + b"".join(parts)


def decrypt(secret: Secret, encrypted: bytes, length: int) -> np.ndarray:
    """Return the decrypted numbers, float64 [length], rounded to multiples of `GRID`.

    Raises `DataError` for anything but a vector of that length and these parameters, and for numbers out of
    range, as another key gives them.
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
    ts, refused = tenseal(), DataError(f"CKKS vector: must be {length} numbers, framed as `encrypt` does")
    if len(encrypted) < _HEAD.size:
        raise refused
    stated, count = _HEAD.unpack_from(encrypted)
    if stated != length or count != -(-length // SLOTS):
        raise refused
    offset, parts = _HEAD.size, []
    for i in range(count):
        if offset + _SIZE.size > len(encrypted):
            raise refused
        (size,) = _SIZE.unpack_from(encrypted, offset)
        offset += _SIZE.size
        try:
            part = ts.ckks_vector_from(context, encrypted[offset : offset + size])
        except (ValueError, RuntimeError) as error:
            raise refused from error
        if part.size() != min(SLOTS, length - i * SLOTS) or len(part.ciphertext()) != 1:
            raise refused
        check_form(part, primes=len(MODULI) - 1, scale_bits=SCALE_BITS)
        parts.append(part)
        offset += size
    if offset != len(encrypted):
        raise refused
    return parts


def check_form(part: Any, *, primes: int, scale_bits: int) -> None:
    """Raise `DataError` unless this vector of one ciphertext is freshly encrypted and has this scale.

    A ciphertext of another scale or level cannot be added to the others. As the first of a sum it would
    exclude all others.
    """
    (ciphertext,) = part.ciphertext()
    form = (
        ciphertext.size(),
        ciphertext.poly_modulus_degree(),
        ciphertext.coeff_modulus_size(),
        ciphertext.scale,
        ciphertext.is_ntt_form(),
    )
    if form != (2, DEGREE, primes, 2.0**scale_bits, True):
        raise DataError("ciphertext: is of another scale or level; must be as `encrypt` makes it")


def read_context(serialised: bytes, *, moduli: Sequence[int], scale_bits: int) -> Any:
    """Return a context from its bytes. Raises `DataError` for other parameters, or if it cannot be read."""
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
    expected = (DEGREE, sum(moduli), len(moduli), 2.0**scale_bits)
    if parameters != expected:
        raise DataError(f"CKKS key: degree, bits, moduli, scale {parameters}; must be {expected}")
    return context


def _context(serialised: bytes) -> Any:
    return read_context(serialised, moduli=MODULI, scale_bits=SCALE_BITS)


def tenseal() -> Any:
    """Return the module `tenseal`. Raises `ConfigError` if it is not installed."""
    try:
        import tenseal as library
    except ImportError as error:
        raise ConfigError("protect.scheme=ckks: needs the extra `ckks` (tenseal)") from error
    return library
