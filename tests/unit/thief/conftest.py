"""A victim's folder beside those of two proxies."""

import pytest

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.models.llm import with_blocks
from tests.support.thief import narrow
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A victim of four blocks, a proxy of two of them, and one of four blocks whose channels are halved."""
    place = tmp_path_factory.mktemp("thief")
    save_tiny(place / "llm")
    save_model(with_blocks(tiny_llama(), [0, 3]), tiny_tokenizer(), place / "proxy")
    save_model(narrow(tiny_llama()), tiny_tokenizer(), place / "narrow")
    return place
