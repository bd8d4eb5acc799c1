"""`unsafe_plaintext`: every client sends its update as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedproxy_secure.config import FusionConfig, ProtectConfig
from fedproxy_secure.protect.base import RoundResult, ServerRound
from fedproxy_secure.protect.one_message import OneMessage

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.federate.update import ClientUpdate

FLOAT32_BYTES = 4


class Plaintext(OneMessage):
    """No protection: the server sees every client's update, and fuses exactly."""

    name = "unsafe_plaintext"
    title = "no protection"

    def sees(self, protect: ProtectConfig, fusion: FusionConfig) -> str:
        return "unsafe_plaintext: the server sees every client's update."

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        return ("unsafe_plaintext: the server sees every client's update.",)

    def upload_bytes(self, job: FederationJob, sizes: Sequence[int]) -> int:
        return FLOAT32_BYTES * sum(sizes)

    def encode(self, update: ClientUpdate, job: FederationJob) -> RecordDict:
        from fedproxy_secure import wire

        return wire.encode_update(update)

    def decode(self, content: RecordDict, job: FederationJob, *, d: int) -> ClientUpdate:
        from fedproxy_secure import wire

        return wire.decode_update(content, d=d)

    def run_round(self, round: ServerRound) -> RoundResult:
        return replace(super().run_round(round), updates={})  # the messages hold the updates


PLAINTEXT = Plaintext()
