"""An owner's federation and three sites that have joined."""

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.deploy.federation import init
from fedproxy_secure.deploy.site import (
    join,
)
from tests.support.members import NAMES


@pytest.fixture
def config():
    clients = [{"name": name, "task": "clinic"} for name in (*NAMES, "council")]
    return parse_config(
        {
            "name": "three",
            "seeds": [0],
            "data": {"clients": clients},
            "protect": {"scheme": "masking"},
            "federate": {"min_clients": 3},
        }
    )


@pytest.fixture
def federation(config, tmp_path):
    return init(config, tmp_path / "federation", address="owner.example:9443")


@pytest.fixture
def sites(tmp_path):
    return {name: join(name, tmp_path / name)[0] for name in NAMES}
