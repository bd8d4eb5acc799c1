"""A protection of your own: clients send the signs of their updates and one length, a bit per number.

Fewer bytes, no secret, so the name begins with `unsafe_`. Name it in the `pyproject.toml` of your package:

    [project.entry-points."fedproxy_secure.protections"]
    unsafe_signs = "own_protection:SIGNS"

Then `protect: {scheme: unsafe_signs}` in any settings. It is signSGD with a scale (Bernstein et al. 2018).
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import ConfigRecord, RecordDict

import fedproxy_secure as fp
from fedproxy_secure.config import FusionConfig, ProtectConfig
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.wire import records


class Signs(fp.OneMessage):
    """Each coordinate becomes plus or minus the mean absolute value of the update."""

    name, title = "unsafe_signs", "signs only"
    reveals = "the sign of every number of the client's update"

    def sees(self, protect: ProtectConfig, fusion: FusionConfig | None) -> str:
        return "unsafe_signs: the server sees the sign of every number of every client's update."

    def unsafe(self, protect: ProtectConfig) -> tuple[str, ...]:
        return (self.sees(protect, None),)

    def upload_bytes(self, job: fp.FederationJob, sizes: Sequence[int]) -> int:
        return -(-sum(sizes) // 8) + 8

    def encode(self, update: ClientUpdate, job: fp.FederationJob) -> RecordDict:
        bits = np.packbits(update.update > 0).tobytes()
        scale = float(np.abs(update.update).mean())
        signs = ConfigRecord({"client": update.client, "scale": scale, "bits": bits, "steps": update.steps})
        return RecordDict({"signs": signs})

    def decode(self, content: RecordDict, job: fp.FederationJob, *, d: int) -> ClientUpdate:
        keys = {"client", "scale", "bits", "steps"}
        fields = records.record(content, "signs", ConfigRecord, "signs", keys=keys)
        raw = records.raw_bytes(fields, "bits", length=-(-d // 8))
        scale = records.number(fields, "scale")
        signs = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=d).astype(np.float32) * 2 - 1
        return ClientUpdate(
            client=records.plain_text(fields, "client", most=64),
            update=np.float32(scale) * signs,
            loss=0.0,
            steps=records.integer(fields, "steps"),
            seconds=0.0,
            truncated=0,
        )


SIGNS = Signs()
