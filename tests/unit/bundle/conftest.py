"""A signed run, and the bundle of it."""

import pytest

from fedproxy_secure.bundle.archive import read_archive
from fedproxy_secure.bundle.build import make_bundle
from tests.support.bundles import RESEARCH
from tests.support.signed_run import signed_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return signed_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mine.zip"
    make_bundle(run.folder, out, policy=RESEARCH)
    return out


@pytest.fixture(scope="module")
def files(bundle):
    return read_archive(bundle)
