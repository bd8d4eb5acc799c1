"""One client's task: its records from the demo world, about real things, or from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import overload

from fedproxy_secure.config import AuditConfig, ClientConfig, Config, DataConfig
from fedproxy_secure.data.partition import Part, split_records
from fedproxy_secure.data.planted import draw_canaries, set_aside
from fedproxy_secure.data.records import Record, Task
from fedproxy_secure.data.sources import HUB, file_stamp, part_of, place_of, read_rows, row_count
from fedproxy_secure.data.templates import to_records
from fedproxy_secure.errors import DataError

log = logging.getLogger(__name__)
BUILT_IN = ("demo", "real_things")  # sources that need no files


@overload
def load_task(client: ClientConfig, *, root: str | None) -> Task: ...
@overload
def load_task(client: ClientConfig, *, root: str | None, audit: AuditConfig, seed: int) -> Task: ...
def load_task(
    client: ClientConfig, *, root: str | None, audit: AuditConfig | None = None, seed: int = 0
) -> Task:
    """Read a client's train and test records; canaries come last among the training records.

    With `audit`, the seed of the run decides which records are set aside and which secrets are planted.
    Without it, no record is set aside and no secret planted.

    Raises `DataError` for files that cannot be read, unknown tasks, labels outside the choices, fewer than
    2 training records or 1 test record, if training and test would read the same row, and for records that
    cannot be split as `client.part` says.
    """
    audit = audit or AuditConfig()
    if client.part is None:
        everything, test = _whole(client, root)
    else:
        # all clients of a partition share a key, so that their records are read and split once
        shared = {"name": "of data.partition or part", "part": client.part.model_copy(update={"index": 0})}
        files = tuple(
            file_stamp(client.source, s, root=root) for s in (client.train_split, client.test_split)
        )
        everything, test = _parts(client.model_copy(update=shared), root, files)[client.part.index]
    train, holdout = set_aside(everything, audit.holdout, client.name, seed=seed)
    for canary in draw_canaries(client.name, audit.canaries, seed=seed):
        train += [canary.record()] * canary.repeats
    for kind, records, least in (("training", train, 2), ("test", test, 1)):
        if len(records) < least:
            chance = " or another seed" if kind == "test" else ""
            remedy = f"; use fewer clients, more {kind} records{chance} in data.partition or part"
            if client.part is None:
                remedy = f"; {_rows_named(client, kind, root)}"
            raise DataError(
                f"client {client.name}: has {len(records)} {kind} records; must have >= {least}{remedy}"
            )
    return Task(name=client.name, train=tuple(train), test=tuple(test), holdout=tuple(holdout))


def load_tasks(data: DataConfig, *, audit: AuditConfig | None = None, seed: int = 0) -> tuple[Task, ...]:
    """Read every client's task, with `audit` for one seed of the run; raises as `load_task` does."""
    audit = audit or AuditConfig()
    return tuple(load_task(c, root=data.root, audit=audit, seed=seed) for c in data.clients)


def _rows_named(client: ClientConfig, kind: str, root: str | None) -> str:
    """Return which split has a client's records and, of a file, how many rows there are."""
    setting, split = ("test_split", client.test_split)
    if kind == "training":
        setting, split = ("train_split", client.train_split)
    if client.source in BUILT_IN or client.source.startswith(HUB):
        return f"{setting}={split!r}"
    return f"{setting}={split!r} of {row_count(client.source, part_of(split)[0], root=root)} rows"


@lru_cache(maxsize=2)
def _parts(client: ClientConfig, root: str | None, files: object) -> list[Part]:
    """Return the parts of all clients; `files` tells changed files from those that were read before."""
    assert client.part is not None
    return split_records(*_whole(client, root), client.part)


def _whole(client: ClientConfig, root: str | None) -> Part:
    """Return all training and all test records that a client's settings name, whatever its part of them."""
    same_file = (
        client.source not in BUILT_IN
        and not client.source.startswith(HUB)
        and "{split}" not in client.source
    )
    if same_file or client.train_split == client.test_split:
        raise DataError(
            f"client {client.name}: source {client.source!r} with splits {client.train_split!r} and "
            f"{client.test_split!r}: training and test records would be the same; the file's name must "
            "contain {split}, and the splits must differ"
        )
    _check_apart(client, root)
    train = _records(client, client.train_split, client.train_records, root)
    if client.learn is not None:
        train = [replace(record, learn=client.learn) for record in train]
    return train, _records(client, client.test_split, client.test_records, root)


def _check_apart(client: ClientConfig, root: str | None) -> None:
    """Raise `DataError` if parts of one split that a client trains and tests on have rows in common."""
    splits = {"train_split": client.train_split, "test_split": client.test_split}
    if len({split.partition("[")[0] for split in splits.values()}) > 1:
        return
    subject = f"client {client.name}: " + ", ".join(f"{name}={split!r}" for name, split in splits.items())
    remedy = "use such as train[:-200] and train[-200:]"
    try:
        parts = [part_of(split) for split in splits.values()]
    except DataError:
        if not client.source.startswith(HUB):
            raise
        if not all("[" in split for split in splits.values()):
            raise DataError(f"{subject}: test records would also be training records; {remedy}") from None
        return  # parts by percent, which only the library can read
    split_name, world = parts[0][0], client.source in BUILT_IN
    if world:
        count = len(_records(client, split_name, None, root))
    else:
        count = row_count(client.source, split_name, root=root)
    limits = (client.train_records, client.test_records)
    train_rows, test_rows = (
        _rows(part, limit, count, world=world) for (_, part), limit in zip(parts, limits, strict=True)
    )
    shared = min(train_rows.stop, test_rows.stop) - max(train_rows.start, test_rows.start)
    if train_rows and test_rows and shared > 0:
        raise DataError(f"{subject}: have {shared} of {count} rows in common; must have none; {remedy}")


def _rows(part: slice, limit: int | None, count: int, *, world: bool) -> range:
    """Return which rows of a split are read; a world has more than `count` rows on demand."""
    if world and part == slice(None):
        count = limit or count
    elif world and _counts_from_the_front(part):
        count = part.stop
    return range(count)[part][:limit]


def _counts_from_the_front(part: slice) -> bool:
    return part.stop is not None and part.stop >= 0 and (part.start or 0) >= 0


def _records(client: ClientConfig, split: str, limit: int | None, root: str | None) -> list[Record]:
    if client.source == "demo":
        from fedproxy_secure.data.worlds.demo_notes import NOTE_TASKS, note_records
        from fedproxy_secure.data.worlds.demo_tasks import demo_records

        of_task = note_records if client.task in NOTE_TASKS else demo_records
        return _part(of_task, client.task, split, limit)
    if client.source == "real_things":
        from fedproxy_secure.data.worlds.real_tasks import real_records

        return _part(real_records, client.task, split, limit)
    rows = read_rows(client.source, split, root=root, limit=limit)
    place = place_of(client.source, split, root)
    return to_records(client.task, rows, where=f"source {place}, split {split}")


def _part(
    of_task: Callable[[str, str, int | None], list[Record]], task: str, split: str, limit: int | None
) -> list[Record]:
    """Return a split, or a part of one, of a world's records, which are drawn one after another.

    Raises `DataError` if a part that counts from the end has fewer than `limit` records.
    """
    split_name, part = part_of(split)
    if part == slice(None):
        return of_task(task, split_name, limit)
    if _counts_from_the_front(part):  # so it may lie beyond the usual number of records
        return of_task(task, split_name, part.stop)[part][:limit]
    records = of_task(task, split_name, None)[part]
    if limit is not None and limit > len(records):
        raise DataError(
            f"split {split!r}: has {len(records)} records, {limit} are asked for; ask for no more, or "
            f"count from the front, as in {split_name}[:{limit}]"
        )
    return records[:limit]


def warn_of_trained_tests(config: Config, tasks: Sequence[Task]) -> None:
    """Log how many test records equal a training record of their client, if any do.

    Under differential privacy nothing is logged, because the numbers would have no noise.
    """
    if config.privacy.unit != "none":
        return
    counts = {task.name: (equal, len(task.test)) for task in tasks if (equal := task.trained_tests())}
    if counts:
        listed = ", ".join(f"{name} {equal} of {tests}" for name, (equal, tests) in counts.items())
        log.warning(
            "test records that equal a training record of the same client: %s; accuracies count them, so "
            "remove them from one of the two splits",
            listed,
        )


def truncated_prompts(config: Config, tasks: Sequence[Task]) -> int:
    """Count the training and test prompts that lose their beginning, because of `data.max_tokens`.

    Training makes room for the right choice, evaluation for the longest choice of a record with several.
    Returns 0 under differential privacy, because the number would have no noise.

    `tasks`: from `load_tasks` without `audit`, so that records set aside are counted, too.

    Raises `ModelError` for a tokenizer that cannot be read, `DataError` for a choice that leaves no room.
    """
    from fedproxy_secure.data.chat.derived import keep_format
    from fedproxy_secure.data.choices import cut_questions
    from fedproxy_secure.data.encode import encode_records
    from fedproxy_secure.models.llm import load_tokenizer

    if config.privacy.unit != "none":
        return 0
    tokenizer = load_tokenizer(config.model.path)
    keep_format(tokenizer)
    most, cut = config.data.max_tokens, 0
    for task in tasks:
        asked = [record for record in task.test if len(record.choices) > 1]
        written = [record for record in task.test if len(record.choices) == 1]
        cut += cut_questions(asked, tokenizer, max_tokens=most)
        cut += sum(encode_records(r, tokenizer, max_tokens=most).truncated for r in (task.train, written))
    return cut
