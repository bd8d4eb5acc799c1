"""Rules that elect a sign at each coordinate: `ties` and `h_ties`.

In the clear they read every update. Under a secure sum clients trim their own updates, and the server
elects from sums (`fedproxy_secure.secagg.granularity`), as `margin`, `kept_share` and `weighs_clients` say.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fedproxy_secure.federate.fusion.algorithms import h_ties, ties
from fedproxy_secure.federate.fusion.rule import FusionRule, fusion_rule_of

if TYPE_CHECKING:
    import numpy as np

    from fedproxy_secure.config import FusionConfig
    from fedproxy_secure.federate.fusion.algorithms import Analysis


class SignElection(FusionRule):
    """A rule that trims each update, elects a sign at each coordinate, and averages the elected side.

    `weighs_clients`: each client's weight and share follow from how unlike the others it is, where
    `protect.weights` says how that is known.
    """

    weighs_clients: ClassVar[bool] = False

    @abstractmethod
    def margin(self, fusion: FusionConfig) -> float:
        """Return rho >= 1: by what factor one side must outweigh the other (Eq. 12-14)."""

    @abstractmethod
    def kept_share(self, fusion: FusionConfig) -> float:
        """Return the share, in (0, 1], of its update that a client keeps if it knows nothing of the others.

        The share is public: the election from sums by blocks needs it.
        """


class Ties(SignElection):
    """TIES (Yadav et al. 2023): the same share of each update, clients alike, the larger side wins."""

    name = "ties"

    def merge(self, tau: np.ndarray, analysis: Analysis, fusion: FusionConfig) -> np.ndarray:
        return ties(tau, keep_ratio=fusion.keep_ratio)

    def margin(self, fusion: FusionConfig) -> float:
        return 1.0

    def kept_share(self, fusion: FusionConfig) -> float:
        return fusion.keep_ratio


class HTies(SignElection):
    """H-TIES (FedProxy, Eq. 10-14): shares by heterogeneity, weights by similarity, election by `rho`."""

    name = "h_ties"
    weighs_clients = True

    def merge(self, tau: np.ndarray, analysis: Analysis, fusion: FusionConfig) -> np.ndarray:
        return h_ties(tau, analysis, rho=fusion.rho, r0=fusion.r0, delta=fusion.delta)

    def margin(self, fusion: FusionConfig) -> float:
        return fusion.rho

    def kept_share(self, fusion: FusionConfig) -> float:
        # r0 for the client most like the others, r0 - delta for the one least like them (Eq. 10)
        return fusion.r0 - fusion.delta / 2


def election_of(fusion: FusionConfig) -> SignElection | None:
    """Return the rule that settings name, or None for one that elects no signs."""
    rule = fusion_rule_of(fusion)
    return rule if isinstance(rule, SignElection) else None


def weighs_clients(fusion: FusionConfig) -> bool:
    """Return whether the rule that settings name gives clients weights of their own."""
    election = election_of(fusion)
    return election is not None and election.weighs_clients


TIES = Ties()
H_TIES = HTies()
