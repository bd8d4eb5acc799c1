"""A secure sum of your own: every client splits its update between two servers (additive secret sharing).

The owner's server gets random numbers, and a helper gets the update minus these, sealed. The helper adds up
what it gets from all clients, so the two sums together give the sum of the updates. Here the helper is a
function; in earnest it is another party's machine, and only that party has its private key.

    [project.entry-points."fedproxy_secure.protections"]
    two_servers = "own_secure_sum:TWO_SERVERS"
"""

import secrets

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.protect.base import Protection
from fedproxy_secure.protect.gathering import check_reads_mean_alone, fuse_sum, gather
from fedproxy_secure.protect.one_message import train
from fedproxy_secure.wire import records

HELPER = Secret(b"not a secret: it stands for the ")  # the helper's private key, 32 bytes
STEP = 2.0**-20  # the sums are of whole numbers of steps, modulo 2**32


class TwoServers(Protection):
    name, title, server_learns = "two_servers", "shares for two servers", "sums"

    def check_settings(self, protect, privacy, fusion, *, cohort):
        super().check_settings(protect, privacy, fusion, cohort=cohort)
        check_reads_mean_alone(self.name, fusion)

    def sees(self, protect, fusion):
        return "two_servers: two servers that follow the protocol and do not collude see the sum alone."

    def unsafe(self, protect):
        return (self.sees(protect, None),)

    def upload_bytes(self, job, sizes):
        return 8 * sum(sizes)

    def train(self, asked):
        words = np.rint(train(asked).update / STEP).astype(np.int64).astype(np.uint32)
        share, ephemeral = (
            np.frombuffer(secrets.token_bytes(words.nbytes), np.uint32),
            crypto.fresh_secret(),
        )
        key = crypto.agree(ephemeral, crypto.agreement_public(HELPER), info=b"share", what="helper's key")
        sealed = crypto.seal(key, (words - share).tobytes(), associated=asked.name.encode())
        fields = {"share": share.tobytes(), "key": crypto.agreement_public(ephemeral), "sealed": sealed}
        return RecordDict({"shares": ConfigRecord(fields)})

    def run_round(self, round):
        d = len(round.state.adapter)

        def read(name, reply):
            fields = records.record(
                reply, "shares", ConfigRecord, "shares", keys={"share", "key", "sealed"}
            )
            share = np.frombuffer(records.raw_bytes(fields, "share", length=4 * d), np.uint32)
            return share, helpers_share(name, fields, d)

        shares = gather(round, read, message="Shares", reveals="random numbers", payload_bytes=8 * d)
        servers, helpers = (
            np.sum(part, axis=0, dtype=np.uint32) for part in zip(*shares.values(), strict=True)
        )
        total = (servers + helpers).astype(np.int32) * np.float32(STEP)
        return fuse_sum(round, total, list(shares))


def helpers_share(name, fields, d):
    """What the helper does with one client's message; in earnest it answers with the sum alone."""
    key = crypto.agree(
        HELPER, records.raw_bytes(fields, "key", length=32), info=b"share", what="share's key"
    )
    words = crypto.unseal(key, fields["sealed"], associated=name.encode(), what="share")
    return np.frombuffer(words, np.uint32, count=d)


TWO_SERVERS = TwoServers()
