"""A job whose proxy is sent in small parts."""

import pytest

from fedproxy_secure.flower import shipping
from tests.support.masked_rounds import masked_world, serve_with, with_
from tests.support.shipping import PART


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_world(tmp_path_factory)


@pytest.fixture(scope="module")
def job(world):
    return with_(world[0], scheme="unsafe_plaintext", rounds=1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(shipping, "PART_BYTES", PART)
    monkeypatch.setattr(shipping, "AFTER_LOSS_S", 0.0)
    monkeypatch.setattr(shipping, "SOON_S", 0.002)
    monkeypatch.setattr(shipping, "POLL_S", 0.01)
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def expected(world, job):
    """The adapter of clients that have the proxy anyway."""
    return serve_with(world, job).adapter.tobytes()
