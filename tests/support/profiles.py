"""The privacy profile of a mechanism of which one statement of differential privacy is known."""

import math

import numpy as np

from fedproxy_secure.dp.profile import PrivacyProfile


def approximate(epsilon: float, delta: float) -> PrivacyProfile:
    """Return the profile of a mechanism of which (epsilon, delta)-DP is all that is known.

    The line at -epsilon is the same statement about the complement of S.
    """
    return PrivacyProfile(
        epsilons=np.array([-epsilon, epsilon]),
        deltas=np.array([1 - math.exp(-epsilon) * (1 - delta), delta]),
    )
