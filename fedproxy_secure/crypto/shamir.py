"""Shamir's secret sharing of 32-byte secrets, over the field of integers modulo 2^256 + 297.

`split` makes the shares, and a `Combiner` reconstructs secrets from shares at the same points.

Guarantees: any `threshold` shares give the secret. Fewer say nothing about it, whatever the computing
power, if the coefficients are uniformly random. Not guaranteed: that a wrong share is noticed; the protocol
compares the reconstructed secret with a commitment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted

PRIME = 2**256 + 297  # the smallest prime above 2^256: every 32-byte secret is an element of the field
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: Secret, points: Sequence[int], coefficients: Sequence[Secret]) -> dict[int, Secret]:
    """Return a secret's shares by point, 33 bytes each, of which any t give the secret.

    A share is the value of the polynomial `secret + c_1 x + ... + c_{t-1} x^{t-1}` at its point x.

    Args:
        secret: 32 bytes.
        points: different integers >= 1, one per holder.
        coefficients: t - 1 fresh secrets of 64 bytes; modulo the prime their bias is below 2^-250.

    Raises `ProtocolAborted` for a point out of range or given twice, fewer points than t, or a secret of
    another length.
    """
    threshold = len(coefficients) + 1
    if len(set(points)) != len(points) or not all(1 <= x < PRIME for x in points):
        raise ProtocolAborted(f"points {list(points)[:4]}: must be different and >= 1")
    if threshold > len(points):
        raise ProtocolAborted(f"threshold={threshold}: must be <= {len(points)}, the number of holders")
    polynomial = [_element(secret), *(int.from_bytes(c.reveal(), "big") % PRIME for c in coefficients)]
    shares = {}
    for x in points:
        y = 0
        for coefficient in reversed(polynomial):  # Horner
            y = (y * x + coefficient) % PRIME
        shares[x] = Secret(y.to_bytes(SHARE_BYTES, "big"))
    return shares


class Combiner:
    """Reconstruct several secrets from shares at the same points; Lagrange weights are computed once.

    Raises `ProtocolAborted` for no points, or points out of range or given twice.
    """

    def __init__(self, points: Sequence[int]) -> None:
        if len(set(points)) != len(points) or not all(1 <= x < PRIME for x in points) or not points:
            raise ProtocolAborted(f"points {list(points)[:4]}: must be different and >= 1")
        self.points = tuple(points)
        self._weights = [_lagrange_at_zero(x, points) for x in points]

    def combine(self, shares: Mapping[int, Secret]) -> Secret:
        """Return the secret of `shares`, by point; shares at further points are ignored.

        Raises `ProtocolAborted` for a missing point, a share of another length or range, or shares whose
        secret has more than 32 bytes. Other shares that do not belong together give a wrong secret.
        """
        total = 0
        for x, weight in zip(self.points, self._weights, strict=True):
            share = shares.get(x)
            if share is None or len(share.reveal()) != SHARE_BYTES:
                raise ProtocolAborted(f"share at point {x}: must be there, with {SHARE_BYTES} bytes")
            y = int.from_bytes(share.reveal(), "big")
            if y >= PRIME:
                raise ProtocolAborted(f"share at point {x}: must be below the prime")
            total = (total + weight * y) % PRIME
        if total >= 2 ** (8 * SECRET_BYTES):
            raise ProtocolAborted("shares: do not belong together")
        return Secret(total.to_bytes(SECRET_BYTES, "big"))


def _lagrange_at_zero(x: int, points: Sequence[int]) -> int:
    numerator = denominator = 1
    for other in points:
        if other != x:
            numerator = numerator * other % PRIME
            denominator = denominator * (other - x) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME


def _element(secret: Secret) -> int:
    raw = secret.reveal()
    if len(raw) != SECRET_BYTES:
        raise ProtocolAborted(f"secret of {len(raw)} bytes: must have {SECRET_BYTES}")
    return int.from_bytes(raw, "big")
