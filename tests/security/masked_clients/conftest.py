"""A world whose clients mask."""

import pytest

from fedproxy_secure.flower.internals.messages import act_as_server
from tests.support.masked_rounds import masked_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    act_as_server()  # tests send messages before any round has run
    return masked_world(tmp_path_factory)
