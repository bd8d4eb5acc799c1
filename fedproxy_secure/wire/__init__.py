"""The messages between server and clients, as Flower records; both sides decode strictly.

    server -> client  query.setup   the job and the proxy's hash
    client -> server  whether it has the proxy, how many bytes of it have arrived, and the client's name
    server -> client  query.part    the next bytes of the proxy, until it is complete; the same answer
    server -> client  train         round, adapter vector, conflict map, weights of the penalties
    client -> server  the update and its metrics, or one line that says what went wrong

Under masking, the training request also carries the round's terms. The client answers with its keys and
keeps the update, and the protocol's messages follow (`query.share` ... `query.unmask`). Schemes of other
packages send further steps as `query.step`.

Guarantees: whatever arrives, a decoder returns a value or raises `DataError` or `ProtocolAborted`. The
types, shapes, sizes and ranges of a value are checked before anything is allocated or copied. An error is
one bounded line of printable characters. A decoded vector holds only finite numbers. Without masking,
nothing is secret: the update travels in the clear (Flower's TLS aside), and the server reads it.
"""

from fedproxy_secure.proxy_intake.parts import Part
from fedproxy_secure.wire.protocol import (
    ProposedTerms,
    decode_message,
    decode_terms,
    encode_message,
    encode_terms,
    gram_of,
    step_of,
    with_gram,
    with_step,
)
from fedproxy_secure.wire.setup import (
    MOST_JOB,
    PART_DATA,
    Ready,
    Setup,
    decode_failure,
    decode_part,
    decode_ready,
    decode_setup,
    encode_failure,
    encode_part,
    encode_ready,
    encode_setup,
    read_job,
)
from fedproxy_secure.wire.training import (
    Broadcast,
    broadcast_sha256,
    decode_broadcast,
    decode_update,
    encode_broadcast,
    encode_update,
    holds_update,
)

SETUP, PART = "query.setup", "query.part"
TRAIN = "train"
SHARE, MASK, CONFIRM, UNMASK = "query.share", "query.mask", "query.confirm", "query.unmask"
GRAM_SHARE, GRAM_SKETCH, GRAM_WEIGH = "query.gram_share", "query.gram_sketch", "query.gram_weigh"
OTHER = "query.step"

__all__ = [
    "Broadcast",
    "CONFIRM",
    "GRAM_SHARE",
    "GRAM_SKETCH",
    "GRAM_WEIGH",
    "MASK",
    "MOST_JOB",
    "OTHER",
    "PART",
    "PART_DATA",
    "Part",
    "ProposedTerms",
    "Ready",
    "SETUP",
    "SHARE",
    "Setup",
    "TRAIN",
    "UNMASK",
    "broadcast_sha256",
    "decode_broadcast",
    "decode_failure",
    "decode_message",
    "decode_part",
    "decode_ready",
    "decode_setup",
    "decode_terms",
    "decode_update",
    "encode_broadcast",
    "encode_failure",
    "encode_message",
    "encode_part",
    "encode_ready",
    "encode_setup",
    "encode_terms",
    "encode_update",
    "holds_update",
    "gram_of",
    "read_job",
    "step_of",
    "with_gram",
    "with_step",
]
