"""What a split of records over clients does for every input."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedproxy_secure.config import SplitConfig
from fedproxy_secure.data.partition import split_records
from fedproxy_secure.data.records import Record

ALPHAS = st.none() | st.floats(1e-3, 1e6)


@st.composite
def data_sets(draw):
    """Training and test records of up to five labels, some without any, and a split of them."""
    clients, choices = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    labels = st.integers(0, choices - 1)
    least = draw(st.integers(1, 4))
    train = draw(st.lists(labels, min_size=clients * least, max_size=clients * least + 60))
    test = draw(st.lists(labels, max_size=60))
    names = tuple(f" {label}" for label in range(choices))
    train_records, test_records = (
        [Record(prompt=f"{kind} {i}", choices=names, label=label) for i, label in enumerate(found)]
        for kind, found in (("train", train), ("test", test))
    )
    split = SplitConfig(
        clients=clients, alpha=draw(ALPHAS), seed=draw(st.integers(0, 2**32)), min_records=least
    )
    return train_records, test_records, split


@given(data_sets())
def test_every_record_is_in_exactly_one_part_in_its_order_and_parts_are_equally_large(drawn):
    train, test, split = drawn
    parts = split_records(train, test, split)
    assert len(parts) == split.clients
    for which, records in enumerate((train, test)):
        place = {record: i for i, record in enumerate(records)}
        found = [[place[record] for record in part[which]] for part in parts]
        assert sorted(i for part in found for i in part) == list(range(len(records)))
        assert all(part == sorted(part) for part in found)
    sizes = [len(part[0]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= split.min_records


@given(data_sets())
def test_test_records_of_a_label_are_within_one_of_the_clients_share_of_its_training_records(drawn):
    train, test, split = drawn
    if split.alpha is None:  # then labels are not looked at
        return
    parts = split_records(train, test, split)
    for label in {record.label for record in train}:
        trained, tested = (
            np.array([sum(record.label == label for record in part[which]) for part in parts])
            for which in (0, 1)
        )
        assert (np.abs(tested - trained * tested.sum() / trained.sum()) <= 1).all()
