"""A secure sum of your own: every client splits its update between two servers (additive secret sharing).

The owner's server gets random numbers, and a helper gets the update minus these, sealed. The helper adds up
what it gets from all clients, so the two sums together give the sum of the updates. Here the helper is a
function; in earnest it is another party's machine, and only that party has its private key.

    [project.entry-points."fedproxy_secure.protections"]
    two_servers = "own_secure_sum:TWO_SERVERS"
"""

import secrets
from collections.abc import Sequence

import numpy as np
from flwr.app import ConfigRecord, RecordDict

import fedproxy_secure as fp
from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.protect.base import ClientRequest, RoundResult, ServerRound
from fedproxy_secure.protect.gathering import check_reads_mean_alone, fuse_sum, gather
from fedproxy_secure.protect.one_message import train
from fedproxy_secure.wire import records

HELPER = Secret(b"not a secret: it stands for the ")  # the helper's private key, 32 bytes
STEP = 2.0**-20  # the sums are of whole numbers of steps, modulo 2**32


class TwoServers(fp.Protection):
    name, title, server_learns = "two_servers", "shares for two servers", "sums"

    def check_settings(
        self, protect: ProtectConfig, privacy: PrivacyConfig, fusion: FusionConfig, *, cohort: int | None
    ) -> None:
        super().check_settings(protect, privacy, fusion, cohort=cohort)
        check_reads_mean_alone(self.name, fusion)

    def sees(self, protect: ProtectConfig, fusion: FusionConfig | None) -> str:
        return "two_servers: two servers that follow the protocol and do not collude see the sum alone."

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        return (self.sees(protect, None),)

    def upload_bytes(self, job: fp.FederationJob, sizes: Sequence[int]) -> int:
        return 8 * sum(sizes)

    def train(self, asked: ClientRequest) -> RecordDict:
        words = np.rint(train(asked).update / STEP).astype(np.int64).astype(np.uint32)
        share = np.frombuffer(secrets.token_bytes(words.nbytes), np.uint32)
        ephemeral, helper = crypto.fresh_secret(), crypto.agreement_public(HELPER)
        key = crypto.agree(ephemeral, helper, info=b"share", subject="helper's key")
        sealed = crypto.seal(key, (words - share).tobytes(), associated=asked.name.encode())
        public = crypto.agreement_public(ephemeral)
        shares = ConfigRecord({"share": share.tobytes(), "key": public, "sealed": sealed})
        return RecordDict({"shares": shares})

    def run_round(self, round: ServerRound) -> RoundResult:
        d = len(round.state.adapter)

        def read(name: str, reply: RecordDict) -> tuple[np.ndarray, np.ndarray]:
            fields = records.record(
                reply, "shares", ConfigRecord, "shares", keys={"share", "key", "sealed"}
            )
            share = np.frombuffer(records.raw_bytes(fields, "share", length=4 * d), np.uint32)
            return share, helpers_share(name, fields, d)

        shares = gather(round, read, message="Shares", reveals="random numbers", payload_bytes=8 * d)
        servers, helpers = (
            np.sum(part, axis=0, dtype=np.uint32) for part in zip(*shares.values(), strict=True)
        )
        total = np.multiply((servers + helpers).astype(np.int32), STEP, dtype=np.float32)
        return fuse_sum(round, total, list(shares))


def helpers_share(name: str, fields: ConfigRecord, d: int) -> np.ndarray:
    """What the helper does with one client's message; in earnest it answers with the sum alone."""
    key = crypto.agree(
        HELPER, records.raw_bytes(fields, "key", length=32), info=b"share", subject="share's key"
    )
    length = crypto.NONCE_BYTES + 4 * d + crypto.TAG_BYTES
    sealed = records.raw_bytes(fields, "sealed", length=length)
    words = crypto.unseal(key, sealed, associated=name.encode(), subject="share")
    return np.frombuffer(words, np.uint32, count=d)


TWO_SERVERS = TwoServers()
