"""`masking`: the server learns sums over at least `threshold` clients and no single update.

With the granularity `coordinate` the server also learns, at each coordinate, the value of a client that is
the only one with its sign, and the sign if all clients share it.

The protocol is `fedproxy_secure.secagg.masking`'s (Bonawitz et al. 2017, with signed survivors). H-TIES'
weights may come from encrypted cosines (`protect.weights: encrypted_gram`), opened before the masked sum.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.fusion.elections import weighs_clients
from fedproxy_secure.protect.base import ClientRequest
from fedproxy_secure.protect.sums import SecureSum

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.protect.secure_sum.server import RoundInputs
    from fedproxy_secure.secagg.ring import RingPlan
    from fedproxy_secure.secagg.steps import Aggregate
    from fedproxy_secure.secagg.terms import Terms

log = logging.getLogger(__name__)

COARSE_BITS = 16  # a step of a block's mean square is that of values of about 1/90 of the clip, 4 clients
GRAM_STAMP = (
    "encrypted_gram: cosines are hidden only from a server that follows the protocol; a server that "
    "deviates reads one number of one client's update per round."
)


class Masking(SecureSum):
    """Sums by pairwise masks; noise for `privacy.unit: client` can be added inside."""

    name = "masking"
    title = "masking"
    protocol = "masking"

    def check_settings(
        self,
        protect: ProtectConfig,
        privacy: PrivacyConfig,
        fusion: FusionConfig,
        *,
        cohort: int | None,
    ) -> None:
        super().check_settings(protect, privacy, fusion, cohort=cohort)
        if protect.weights == "encrypted_gram" and not weighs_clients(fusion):
            raise ConfigError(
                "protect.weights=encrypted_gram: needs protect.scheme=masking and fusion.rule=h_ties"
            )
        if privacy.unit == "client" and protect.weights != "uniform":
            raise ConfigError(
                f"protect.weights={protect.weights}: must be uniform with privacy.unit=client; other "
                "weights would be sent without noise"
            )

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        return (GRAM_STAMP,) if protect.weights == "encrypted_gram" else ()

    def payload_bytes(self, plan: RingPlan) -> int:
        return plan.upload_bytes

    def rounding_of(self, plan: RingPlan) -> float:
        # not what elections by blocks add: they read the blocks' mean squares, which are rounded, too
        return plan.step_of(plan.segment("update")) * (1.0 if plan.random_rounding else 0.5)

    def train(self, asked: ClientRequest) -> RecordDict:
        from fedproxy_secure.protect.secure_sum import client, gram

        first_step = client.train_and_advertise
        if asked.job.protect.weights == "encrypted_gram":
            first_step = gram.train_and_say_hello
        return first_step(
            asked.local_client(), asked.job, asked.content, asked.context, policy=asked.policy
        )

    def later_steps(self) -> Mapping[str, Callable[[ClientRequest], RecordDict]]:
        from fedproxy_secure.protect.secure_sum import client, gram
        from fedproxy_secure.protect.secure_sum.client import answers

        return {
            "gram_share": answers(gram.share),
            "gram_sketch": answers(gram.sketch),
            "gram_weigh": lambda a: gram.weigh(a.local_client(), a.job, a.content, a.context),
            "share": answers(client.share),
            "mask": answers(client.mask),
            "confirm": answers(client.confirm),
            "unmask": answers(client.unmask),
        }

    def run_steps(self, work: RoundInputs) -> tuple[Terms, Aggregate]:
        from fedproxy_secure.protect.secure_sum.server import run_masking

        job, state = work.carrier.round.job, work.carrier.round.state
        if state.round == 0 and job.protect.bits == COARSE_BITS and job.granularity == "block":
            log.warning(
                "protect.bits=%d: with protect.granularity=block the election is wrong in tensors whose "
                "values are mostly below 1/20 of the clip; 24 or 32 bits keep it there",
                COARSE_BITS,
            )
        return run_masking(work)


MASKING = Masking()
