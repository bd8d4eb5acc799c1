"""A client's journal."""

import pytest

from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import (
    create_journal,
)


@pytest.fixture
def journal(tmp_path):
    create_journal(tmp_path, "a")
    return Journal(folder=tmp_path, client="a")
