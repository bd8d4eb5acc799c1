"""`ckks`: clients add up encrypted updates under a key that they share and the server lacks.

The protocol is `fedproxy_secure.secagg.ckks`'s. It holds against a server that follows the protocol and
that no client helps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.protect.base import ClientRequest
from fedproxy_secure.protect.sums import SecureSum

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.protect.secure_sum.server import RoundInputs
    from fedproxy_secure.secagg.ring import RingPlan
    from fedproxy_secure.secagg.steps import Aggregate
    from fedproxy_secure.secagg.terms import Terms


class Ckks(SecureSum):
    """Sums by homomorphic encryption; needs the extra `ckks` (tenseal)."""

    name = "ckks"
    title = "CKKS"
    protocol = "ckks"
    trust_assumption = " (if it follows the protocol and no client helps it)"

    def check_settings(
        self,
        protect: ProtectConfig,
        privacy: PrivacyConfig,
        fusion: FusionConfig,
        *,
        cohort: int | None,
    ) -> None:
        super().check_settings(protect, privacy, fusion, cohort=cohort)
        if protect.weights == "encrypted_gram":
            raise ConfigError(
                "protect.weights=encrypted_gram: needs protect.scheme=masking and fusion.rule=h_ties"
            )
        if not fusion.linear and protect.granularity != "block":
            raise ConfigError(
                f"protect.granularity={protect.granularity}: with protect.scheme=ckks must be block"
            )

    def check_installed(self) -> None:
        from fedproxy_secure.secagg.ckks.context import tenseal

        tenseal()

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        return (
            "ckks: protects only against a server that follows the protocol and colludes with no client; "
            "the server and any one client together can decrypt every update.",
        )

    def payload_bytes(self, plan: RingPlan) -> int:
        from fedproxy_secure.secagg.ckks.context import expected_bytes
        from fedproxy_secure.secagg.ckks.row import row_length

        return expected_bytes(row_length(plan))

    def rounding_of(self, plan: RingPlan) -> float:
        from fedproxy_secure.secagg.ckks.context import GRID

        return GRID * (plan.segment("update").clip or 0.0)

    def train(self, asked: ClientRequest) -> RecordDict:
        from fedproxy_secure.protect.secure_sum import client

        return client.train_and_advertise(
            asked.local_client(), asked.job, asked.content, asked.context, policy=asked.policy
        )

    def later_steps(self) -> Mapping[str, Callable[[ClientRequest], RecordDict]]:
        from fedproxy_secure.protect.secure_sum import client
        from fedproxy_secure.protect.secure_sum.client import answers

        return {
            "share": answers(client.share),
            "mask": answers(client.mask),
            "unmask": answers(client.unmask),
        }

    def run_steps(self, work: RoundInputs) -> tuple[Terms, Aggregate]:
        from fedproxy_secure.protect.secure_sum.server import run_ckks

        return run_ckks(work)

    def sum_error(self) -> float:
        from fedproxy_secure.secagg.ckks.row import CKKS_ERROR

        return CKKS_ERROR


CKKS = Ckks()
