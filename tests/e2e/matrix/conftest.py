"""The settings of a small matrix, for all tests in this folder."""

import pytest

from tests.support.matrix import MASKING, PLAINTEXT
from tests.support.tiny import tiny_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        seeds=[0, 1],
        fusion={"rule": "fedavg"},
        attacks={"suite": "none"},
        matrix={"protections": [PLAINTEXT, MASKING], "remove_ratios": [0.5], "jobs": 1},
    )
