"""Split one data set over clients, with label skew.

The split follows from the records and the settings alone, so that every party and every engine of a
simulation finds the same one, and every record is in exactly one part.

Clients are as large as each other, as in Hsu, Qi and Brown (2019, arXiv:1909.06335): each draws a mixture
of labels from a Dirichlet distribution around that of all records, then records without replacement. When
the records of a label have run out, the mixture of the others is used. A uniform split is the same with one
label for all records.

A label is the text of a right answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedproxy_secure.config import SplitConfig
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.randomness import stream

Ints = NDArray[np.int64]
Part = tuple[list[Record], list[Record]]  # training and test records of one client


def split_records(train: Sequence[Record], test: Sequence[Record], split: SplitConfig) -> list[Part]:
    """Return the training and test records of every client, each in order.

    Raises `DataError` if clients would have fewer than `min_records` training records, or if records have
    no labels to skew.
    """
    least = len(train) // split.clients
    if least < split.min_records:
        raise DataError(
            f"data.partition or part: {len(train)} training records over clients={split.clients} are "
            f"{least} for one of them; must be >= min_records={split.min_records}"
        )
    train_labels, test_labels = _labels(train, test, split)
    train_owners = split_by_label(train_labels, split)
    test_owners = split_alike(test_labels, train_labels, train_owners, split)
    parts: list[Part] = [([], []) for _ in range(split.clients)]
    for records, owners, which in ((train, train_owners, 0), (test, test_owners, 1)):
        for record, owner in zip(records, owners, strict=True):
            parts[owner][which].append(record)
    return parts


def _labels(train: Sequence[Record], test: Sequence[Record], split: SplitConfig) -> tuple[Ints, Ints]:
    """Return the labels of training and test records as numbers; all the same for a uniform split."""
    if split.alpha is None:
        return np.zeros(len(train), dtype=np.int64), np.zeros(len(test), dtype=np.int64)
    answers = {frozenset(choices) for choices in {record.choices for record in (*train, *test)}}
    if len(answers) > 1:
        raise DataError(
            f"data.partition or part: alpha={split.alpha:g} skews labels, and these records do not all "
            "have the same answers to choose from; leave alpha out for a uniform split"
        )
    number = {answer: index for index, answer in enumerate(sorted(*answers))}
    train_labels, test_labels = (
        np.array([number[record.choices[record.label]] for record in records], dtype=np.int64)
        for records in (train, test)
    )
    return train_labels, test_labels


def split_by_label(labels: Ints, split: SplitConfig) -> Ints:
    """Return which client has each record: equally many each, give or take one."""
    rng = stream(split.seed, "partition", "training")
    left = np.bincount(labels)
    places = [rng.permutation(np.flatnonzero(labels == label)) for label in range(len(left))]
    around = (split.alpha or 1.0) * left / len(labels)
    owners = np.empty(len(labels), dtype=np.int64)
    for client in range(split.clients):
        size = len(labels) // split.clients + (client < len(labels) % split.clients)
        mixture = np.zeros(len(left))
        mixture[around > 0] = rng.dirichlet(around[around > 0])
        taken = _draw(mixture, left, size, rng)
        for label, count in enumerate(taken):
            owners[places[label][left[label] - count : left[label]]] = client
        left = left - taken
    return owners


def _draw(mixture: NDArray[np.float64], left: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Return how many records of each label are drawn, `size` in total, without replacement."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        weights = np.where(taken < left, mixture, 0.0)
        if weights.sum() == 0:  # all that the client would have has run out
            weights = (left - taken).astype(np.float64)
        # draws of a label that has run out are drawn again from the others
        taken = np.minimum(taken + rng.multinomial(missing, weights / weights.sum()), left)
    return taken


def split_alike(labels: Ints, train_labels: Ints, train_owners: Ints, split: SplitConfig) -> Ints:
    """Return which client has each test record: of each label in proportion to its training records.

    Test records of a label without training records are spread evenly.
    """
    rng = stream(split.seed, "partition", "test")
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        known = np.sort(train_owners[train_labels == label])
        known = known if len(known) else np.arange(split.clients)
        # owners at even distances, from a random start: whole numbers, so that none is out of range
        at = (np.arange(len(places)) * len(known) + rng.integers(len(known))) // len(places)
        owners[places] = known[at]
    return owners
