"""An LLM, its proxy, and what an adversary sees of them."""

import numpy as np
import pytest

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.models.llm import with_blocks
from fedproxy_secure.record.view import View
from tests.support.extraction import KEPT
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A victim of four blocks, and its proxy of the outer two."""
    place = tmp_path_factory.mktemp("extraction")
    save_tiny(place / "llm")
    save_model(with_blocks(tiny_llama(), list(KEPT)), tiny_tokenizer(), place / "proxy")
    return place


@pytest.fixture
def seen(folders):
    return View(
        threat_model="client",
        settings=None,
        adapters={0: np.zeros(0, np.float32)},
        proxy=folders / "proxy",
        api=folders / "llm",
    )
