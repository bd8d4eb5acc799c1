"""An owner cannot use the rows that differ between clients for anything but telling copies apart."""

import base64
import json
import struct

import numpy as np
import pytest
from pydantic import ValidationError

from fedproxy_secure.errors import DataError, ModelError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.tracing.copies import make_marks
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.tensor_file import (
    as_bytes,
    as_numbers,
    find_matrix,
    matrices,
    read_rows,
    with_rows,
)
from fedproxy_secure.wire.setup import read_job
from tests.support.masked_rounds import masked_world
from tests.support.parts import arrive
from tests.support.traced import traced_proxy


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return traced_proxy(tmp_path_factory.mktemp("traced"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return masked_world(tmp_path_factory)[0]


def arrives(proxy, files, client="clinic"):
    sha256 = folder_sha256(proxy.folder)
    return arrive(files, sha256, marks=proxy.marks, client=client)


def changed(proxy, files, row, change):
    """The files with one row of the embedding changed."""
    matrix = find_matrix(proxy.folder, proxy.marks.tensor)
    at = slice(matrix.begin + row * matrix.row_bytes, matrix.begin + (row + 1) * matrix.row_bytes)
    raw = bytearray(files["model.safetensors"])
    numbers = as_numbers(bytes(raw[at]), matrix.kind, matrix.width)
    raw[at] = as_bytes(change(numbers.copy()), matrix.kind)
    return {**files, "model.safetensors": bytes(raw)}


def test_a_clients_own_copy_arrives_is_found_again_and_is_no_other_clients(proxy):
    for client in ("clinic", "bank"):
        kept = arrives(proxy, proxy.files(client), client)
        assert (kept / "model.safetensors").read_bytes() == proxy.files(client)["model.safetensors"]
    sha256 = folder_sha256(proxy.folder)
    found = [proxy_store.find(sha256, marks=proxy.marks, client=c) for c in ("clinic", "bank", "council")]
    assert [None if f is None else f.suffix for f in found] == [".clinic", ".bank", None]
    assert proxy_store.find(sha256) is None  # an untraced job does not take a copy


def test_one_number_outside_the_marked_rows_is_refused_and_nothing_is_kept(proxy, tmp_path):
    unmarked = next(i for i in range(10, 259) if i not in proxy.marks.rows)

    def nudge(row):
        row[0, 3] *= 1.001
        return row

    with pytest.raises(DataError, match="hash to"):
        arrives(proxy, changed(proxy, proxy.files("clinic"), unmarked, nudge))
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "change",
    [lambda r: 1.5 * r, lambda r: 0 * r, lambda r: r * np.nan, lambda r: r + 1e30],
    ids=["longer", "zero", "not a number", "huge"],
)
def test_a_marked_row_of_another_norm_is_refused(proxy, change):
    files = changed(proxy, proxy.files("clinic"), proxy.marks.rows[0], change)
    with pytest.raises(DataError, match="another norm than agreed"):
        arrives(proxy, files)


def test_whatever_marked_rows_hold_a_client_trains_the_agreed_proxy(proxy):
    """The strongest that a hostile owner can do in them: any direction, at the agreed norm."""
    files = proxy.files("clinic")
    for i, row in enumerate(proxy.marks.rows):

        def any_direction(numbers, i=i):
            drawn = np.random.default_rng(i).normal(size=numbers.shape)
            return drawn * (np.linalg.norm(numbers) / np.linalg.norm(drawn))

        files = changed(proxy, files, row, any_direction)
    kept = arrives(proxy, files)
    assert (kept / "model.safetensors").read_bytes() == files["model.safetensors"]
    plain = load_proxy(proxy.folder, max_tokens=32, device="cpu")
    loaded = load_proxy(kept, max_tokens=32, device="cpu", marks=proxy.marks)
    assert loaded.loaded_sha256 == plain.loaded_sha256


def test_a_copy_that_changes_on_the_disk_is_refused(proxy):
    kept = arrives(proxy, proxy.files("clinic"))
    raw = bytearray((kept / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (kept / "model.safetensors").write_bytes(raw)
    with pytest.raises(DataError, match="have changed"):
        proxy_store.find(folder_sha256(proxy.folder), marks=proxy.marks, client="clinic")


def test_marks_on_a_row_that_texts_read_are_refused(proxy):
    rows = (70, *proxy.marks.rows[1:])
    matrix = find_matrix(proxy.folder, proxy.marks.tensor)
    agreed = base64.b64encode(read_rows(matrix, rows)).decode()
    marks = proxy.marks.changed(rows=rows, agreed=agreed)
    with pytest.raises(ModelError, match="row 70 is marked"):
        load_proxy(proxy.folder, max_tokens=32, device="cpu", marks=marks)


def test_marks_that_the_model_has_no_place_for_are_refused(proxy):
    rows = tuple(range(1000, 1013))
    with pytest.raises(ModelError, match="must have the marked rows"):
        load_proxy(proxy.folder, max_tokens=32, device="cpu", marks=proxy.marks.changed(rows=rows))
    with pytest.raises(DataError, match="must have the row 1012"):
        folder_sha256(proxy.folder, proxy.marks.changed(rows=rows))
    with pytest.raises(DataError, match="0 files have the matrix"):
        folder_sha256(proxy.folder, proxy.marks.changed(tensor="nothing"))


def test_other_agreed_rows_give_another_hash_and_load_as_another_proxy(proxy):
    other = np.roll(proxy.marks.agreed_numbers, 1, axis=1)
    agreed = base64.b64encode(as_bytes(other, proxy.marks.kind)).decode()
    marks = proxy.marks.changed(agreed=agreed)
    assert folder_sha256(proxy.folder, marks) != folder_sha256(proxy.folder)
    loaded, plain = (
        load_proxy(proxy.folder, max_tokens=32, device="cpu", marks=m).loaded_sha256
        for m in (marks, proxy.marks)
    )
    assert loaded != plain


def test_a_client_that_gets_other_marks_than_the_others_would_sign_something_else(proxy, job):
    one = job.changed(marks=proxy.marks)
    other = np.roll(proxy.marks.agreed_numbers, 1, axis=1)
    agreed = base64.b64encode(as_bytes(other, proxy.marks.kind)).decode()
    assert (
        len({j.agreed_sha256() for j in (job, one, job.changed(marks=proxy.marks.changed(agreed=agreed)))})
        == 3
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": (3, 2, 4, 5)},
        {"rows": ()},
        {"rows": (1, 2, 3)},
        {"rows": tuple(range(17))},
        {"rows": (-1, 2, 3, 4)},
        {"agreed": "%%%"},
        {"agreed": ""},
        {"width": 0},
        {"width": 2**40},
        {"kind": "I8"},
        {"agreed": base64.b64encode(bytes(13 * 16 * 4)).decode()},
        {"agreed": base64.b64encode(np.full(13 * 16, np.nan, "<f4").tobytes()).decode()},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_marks_that_make_no_sense_are_refused_as_part_of_a_job(proxy, job, wrong):
    raw = json.loads(job.changed(marks=proxy.marks).to_json())
    raw["marks"] |= wrong
    with pytest.raises(ValidationError):
        Marks.model_validate(raw["marks"])
    with pytest.raises(DataError, match=r"^job: marks"):
        read_job(json.dumps(raw))


@pytest.mark.parametrize("client", ["../x", "", "a/b", "a.b", "x" * 300])
def test_a_clients_name_cannot_leave_the_cache(proxy, client):
    with pytest.raises(DataError, match="letters, digits"):
        arrives(proxy, proxy.files("clinic"), client)


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        safetensors(b"[1]"),
        safetensors(b"{"),
        safetensors({}, length=2**40),
        safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}),
        safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}}, bytes(16)),
        safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}, bytes(16)),
        safetensors({"w": {"dtype": "F32", "shape": [2, "2"], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0]}}, bytes(16)),
        safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": "ab"}}, bytes(16)),
    ],
    ids=range(11),
)
def test_a_hostile_header_ends_in_one_error(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError):
        list(matrices(tmp_path))


def test_what_is_no_matrix_in_floating_point_is_passed_over(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "n": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]},
        "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "w": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, bytes(8)))
    (matrix,) = matrices(tmp_path)
    assert matrix.name == "w"
    for rows in ({1: bytes(8)}, {0: bytes(4)}):
        with pytest.raises(DataError, match="has no row"):
            list(with_rows(matrix, rows))


def test_a_client_of_a_traced_job_is_built_on_the_unmarked_model(proxy, job, tmp_path):
    job = FederationJob.model_validate(job.changed(marks=make_marks(proxy.folder)).model_dump())
    agreed = with_proxy(job, proxy.folder)
    copy = proxy.write("c0", tmp_path / "copy")
    client = build_client(agreed, 0, copy)
    with client.model.lent() as model:
        weight = model.get_base_model().get_input_embeddings().weight.detach()
        found = weight[list(job.marks.rows)].double().numpy()
    assert np.array_equal(found, job.marks.agreed_numbers)
