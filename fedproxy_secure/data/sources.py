"""Rows from local JSONL, CSV and Parquet files, or from the `datasets` library; and public text."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from fedproxy_secure.data.worlds.demo_tasks import PUBLIC_SEED
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.untrusted import MOST_LINE_BYTES, parse_json
from fedproxy_secure.world.real_texts import real_texts
from fedproxy_secure.world.stories import stories

Row = dict[str, Any]


class LineRow(Row):
    """A row of a text file, with the number of its line, the first being 1."""

    def __init__(self, columns: Row, line: int) -> None:
        """Copy the columns."""
        super().__init__(columns)
        self.line = line


HUB = "hub:"
PUBLIC_TEXTS = {"demo": stories, "real_things": real_texts}  # generated, without a file
TEXTS_IN_DIGEST = 256  # number of hashed texts of a generator, which has no end


def read_rows(source: str, split: str, *, root: str | None, limit: int | None) -> list[Row]:
    """Return the first `limit` rows (None: all) of one split.

    `split` may name a part, as in the `datasets` library: `train[:-200]`, `train[-200:]`. `source` is a
    file pattern in which `{split}` and `{data}` (the setting `data.root`) are filled in, or
    `hub:NAME[:SUBSET]`: a hub id or local folder that `datasets.load_dataset` knows.

    Raises `DataError` in one line that names the file and, if known, the line.
    """
    if "{data}" in source and root is None:
        raise DataError(f"source {source!r}: needs data.root, the folder that {{data}} stands for")
    if source.startswith(HUB):
        return _from_datasets(source.removeprefix(HUB).replace("{data}", root or ""), split, limit)
    part, place = part_of(split)[1], place_of(source, split, root)
    path = Path(place)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise DataError(f"source {place}: must end in one of {', '.join(_READERS)}")
    try:
        rows = reader(path) if part == slice(None) else list(reader(path))[part]
        return list(islice(rows, limit))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"source {place}: cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"source {place}: cannot be read: is not UTF-8 at byte {error.start}") from None


def place_of(source: str, split: str, root: str | None) -> str:
    """Return the name of the file that holds a split, or of the hub's data set."""
    return source.replace("{split}", part_of(split)[0]).replace("{data}", root or "")


def file_stamp(source: str, split: str, *, root: str | None) -> tuple[int, int, int] | None:
    """Return numbers that change with the file of a split; None for a source without a file."""
    try:
        found = Path(place_of(source, split, root)).stat()
    except (OSError, DataError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def part_of(split: str) -> tuple[str, slice]:
    """Return a split's name and the slice of its rows.

    >>> part_of("train[:-200]"), part_of("test")
    (('train', slice(None, -200, None)), ('test', slice(None, None, None)))

    Raises `DataError` for other text.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+)?:(-?\d+)?\])?", split)
    if match is None:
        raise DataError(f"split {split!r}: must be a name, or a name with a part such as train[:-200]")
    name, first, last = match.groups()
    return name, slice(first and int(first), last and int(last))


def _jsonl(path: Path) -> Iterable[Row]:
    with path.open("rb") as handle:  # as bytes, so that an error can name a line that is not UTF-8
        for number in count(1):
            line = handle.readline(MOST_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MOST_LINE_BYTES:
                raise DataError(f"{path}, line {number}: is longer than {MOST_LINE_BYTES:,} bytes")
            if not line.strip():
                continue
            try:
                row = parse_json(line, repeats=False)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: must be an object with columns")
            yield LineRow(row, number)


def _csv(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig", newline="") as handle:  # with or without a byte-order mark
        reader = csv.DictReader(handle, strict=True)
        try:
            columns = reader.fieldnames or ()
            for at, name in enumerate(columns):
                first = columns.index(name)
                if name and first < at:  # not quoted, because without a header it is a record's cell
                    positions = f"{first + 1} and {at + 1}"
                    raise DataError(
                        f"{path}, line 1: columns {positions} have one name; rename or drop one"
                    )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: must have {len(columns)} cells, "
                        "as many as the first line"
                    )
                yield LineRow(row, reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.reader.line_num}: is not CSV: {error}") from error


def _parquet(path: Path) -> Iterable[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"source {path}: needs the extra `datasets` (pyarrow)") from error
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory")
    try:
        yield from pq.read_table(path).to_pylist()
    except pa.ArrowException:  # its text may quote a cell
        raise DataError(f"{path}: is not a Parquet file") from None


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def row_count(source: str, split: str, *, root: str | None) -> int:
    """Return how many rows a split has; raises as `read_rows` does."""
    if source.startswith(HUB):
        return _hub_row_count(source.removeprefix(HUB), split)
    return len(read_rows(source, split, root=root, limit=None))


@lru_cache(maxsize=64)
def _hub_row_count(name: str, split: str) -> int:
    return len(_dataset(name, split))


def _from_datasets(name: str, split: str, limit: int | None) -> list[Row]:
    rows = _dataset(name, split)
    try:
        return [dict(row) for row in islice(rows, limit)]
    except Exception as error:
        kind = type(error).__name__  # its text may quote a row
        raise DataError(f"hub:{name}, split {split}: a row cannot be read ({kind})") from None


def _dataset(name: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"hub:{name}: needs the extra `datasets`") from error
    folder, _, subset = name.partition(":")
    try:
        return load_dataset(folder, subset or None, split=split)
    except Exception as error:  # `datasets` raises many kinds, none of them its own
        # of rows that it cannot turn into a table it says no more than that, and has the cell in the cause
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"hub:{name}, split {split}: cannot be loaded: {reason}") from None


def public_text(name: str, *, root: str | None, texts: int) -> str:
    """Return the public text of a name: `texts` texts of a world, one per line, or a whole file.

    Args:
        name: as in `data.public_text`.
        root: the folder that replaces `{data}` in a file's name.

    Raises `DataError` for a file that cannot be read or is not UTF-8.
    """
    if name in PUBLIC_TEXTS:
        return "\n".join(islice(PUBLIC_TEXTS[name](PUBLIC_SEED), texts))
    place = name.replace("{data}", root or "{data}")
    try:
        return Path(place).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.public_text={place}: cannot be read: {error}") from error


def public_text_sha256(name: str, *, root: str | None) -> str:
    """Return the SHA-256 of public text, as hex: of a file's text, or of the first texts of a world.

    The arguments and errors are those of `public_text`.
    """
    text = public_text(name, root=root, texts=TEXTS_IN_DIGEST)
    return hashlib.sha256(text.encode()).hexdigest()
