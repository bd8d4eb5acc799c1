"""The base class of protections: how updates travel from clients to the server, and who sees what of them.

`protect.scheme` names one. Subclass `Protection`, or `fedproxy_secure.protect.one_message.OneMessage` where
a client's answer to the training request is all that it sends, and register an instance under the entry
point group `fedproxy_secure.protections`. `examples/own_protection.py` is a complete example.

Contents of messages are Flower's `RecordDict`s. What a client receives comes from the server, which may be
hostile: read it as strictly as `fedproxy_secure.wire` does. A step that may happen only once, such as
opening a sum, must be consumed in the client's journal before it is answered (`protect.kept`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.federate.fusion.rule import fusion_rule_of

if TYPE_CHECKING:
    import numpy as np
    from flwr.app import Context, RecordDict

    from fedproxy_secure.federate.client import LocalClient
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.federate.server import ServerState
    from fedproxy_secure.record.leakage import Ledger


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """One message of the server to this client, and what the client needs to answer it.

    `job`: the server's job with this client's own records, folders and checks in it. `policy`: hash of the
    client's own policy, 32 bytes; None where one machine plays all parties. `local_client`: builds the
    client, its model and records; call it only in steps that train. What one step makes and a later one
    uses belongs into the client's journal (`fedproxy_secure.protect.kept`), not into `context`.
    """

    step: str
    job: FederationJob
    name: str
    content: RecordDict
    context: Context
    policy: bytes | None
    local_client: Callable[[], LocalClient]


# (message type, content by client name, what it is called) -> replies as (client name, content)
Ask = Callable[[str, "Mapping[str, RecordDict]", str], "Iterator[tuple[str, RecordDict]]"]


@dataclass(frozen=True, kw_only=True)
class ServerRound:
    """The inputs of one round on the server's side.

    `cohort`: names of all clients that the round is meant for, sorted; clients that are not connected do
    not answer. `ledger`: note there what is sent to whom and what it reveals; the report shows it. Call
    `on_client` with the name of each client that has trained. `enough` raises `RoundAborted` for fewer
    clients than `federate.min_clients`. Call `note_left_out` with the name of a client whose answer cannot
    be used, and the reason, which the owner reads if the round is aborted. Call `note_unmasked`, with the
    clients for whom the round will be unmasked, before clients are asked to unmask it. They unmask a round
    for one set of clients only, so an attempt after a crash must have the same set.
    """

    ask: Ask
    job: FederationJob
    state: ServerState
    cohort: Sequence[str]
    ledger: Ledger
    on_client: Callable[[str], None] | None
    enough: Callable[[int], None]
    note_left_out: Callable[[str, str], object] = lambda name, why: None
    note_unmasked: Callable[[Sequence[str]], object] = lambda names: None


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The result of a round.

    `state`: the next state. `metrics`: numbers for the round's line. `clients`: whose updates are in it.
    `sums`: the sums that the server learnt, by name; where it learns sums only, `update` must be the sum
    of the updates, float32 [d]. `updates`: what the server can work out of each client, float32 [d] by
    client; required where it learns updates. Attacks read both.
    """

    state: ServerState
    metrics: dict[str, float]
    clients: Sequence[str]
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    updates: Mapping[str, np.ndarray] = field(default_factory=dict)


# settings of `protect` with which clients bind the server, or that decide what a sum reveals
RULES = frozenset(ProtectConfig.model_fields) - {"scheme", "options", "keys"}
_LEARNS = ("updates", "sums")
_OWN = "fedproxy_secure.protect."  # modules whose rounds are the protocols that attacks can play again


class Protection(ABC):
    """How updates reach the server.

    The defaults are those of a scheme that protects from nothing, so a scheme must say what it does.

    Attributes:
        name: in settings; schemes without protection from the server begin with `unsafe_`.
        title: in tables.
        options: names of the settings in `protect.options` that it reads.
        server_learns: `updates`, of single clients, or `sums` over clients and nothing of a single one.
        follows: the settings of the section `protect`, besides `scheme`, `options` and `keys`, that it
            enforces. Where the server learns sums, others are refused if they are set.
        needs_keys: whether clients need keys, journals and a common roster (`fedproxy-secure provision`).
        protocol: of this package's own schemes, the protocol that attacks play again with a server that
            deviates. None for all others; such attacks then are inconclusive.

    Raises `ConfigError` when a class is defined with values that these attributes cannot have.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    server_learns: ClassVar[Literal["updates", "sums"]] = "updates"
    follows: ClassVar[frozenset[str]] = frozenset()
    needs_keys: ClassVar[bool] = False
    protocol: ClassVar[Literal["masking", "ckks"] | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.server_learns not in _LEARNS:
            raise ConfigError(
                f"{cls.__name__}.server_learns={cls.server_learns!r}: must be updates or sums"
            )
        if unknown := sorted(cls.follows - RULES):
            raise ConfigError(f"{cls.__name__}.follows: {unknown[0]} is no rule of protect")
        if cls.protocol is not None and not cls.__module__.startswith(_OWN):
            raise ConfigError(
                f"{cls.__name__}.protocol={cls.protocol}: must be None outside of this package; attacks "
                "would play its own rounds, not those of this class"
            )

    def check_settings(
        self,
        protect: ProtectConfig,
        privacy: PrivacyConfig,
        fusion: FusionConfig,
        *,
        cohort: int | None,
    ) -> None:
        """Raise `ConfigError` for settings under which this protection cannot give what it promises.

        Called when settings, and when a client's policy, are read. Override it to check values of options.

        Args:
            cohort: number of clients in a round; None if unknown, as in a client's own policy.
        """
        fusion_rule_of(fusion).check_settings(fusion)
        for option in protect.options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"protect.options.{option}: is no option of protect.scheme={self.name}; it has: {known}"
                )
        if privacy.unit == "client" and self.protocol != "masking":
            raise ConfigError(
                f"protect.scheme={self.name}: with privacy.unit=client must be masking, inside whose sums "
                "the noise is added"
            )
        self._check_followed(protect)

    def _check_followed(self, protect: ProtectConfig) -> None:
        """Raise `ConfigError` for a rule against the server that is set and that nobody would enforce."""
        promises = RULES if self.server_learns == "sums" else {"min_cohort", "refuse_differencing"}
        for name in sorted(promises - self.follows):
            value, default = getattr(protect, name), ProtectConfig.model_fields[name].default
            if value != default:
                raise ConfigError(
                    f"protect.{name}={value}: is not enforced with protect.scheme={self.name}; must be "
                    f"{default}, or another scheme, such as masking"
                )

    def check_installed(self) -> None:  # noqa: B027 - most need nothing besides the package
        """Raise `ConfigError`, naming the extra, if a library that this protection needs is missing."""

    @abstractmethod
    def sees(self, protect: ProtectConfig, fusion: FusionConfig) -> str:
        """Return one sentence on what the server sees; every report shows it."""

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        """Return the warnings with which every report must begin; () if there are none."""
        if self.server_learns != "sums":
            return (f"{self.name}: the server learns single clients' updates.",)
        return ()

    def least_clients(self, job: FederationJob) -> int:
        """Return the least number of clients of a round, apart from `federate.min_clients`."""
        return 1

    @abstractmethod
    def upload_bytes(self, job: FederationJob, sizes: Sequence[int]) -> int:
        """Return the bytes of payload that one client sends in a round, for trained tensors of `sizes`."""

    def rounding_error(self, job: FederationJob, sizes: Sequence[int]) -> float | None:
        """Return how far rounding may move a coordinate of round 0's mean, or None without rounding."""
        return None

    @abstractmethod
    def train(self, asked: ClientRequest) -> RecordDict:
        """Answer the training request of a round; read its content with `broadcast.agreed_broadcast`."""

    def answer(self, asked: ClientRequest) -> RecordDict:
        """Answer a later step of a round, `asked.step`. Raises `ProtocolAborted` for an unknown one."""
        raise ProtocolAborted(f"{asked.step}: is no step of {self.name}")

    @abstractmethod
    def run_round(self, round: ServerRound) -> RoundResult:
        """Run one round from the server's side and fuse what it learns into the next state.

        Raises `RoundAborted` if too few clients answer.
        """


def protection_of(protect: ProtectConfig) -> Protection:
    """Return the protection that settings name. Raises `ConfigError` for a name that is not known."""
    protection: Protection = PROTECTIONS.get(protect.scheme, setting="protect.scheme")
    return protection
