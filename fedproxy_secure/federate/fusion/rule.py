"""What a fusion rule is: how one round's updates become the next step of the adapter.

`fusion.rule` names one. Subclass `FusionRule` and register an instance under the entry point group
`fedproxy_secure.fusion_rules`. `examples/own_fusion_rule.py` is a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedproxy_secure.config.kinds import FUSION_RULES
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from fedproxy_secure.config import FusionConfig
    from fedproxy_secure.federate.fusion.algorithms import Analysis

Memory = Mapping[str, np.ndarray]


class FusionRule:
    """How the server merges updates.

    `name`: in settings. `options`: names of the settings in `fusion.options` that it
    reads. `linear`: it is given the mean of the updates and reads no more, so that it works under every
    protection. Secure sums need such a rule or one of `elections`, and `privacy.unit: client` such a rule.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = False

    def check_settings(self, fusion: FusionConfig) -> None:
        """Raise `ConfigError` for settings that this rule does not take, named by their key.

        Called when settings, and when a client's policy, are read. Override it to check values of options.
        """
        for option in fusion.options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"fusion.options.{option}: is no option of fusion.rule={self.name}; it has: {known}"
                )

    def merge(self, tau: np.ndarray, analysis: Analysis, fusion: FusionConfig) -> np.ndarray:
        """Return one update for all, float32 [d]. A rule has it or is `linear`.

        It is called where the server sees every update, not under a secure sum.

        Args:
            tau: the updates, float32 [K, d], clients in the order of their names.
            analysis: cosines, heterogeneity, weights and conflict of this round.
            fusion: the settings.
        """
        raise NotImplementedError(f"{type(self).__name__}: must have merge, or be linear")

    def step(self, merged: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Return the step, float32 [d], before the server's learning rate, and what to remember.

        Override it for an optimiser on the server.

        Args:
            merged: what the round's updates merged into, float32 [d].
            memory: what this returned in the last round, arrays by name; empty in the first. It is saved
                with the server's state, so that a killed run goes on as if nothing had happened.
        """
        return merged, {}


def fusion_rule_of(fusion: FusionConfig) -> FusionRule:
    """Return the rule that settings name.

    Raises `ConfigError` for a name that is not known, for a rule that is neither linear nor has `merge` or
    that is both, and for one that lacks a method which its base class demands, such as `margin` of
    `elections.SignElection`.
    """
    rule = FUSION_RULES.get(fusion.rule, setting="fusion.rule")
    merges = type(rule).merge is not FusionRule.merge
    if not merges and not rule.linear:
        raise ConfigError(f"fusion.rule={rule.name}: has no merge and is not linear; must have merge")
    if merges and rule.linear:
        raise ConfigError(
            f"fusion.rule={rule.name}: is linear and has merge, which would never be called; must be one"
        )
    if lacks := [n for n in dir(rule) if getattr(getattr(rule, n), "__isabstractmethod__", False)]:
        raise ConfigError(f"fusion.rule={rule.name}: has no {lacks[0]}; must have {' and '.join(lacks)}")
    return rule


def checked(rule: FusionRule, values: object, *, d: int, by: str) -> np.ndarray:
    """Return what a rule computed, as float32 [d].

    Raises `ConfigError`, which names the rule and its method `by`, for another shape or values that are not
    finite.
    """
    array = np.asarray(values)
    if array.shape != (d,) or array.dtype.kind != "f":
        raise ConfigError(
            f"fusion.rule={rule.name}: {by} returned {array.dtype} of shape {array.shape}; must be floats "
            f"of shape ({d},)"
        )
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise ConfigError(f"fusion.rule={rule.name}: {by} returned NaN or infinity; must be finite")
    return numbers
