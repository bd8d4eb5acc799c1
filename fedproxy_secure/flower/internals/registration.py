"""Register nodes at a SuperLink on this machine, through Flower's control interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.flower.internals.transport import hold_clients_to_plain_answers
from fedproxy_secure.runtime.quoting import one_line


def register_nodes(address: str, root: Path, keys: Mapping[str, bytes]) -> dict[str, int]:
    """Register nodes at a SuperLink on this machine; return node id by name.

    Args:
        address: host and port.
        root: the PEM file of the authority that signed the SuperLink's certificate.
        keys: each node's public key on a NIST curve, in OpenSSH's form, by the node's name.

    Raises `RoundAborted` with the node's name if the SuperLink refuses a node or does not answer.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.proto.control_pb2 import RegisterNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    node_ids = {}
    with _control(address, root) as control:
        for name, key in keys.items():
            public = load_ssh_public_key(key)
            assert isinstance(public, EllipticCurvePublicKey)
            request = RegisterNodeRequest(public_key=public_key_to_bytes(public), name=name)
            try:
                node_ids[name] = int(control.RegisterNode(request).node_id)
            except Exception as error:  # raised by httpx, Flower, or Flower's command line
                reason = one_line(str(error) or type(error).__name__, 200)
                raise RoundAborted(
                    f"SuperLink: does not register the node of {name}: {reason}; see superlink.log"
                ) from error
    return node_ids


@contextmanager
def _control(address: str, root: Path) -> Iterator[Any]:
    """Open a client of the interface by which a SuperLink is administered."""
    from flwr.cli.typing import SuperLinkConnection
    from flwr.cli.utils import init_http_client_from_connection

    hold_clients_to_plain_answers()
    connection = SuperLinkConnection(
        name="fedproxy", address=address, root_certificates=str(root.resolve()), insecure=False
    )
    client = init_http_client_from_connection(connection)
    try:
        yield client
    finally:
        client.close()
