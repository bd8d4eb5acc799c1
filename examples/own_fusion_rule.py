"""A fusion rule of your own: the mean of each coordinate without its extreme values (Yin et al. 2018).

It withstands a few clients that lie, but reads every update: no secure sum can carry it. Name it in the
`pyproject.toml` of your package:

    [project.entry-points."fedproxy_secure.fusion_rules"]
    trimmed_mean = "own_fusion_rule:TRIMMED_MEAN"

Then `fusion: {rule: trimmed_mean, options: {trim: 0.2}}` with `protect: {scheme: unsafe_plaintext}`.
"""

import numpy as np

import fedproxy_secure as fp
from fedproxy_secure.config import FusionConfig
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.fusion.algorithms import Analysis


class TrimmedMean(fp.FusionRule):
    """Leave out, at each coordinate, the share `trim` of the clients at either end."""

    name = "trimmed_mean"
    options = ("trim",)

    def check_settings(self, fusion: FusionConfig) -> None:
        super().check_settings(fusion)
        trim = fusion.options.get("trim", 0.1)
        if isinstance(trim, bool | str) or not 0 <= trim < 0.5:
            raise ConfigError(f"fusion.options.trim={trim}: must be a number, at least 0 and below .5")

    def merge(self, tau: np.ndarray, analysis: Analysis, fusion: FusionConfig) -> np.ndarray:
        cut = int(float(fusion.options.get("trim", 0.1)) * len(tau))
        return np.asarray(np.sort(tau, axis=0)[cut : len(tau) - cut].mean(axis=0))


TRIMMED_MEAN = TrimmedMean()
