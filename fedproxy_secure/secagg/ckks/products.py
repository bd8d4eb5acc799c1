"""Inner products of encrypted sketches (TenSEAL): `make_keys`, `encrypt`, `products`, `open_products`.

    ring dimension 8192, coefficient moduli [60, 40, 60], scale 2^40; the server's rotation keys take 18 MB

The modulus is larger than in `context`, because an inner product takes a multiplication and rotations.

Guarantees: a party that has only the public context can compute products, and learns nothing (ring-LWE, as
in `context`). Not guaranteed: that a ciphertext holds what its sender says. Decrypted numbers are not
rounded here; the caller must round them before use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError
from fedproxy_secure.secagg.ckks.context import DEGREE, CkksKeys, check_form, read_context, tenseal
from fedproxy_secure.secagg.sketch import SKETCH

MODULI = (60, 40, 60)
SCALE_BITS = 40


def make_keys() -> CkksKeys:
    """Return fresh keys: `public` can multiply and rotate; `secret`, without rotation keys, can decrypt.

    Both can encrypt.
    """
    ts = tenseal()
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI))
    context.global_scale = 2**SCALE_BITS
    context.generate_galois_keys()
    return CkksKeys(
        public=context.serialize(save_public_key=True, save_secret_key=False),
        secret=Secret(
            context.serialize(
                save_public_key=True, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
            )
        ),
    )


def encrypt(secret: Secret, sketch: np.ndarray) -> bytes:
    """Return one ciphertext of a sketch, float64 [SKETCH]. Raises `DataError` for anything else."""
    if sketch.shape != (SKETCH,) or not np.isfinite(sketch).all():
        raise DataError(f"sketch of shape {sketch.shape}: must be {SKETCH} finite numbers")
    packed: bytes = tenseal().ckks_vector(_context(secret.reveal()), sketch).serialize()
    return packed


def reader(public: bytes) -> Callable[[bytes], None]:
    """Return a function that raises `DataError` unless its argument could come from `encrypt`."""
    context = _context(public)

    def read(encrypted: bytes) -> None:
        _sketch(context, encrypted)

    return read


def products(public: bytes, encrypted: Sequence[bytes]) -> list[bytes]:
    """Return the encrypted inner products of all pairs (i, j), i < j, row by row.

    Raises `DataError` for bytes that are no sketches, or cannot be multiplied.
    """
    context = _context(public)
    try:
        vectors = [_sketch(context, e) for e in encrypted]
        pairs = []
        for i, left in enumerate(vectors):
            pairs += [left.dot(right).serialize() for right in vectors[i + 1 :]]
    except (ValueError, RuntimeError) as error:
        raise DataError("sketches: cannot be multiplied under this key") from error
    return pairs


def open_products(secret: Secret, encrypted: Sequence[bytes]) -> np.ndarray:
    """Return the decrypted numbers, float64 [pairs]. Raises `DataError` for bytes that do not decrypt."""
    context = _context(secret.reveal())
    if not context.is_private():
        raise DataError("CKKS key: is a public one; opening needs the secret one")
    vectors = [_vector(context, product, 1) for product in encrypted]
    try:
        return np.array([v.decrypt()[0] for v in vectors])
    except (ValueError, RuntimeError) as error:
        raise DataError("products: do not decrypt") from error


def _sketch(context: Any, encrypted: bytes) -> Any:
    vector = _vector(context, encrypted, SKETCH)
    check_form(vector, primes=len(MODULI) - 1, scale_bits=SCALE_BITS)
    return vector


def _vector(context: Any, encrypted: bytes, length: int) -> Any:
    refused = DataError(f"ciphertext: must be one of {length} numbers")
    try:
        vector = tenseal().ckks_vector_from(context, encrypted)
    except (ValueError, RuntimeError) as error:
        raise refused from error
    if vector.size() != length or len(vector.ciphertext()) != 1:
        raise refused
    return vector


def _context(serialised: bytes) -> Any:
    return read_context(serialised, moduli=MODULI, scale_bits=SCALE_BITS)
