"""The variance of mean losses over test records, weighted by their tokens, and their sums' intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedproxy_secure.evidence.estimate import student_quantile

if TYPE_CHECKING:
    from fedproxy_secure.evidence.losses import Losses


def half_width(models: Sequence[Losses], weights: np.ndarray) -> float:
    """Return half the width of the interval of a sum of losses, `weights` float64 [1, models]."""
    parts = parts_of(models, weights)
    variances = [float(part.covariance[0, 0]) for part in parts]
    return quantile(variances, parts) * math.sqrt(math.fsum(variances))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One task's contribution to the variance of contrasts of losses, and its degrees of freedom."""

    covariance: np.ndarray  # float64 [contrasts, contrasts]
    freedom: float


def parts_of(models: Sequence[Losses], contrasts: np.ndarray) -> list[Part]:
    """Return each task's part; `contrasts`: weights of the models' losses, float64 [contrasts, models].

    A loss is a mean of records' losses per token, weighted by their tokens. A long record dominates the
    mean, so that its residual is too small and the effective number of records is smaller. HC2 corrects the
    residuals (MacKinnon & White 1985), and Bell & McCaffrey (2002) give the degrees of freedom. For
    responses of equal length these are the records' variance over n, and n - 1.
    """
    parts = []
    for task in models[0]:
        nats = np.array([losses[task].nats for losses in models])
        tokens = np.array(models[0][task].tokens, dtype=np.float64)
        share = tokens / tokens.sum()
        residuals = contrasts @ (nats - np.outer(nats.sum(axis=1) / tokens.sum(), tokens))
        together = float(share @ share)
        # the share of a record's variance that its residual has, if variances are equal
        retained = 1 - 2 * share + together
        moved = residuals / (tokens.sum() * np.sqrt(retained) * len(models[0]))
        weights = share**2 / retained
        # trace of M and of M @ M, where `weights` are M's quadratic form in records of equal variance
        linear, squares = float(weights @ share), float(weights @ share**2)
        crossed = _squared_sum(weights.sum(), linear, squares, together)
        alone_ = (1 + together - 2 * share) ** 2 - (together - 2 * share) ** 2
        freedom = float(weights @ retained) ** 2 / (crossed + float(weights**2 @ alone_))
        parts.append(Part(covariance=moved @ moved.T, freedom=max(1.0, freedom)))
    return parts


def _squared_sum(total: float, linear: float, squares: float, together: float) -> float:
    """Return the sum over i, j of d_i d_j (q - w_i - w_j) ** 2 from the sums of d, d w and d w ** 2."""
    return float(
        together**2 * total**2 + 2 * total * squares + 2 * linear**2 - 4 * together * total * linear
    )


def quantile(variances: Sequence[float], parts: Sequence[Part]) -> float:
    """Return Student's quantile for a sum of tasks' variances (Welch 1947)."""
    total = math.fsum(variances)
    if not total > 0:
        return student_quantile(min(part.freedom for part in parts))
    squares = math.fsum((v / total) ** 2 / p.freedom for v, p in zip(variances, parts, strict=True))
    return student_quantile(1 / squares)
