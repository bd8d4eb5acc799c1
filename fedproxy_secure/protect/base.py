"""What a protection is: how updates travel from clients to the server, and who sees what of them.

`protect.scheme` names one. Subclass `Protection`, or `fedproxy_secure.protect.one_message.OneMessage` where
a client's answer to the training request is all that it sends, and register an instance under the entry
point group `fedproxy_secure.protections`. `examples/own_protection.py` is a whole one.

Contents of messages are Flower's `RecordDict`s. What a client receives comes from the server, which may be
hostile: read it as strictly as `fedproxy_secure.wire` does. What must happen once, such as opening a sum,
must be consumed in the client's journal before it is answered (`fedproxy_secure.journal`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

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
    """One message of the server to this client, and what the client has to answer it with.

    `job`: the server's job with this client's own records, folders and checks in it. `policy`: hash of the
    client's own policy, 32 bytes; None where one machine plays all parties. `local_client`: builds the
    client, its model and records; call it only in steps that train.
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
    """What the server has for one round.

    `cohort`: names of all clients that the round is meant for, sorted; those that are not connected do not
    answer. `ledger`: note there what is sent to whom and what it reveals; it stands on the report.
    `on_client` is told the name of a client that has trained. `enough` raises `RoundAborted` for fewer
    clients than `federate.min_clients`. `note_left_out` is told the name of a client whose answer cannot be
    used, and why; the owner reads it if the round is aborted. `note_unmasked` keeps for whom the round is
    about to be unmasked: call it before clients are asked to. Clients unmask a round for no others, so an
    attempt after a crash must be of the same.
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
    """What a round came to.

    `state`: the next state. `metrics`: numbers for the round's line. `clients`: whose updates are in it.
    `sums`: the sums that the server learnt, by name. `updates`: what the server can work out of single
    clients, float32 [d] by name; leave it empty if the messages themselves hold the updates. Recorded runs
    put it into the server's view.
    """

    state: ServerState
    metrics: dict[str, float]
    clients: Sequence[str]
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    updates: Mapping[str, np.ndarray] = field(default_factory=dict)


class Protection(ABC):
    """How updates reach the server.

    `name`: in settings; schemes without protection from the server begin with `unsafe_`. `title`: in
    tables. `options`: names of the settings in `protect.options` that it reads. `secure_sum`: the server
    learns sums only, over clients that have keys and a common roster. `homomorphic`: clients add
    ciphertexts instead of masked ring words. `supports_client_noise`: noise for `privacy.unit: client` can
    be added inside the sum.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    secure_sum: ClassVar[bool] = False
    homomorphic: ClassVar[bool] = False
    supports_client_noise: ClassVar[bool] = False

    def check_settings(
        self,
        protect: ProtectConfig,
        privacy: PrivacyConfig,
        fusion: FusionConfig,
        *,
        cohort: int | None,
    ) -> None:
        """Raise `ConfigError` for settings under which this protection cannot hold what it says.

        Called when settings, and when a client's policy, are read. Override it to check values of options.

        Args:
            cohort: clients a round asks; None where it is not known, in a client's own policy.
        """
        fusion_rule_of(fusion).check_settings(fusion)
        for option in protect.options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"protect.options.{option}: is no option of protect.scheme={self.name}; it has: {known}"
                )
        if privacy.unit == "client" and not self.supports_client_noise:
            raise ConfigError(
                f"protect.scheme={self.name}: with privacy.unit=client must be masking, where "
                "the noise is added"
            )
        if not self.secure_sum and (protect.min_cohort is not None or protect.refuse_differencing):
            raise ConfigError(
                f"protect.scheme={self.name}: must be masking or ckks with protect.min_cohort or "
                "protect.refuse_differencing, which apply to secure sums only"
            )

    def check_installed(self) -> None:  # noqa: B027 - most need nothing besides the package
        """Raise `ConfigError`, which names the extra, where a library that this needs is missing."""

    @abstractmethod
    def sees(self, protect: ProtectConfig, fusion: FusionConfig) -> str:
        """Return one sentence on what the server sees; it stands on every report."""

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        """Return sentences that every report must say first; () if there are none."""
        return ()

    def least_clients(self, job: FederationJob) -> int:
        """Return how many clients a round needs at least, `federate.min_clients` aside."""
        return 1

    @abstractmethod
    def upload_bytes(self, job: FederationJob, sizes: Sequence[int]) -> int:
        """Return the payload that one client sends in one round, for trained tensors of `sizes`."""

    def rounding_error(self, job: FederationJob, sizes: Sequence[int]) -> float | None:
        """Return how far rounding may move a coordinate of the mean in round 0, or None."""
        return None

    @abstractmethod
    def train(self, asked: ClientRequest) -> RecordDict:
        """Answer the training request of a round; `broadcast.agreed_broadcast` reads it."""

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
    protection: Protection = PROTECTIONS.get(protect.scheme, where="protect.scheme")
    return protection
