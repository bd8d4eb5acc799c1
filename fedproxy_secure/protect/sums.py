"""What masking and CKKS have in common: the server learns sums over clients with keys and one roster."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.fusion.elections import SignElection
from fedproxy_secure.federate.fusion.rule import fusion_rule_of
from fedproxy_secure.protect.base import RULES, ClientRequest, Protection, RoundResult, ServerRound
from fedproxy_secure.secagg.ring import MAX_CLIENTS, MIN_CLIENTS
from fedproxy_secure.secagg.terms import least_threshold

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.protect.secure_sum.server import RoundInputs
    from fedproxy_secure.secagg.ring import RingPlan
    from fedproxy_secure.secagg.steps import Aggregate
    from fedproxy_secure.secagg.terms import Terms


class SecureSum(Protection):
    """A protection whose server learns sums only.

    `trust_assumption`: text that `sees` puts after "the server", such as who must be trusted.
    """

    server_learns = "sums"
    needs_keys = True
    follows = RULES
    trust_assumption: ClassVar[str] = ""

    def check_settings(
        self,
        protect: ProtectConfig,
        privacy: PrivacyConfig,
        fusion: FusionConfig,
        *,
        cohort: int | None,
    ) -> None:
        super().check_settings(protect, privacy, fusion, cohort=cohort)
        rule = fusion_rule_of(fusion)
        if not rule.linear and not isinstance(rule, SignElection):
            raise ConfigError(
                f"fusion.rule={fusion.rule}: reads single updates, which protect.scheme={self.name} hides; "
                "must be a rule that reads their mean alone, or elects signs (ties, h_ties)"
            )
        if privacy.unit == "client" and not rule.linear:
            raise ConfigError(
                f"fusion.rule={fusion.rule}: with privacy.unit=client must be a rule that reads the mean "
                "alone, such as fedavg; what others read besides would need noise of its own"
            )
        if cohort is not None:
            self._check_cohort(protect, cohort)
        if fusion.pcr_lambda > 0 and fusion.linear:
            raise ConfigError(
                f"fusion.pcr_lambda={fusion.pcr_lambda}: with fusion.rule={fusion.rule} under "
                f"protect.scheme={self.name} the server learns no conflict; must be 0"
            )

    def _check_cohort(self, protect: ProtectConfig, cohort: int) -> None:
        if protect.min_cohort is not None and protect.min_cohort > cohort:
            raise ConfigError(
                f"protect.min_cohort={protect.min_cohort}: must be <= {cohort}, the clients of a round; "
                "none would sum"
            )
        if not MIN_CLIENTS <= cohort <= MAX_CLIENTS:
            raise ConfigError(
                f"protect.scheme={self.name}: a round has {cohort} clients; must be {MIN_CLIENTS} to "
                f"{MAX_CLIENTS}; for other numbers only unsafe_plaintext works"
            )
        if protect.threshold is not None and protect.threshold > cohort:
            raise ConfigError(
                f"protect.threshold={protect.threshold}: must be <= {cohort}, the clients of a round"
            )
        try:
            least_threshold(cohort, protect.colluders)
        except ConfigError as error:
            raise ConfigError(f"protect.{error}") from None

    def sees(self, protect: ProtectConfig, fusion: FusionConfig) -> str:
        extra, hidden = "", "no single update"
        if not fusion.linear:
            extra = {"block": ", one variance per block", "coordinate": ", absolute sums and sign counts"}[
                protect.granularity
            ]
            if protect.granularity == "coordinate":
                hidden += ", except a value whose sign only one client has, and signs that all share"
        sums = f"sums over clients{extra} and sums of the control words"
        return f"{self.name}: the server{self.trust_assumption} sees {sums}; {hidden}."

    def least_clients(self, job: FederationJob) -> int:
        from fedproxy_secure.protect.secure_sum.noise import planned_threshold

        return planned_threshold(job)

    def upload_bytes(self, job: FederationJob, sizes: Sequence[int]) -> int:
        return self.payload_bytes(first_ring(job, sizes))

    def rounding_error(self, job: FederationJob, sizes: Sequence[int]) -> float | None:
        return self.rounding_of(first_ring(job, sizes))

    @abstractmethod
    def payload_bytes(self, plan: RingPlan) -> int:
        """Return the bytes that one client uploads in a round."""

    @abstractmethod
    def rounding_of(self, plan: RingPlan) -> float:
        """Return how far rounding may move a coordinate of the mean, before signs are elected."""

    def answer(self, asked: ClientRequest) -> RecordDict:
        steps = self.later_steps()
        if asked.step not in steps:
            return super().answer(asked)
        return steps[asked.step](asked)

    @abstractmethod
    def later_steps(self) -> Mapping[str, Callable[[ClientRequest], RecordDict]]:
        """Return the function that answers each later step, by the step's name."""

    def run_round(self, round: ServerRound) -> RoundResult:
        from fedproxy_secure.protect.secure_sum.failures import check_failed
        from fedproxy_secure.protect.secure_sum.server import sum_round

        result = sum_round(round, self.run_steps, payload_bytes=self.payload_bytes, error=self.sum_error())
        check_failed(round.job, round.state.round, result.clients)
        return result

    @abstractmethod
    def run_steps(self, work: RoundInputs) -> tuple[Terms, Aggregate]:
        """Run the server's steps of a round; return the final terms and the sums."""

    def sum_error(self) -> float:
        """Return how far a sum may be off besides the ring's rounding, as a share of its segment's clip."""
        return 0.0


def first_ring(job: FederationJob, sizes: Sequence[int]) -> RingPlan:
    """Return the ring of round 0. Raises `ConfigError` if a sum could wrap."""
    from fedproxy_secure.protect.secure_sum.noise import ring_clip
    from fedproxy_secure.protect.secure_sum.terms import chosen_clip, first_clip, ring_plan

    clip = chosen_clip(job, 0) or first_clip(job)
    if job.privacy.unit == "client":
        clip = ring_clip(job.privacy, bits=job.protect.bits, clients=job.clients_a_round)
    return ring_plan(job, sizes, clip=clip, clients=job.clients_a_round)
