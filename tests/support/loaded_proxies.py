"""A proxy's folder loaded as a client does, and refused."""

import pytest

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.proxy_intake.model import load_proxy

NORM = "model.norm.weight"


def load(folder, max_tokens=64):
    return load_proxy(folder, max_tokens=max_tokens, device="cpu")


def refused(folder, match, kind=FedProxyError, max_tokens=64):
    """Refused in one line that names neither the place nor the machine."""
    with pytest.raises(kind, match=match) as caught:
        load(folder, max_tokens)
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)


def says(job, folder):
    """What building client 0 ends in."""
    try:
        build_client(job, 0, folder)
    except FedProxyError as error:
        return f"{type(error).__name__}: {error}"
    return "built"
