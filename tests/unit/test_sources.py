"""A bad line of a file is named by its number; more claims on sources are in test_data.py."""

import sys

import pytest

from fedproxy_secure.config import ClientConfig
from fedproxy_secure.data.sources import public_text, read_rows
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import DataError


def read(path, content: bytes, limit=None):
    path.write_bytes(content)
    return read_rows(str(path), "train", root=None, limit=limit)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"text,label\na,0\nb,1,2\n", "line 3: must have 2 cells"),
        (b"text,label\na,0\n\nb\n", "line 4: must have 2 cells"),
        (b'text,label\n"b"x,1\n', "line 2: is not CSV"),
        (b"label,text,label\n0,a,1\n", "line 1: columns 1 and 3 have one name"),
    ],
)
def test_a_broken_csv_line_is_named(tmp_path, content, line):
    with pytest.raises(DataError, match=rf"x\.csv, {line}"):
        read(tmp_path / "x.csv", content)


def test_a_jsonl_line_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: is not JSON"):
        read(tmp_path / "x.jsonl", b'{"a": 1}\n\xff\n')


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"text": "Jos\xe9"}', "line 1: is not JSON: is not UTF-8 at byte 13"),
        ("x.jsonl", b'{"text": Jane Doe}', "line 1: is not JSON"),
        ("x.csv", b"text,label\nJos\xe9,0\n", "is not UTF-8 at byte 14"),
        ("x.csv", b'text,label\n"Jane Doe"x,1\n', "is not CSV"),
        ("x.csv", b"Jane Doe,Jane Doe\n", "have one name"),
    ],
)
def test_what_cannot_be_read_of_a_line_is_placed_and_not_quoted(tmp_path, name, content, says):
    with pytest.raises(DataError, match=says) as raised:
        read(tmp_path / name, content)
    assert not any(part in str(raised.value) for part in ("Jane", "Doe", "Jos", "0xe9"))


def test_a_row_that_datasets_cannot_turn_into_a_table_is_not_quoted(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "x"}\n{"text": Jane Doe}\n')
    with pytest.raises(DataError, match="split train: cannot be loaded: ") as raised:
        read_rows(f"hub:{tmp_path / 'rows'}", "train", root=None, limit=None)
    assert "Jane" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("line", "keys"),
    [(b'{"a": 1, "text": "x", "text": "y"}', "2 and 3"), (b'{"a": {"b": 1, "b": 1}}', "1 and 2")],
)
def test_a_key_that_a_jsonl_line_has_twice_is_refused_and_not_quoted(tmp_path, line, keys):
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: keys {keys} of an object are the same; must"):
        read(tmp_path / "x.jsonl", b'{"a": 1}\n' + line)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("train.jsonl", b'{"text": "t", "label": 0}\n\n{"text": "", "label": 0}\n', 3),
        ("train.csv", b'text,label\n"t\nt",0\n,0\n', 4),
    ],
)
@pytest.mark.parametrize("split", ["train", "train[1:]"])
def test_a_bad_record_is_named_by_its_file_and_line(tmp_path, name, content, line, split):
    (tmp_path / name).write_bytes(content)
    source = str(tmp_path / name.replace("train", "{split}"))
    client = ClientConfig(name="a", task="sst2", source=source, train_split=split)
    with pytest.raises(DataError) as raised:
        load_task(client, root=None)
    assert f"{tmp_path / name}, split {split}, task sst2, line {line}: text: is empty" in str(raised.value)


def test_a_jsonl_line_without_columns_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: must be an object"):
        read(tmp_path / "x.jsonl", b"[1]\n")


def test_empty_csv_cells_and_text_beyond_ascii_are_read(tmp_path):
    assert read(tmp_path / "x.csv", b"a,b\n,1\n") == [{"a": "", "b": "1"}]
    assert read(tmp_path / "x.jsonl", '{"a": "é\u2028"}\n'.encode()) == [{"a": "é\u2028"}]


@pytest.mark.parametrize(
    ("name", "rest"), [("x.csv", b"text,label\nfine,0\n"), ("x.jsonl", b'{"text": "fine", "label": "0"}')]
)
def test_a_file_with_a_byte_order_mark_is_read_as_without(tmp_path, name, rest):
    assert read(tmp_path / name, b"\xef\xbb\xbf" + rest) == [{"text": "fine", "label": "0"}]


def test_a_byte_order_mark_is_no_part_of_public_text(tmp_path):
    file = tmp_path / "public.txt"
    file.write_bytes(b"\xef\xbb\xbfa text")
    assert public_text(str(file), root=None, texts=1) == "a text"


def test_lines_after_the_limit_are_not_read(tmp_path):
    assert read(tmp_path / "x.jsonl", b'{"a": 1}\n{oops\n', limit=1) == [{"a": 1}]


@pytest.mark.parametrize(("source", "module"), [("x.parquet", "pyarrow"), ("hub:org/name", "datasets")])
def test_a_source_whose_library_is_missing_names_the_extra(monkeypatch, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"(x\.parquet|hub:org/name): needs the extra `datasets`"):
        read_rows(source, "train", root=None, limit=None)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("a[:2]", [0, 1]),
        ("a[-2:]", [3, 4]),
        ("a[:-2]", [0, 1, 2]),
        ("a[1:3]", [1, 2]),
        ("a", [0, 1, 2, 3, 4]),
    ],
)
def test_a_split_may_name_a_part_of_its_rows(tmp_path, split, expected):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(5)))
    rows = read_rows("{data}/{split}.jsonl", split, root=str(tmp_path), limit=None)
    assert [row["n"] for row in rows] == expected


@pytest.mark.parametrize("split", ["a[", "a[x:]", "a[1]", "[:1]"])
def test_a_split_with_a_part_that_cannot_be_read_is_refused(tmp_path, split):
    with pytest.raises(DataError, match="must be a name, or a name with a part"):
        read_rows("{data}/{split}.jsonl", split, root=str(tmp_path), limit=None)
