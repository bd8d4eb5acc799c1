"""Whatever arrives, a decoder and the party behind it end in one line that was meant, in bounded memory.

Real messages of every kind are changed: bytes flipped, keys dropped, renamed, given another type, numbers
taken to extremes. `HYPOTHESIS_PROFILE=nightly` runs 100 000 of them, `short` 300; otherwise 3000.
"""

import json
import os
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings

from fedproxy_secure import wire
from fedproxy_secure.errors import DataError, FedProxyError
from fedproxy_secure.runtime.quoting import MOST_LINE, one_line, quoted
from fedproxy_secure.secagg import messages
from fedproxy_secure.secagg.ckks import gram
from fedproxy_secure.secagg.ckks import messages as ckks_messages
from fedproxy_secure.secagg.messages import (
    Advertise,
    Confirmations,
    Inbox,
    KeyBook,
    MaskedInput,
    Unmask,
    from_fields,
)
from tests.support import malformed as corpus
from tests.support import protocol_samples as real
from tests.support.malformed import ANSI, PETABYTES, PICKLED, put_together, take_apart

CASES = {"nightly": 100_000, "short": 300}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 3000)
MOST_BYTES = 2**26  # of memory, beyond a few times the message itself
D = real.D

masked = real.masking_samples()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return real.job_of(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def plain(job):
    return tuple(real.plain_samples(job))


def survives(sample, draft):
    """Decode and take a message; check what it raises and how much memory that took."""
    content = put_together(draft)
    with memory_below(MOST_BYTES + 4 * corpus.weight(draft)):
        try:
            sample.take(sample.decode(content))
        except FedProxyError as error:
            line = str(error)
            assert len(line) <= 2 * MOST_LINE
            assert line.isprintable()


@contextmanager
def memory_below(most):
    """Python's and NumPy's allocations within stay below so many bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def settings_for(cases):
    return settings(
        max_examples=cases,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )


@pytest.mark.timeout(0)
def test_changed_messages_of_setup_and_training_end_in_one_line(plain):
    @settings_for(CASES // 2)
    @given(corpus.malformed(plain))
    def check(case):
        survives(*case)

    check()


@pytest.mark.timeout(0)
@settings_for(CASES // 3)
@given(corpus.malformed(masked))
def test_changed_messages_of_masking_end_in_one_line_at_whoever_takes_them(case):
    survives(*case)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("samples", ["ckks_samples", "gram_samples"])
def test_changed_messages_under_encryption_end_in_one_line_at_whoever_takes_them(samples):
    pytest.importorskip("tenseal")

    @settings_for(CASES // 12)
    @given(corpus.malformed(getattr(real, samples)()))
    def check(case):
        survives(*case)

    check()


@pytest.mark.parametrize("sample", masked, ids=lambda s: s.name)
def test_unchanged_messages_of_masking_are_taken(sample):
    sample.take(sample.decode(put_together(take_apart(sample.content))))


def test_unchanged_messages_of_setup_and_training_are_decoded(plain, job):
    decoded = {s.name: s.decode(put_together(take_apart(s.content))) for s in plain}
    assert decoded["setup"].job == job
    assert decoded["setup"].sha256 == job.proxy_sha256
    assert decoded["setup reply"] == wire.Ready(ready=True, client="c0")
    assert decoded["update"].update.tobytes() == real.UPDATE.tobytes()
    assert decoded["update"].update.flags.writeable
    assert decoded["broadcast"].conflict.tobytes() == (real.UPDATE**2).tobytes()
    assert decoded["terms"].cohort == real.TERMS.cohort
    assert decoded["failure"] == ("DataError", "no records")


# the nastiest, by name


def update_with(array=None, **metrics):
    """An update of client c0 with another array or other metrics."""
    made = {"client": "c0", "loss": 0.5, "steps": 10, "seconds": 1.0, "truncated": 0} | metrics
    good = ("float32", (D,), "numpy.ndarray", corpus.npy(np.zeros(D, np.float32)))
    return put_together({"vectors": ("array", {"update": array or good}), "metrics": ("config", made)})


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(("float32", (10**16,), "numpy.ndarray", PETABYTES), id="35 PiB, declared too"),
        pytest.param(("float32", (D,), "numpy.ndarray", PETABYTES), id="35 PiB in the header alone"),
        pytest.param(("object", (1,), "numpy.ndarray", PICKLED), id="pickled"),
        pytest.param(("float32", (D,), "numpy.ndarray", PICKLED), id="pickled, declared as numbers"),
        pytest.param(("float32", (D,), "torch.tensor", b"\x80\x04."), id="another serialisation"),
        pytest.param(("float32", (D,), "numpy.ndarray", b""), id="no bytes"),
        pytest.param(
            ("float32", (2, D // 2), "numpy.ndarray", corpus.npy(np.zeros((2, D // 2), np.float32))),
            id="two dimensions",
        ),
        pytest.param(("float64", (D,), "numpy.ndarray", corpus.npy(np.zeros(D))), id="float64"),
        pytest.param(
            ("float32", (D,), "numpy.ndarray", corpus.npy(np.zeros(D + 1, np.float32))), id="one more"
        ),
        pytest.param(
            ("float32", (D,), "numpy.ndarray", corpus.claiming(f"({D},)", d=D - 1)), id="one number short"
        ),
        pytest.param(
            ("float32", (D,), "numpy.ndarray", corpus.npy(np.full(D, np.inf, np.float32))), id="infinite"
        ),
        pytest.param(("float32", (-1,), "numpy.ndarray", corpus.claiming("(-1,)")), id="negative shape"),
        pytest.param(
            ("float32", (D,), "numpy.ndarray", corpus.claiming("__import__('os').abort(),", d=D)),
            id="code in the header",
        ),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused_before_anything_is_allocated(array):
    content = update_with(array)
    with memory_below(100_000), pytest.raises(DataError):
        wire.decode_update(content, d=D)


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"steps": 10**5000}, "steps=an integer of 16610 bits: must be an integer"),
        ({"loss": 10**5000}, "loss=an integer of 16610 bits: must be a finite number"),
        ({"loss": float("nan")}, "loss=nan: must be a finite number"),
        ({"loss": 1e308}, r"loss=1e\+308: must be from -2\^28 to 2\^28"),
        ({"loss": -(2**28) - 1}, r"loss=-2.68e\+08: must be from"),
        ({"loss": True}, "loss=True: must be a finite number"),
        ({"steps": -1}, "steps=-1: must be an integer >= 0"),
        ({"client": "x" * 3_000_000}, "client='xxx"),
        ({"client": ANSI}, r"client='\\x1b\[2J"),
        ({"client": ""}, "client='': must be 1 to"),
        ({"client": ["c0"]}, "client=list of 1: must be text"),
        ({"more": 1}, "record `metrics`: has 'more'; must have"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_numbers_and_texts_are_judged_before_they_are_used_or_printed(metrics, line):
    with pytest.raises(DataError, match=line) as caught:
        wire.decode_update(update_with(**metrics), d=D)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_records_of_another_kind_or_number_are_refused():
    good = update_with()
    for extra in ("more", ANSI):
        with pytest.raises(DataError, match="update: has 3 records"):
            wire.decode_update(RecordDict({**good, extra: ConfigRecord()}), d=D)
    with pytest.raises(DataError, match="update: has a record 'other'"):
        wire.decode_update(RecordDict({"vectors": good["vectors"], "other": good["metrics"]}), d=D)
    with pytest.raises(DataError, match="update: lacks the record `metrics`"):
        wire.decode_update(RecordDict({"vectors": good["vectors"]}), d=D)
    for wrong in (MetricRecord({"loss": 1.0}), ArrayRecord()):
        with pytest.raises(DataError, match="record `metrics` must be there, a ConfigRecord"):
            wire.decode_update(RecordDict({"vectors": good["vectors"], "metrics": wrong}), d=D)
    two = ArrayRecord({n: Array(np.zeros(D, np.float32)) for n in ("update", "another")})
    with pytest.raises(DataError, match="record `vectors`: has 'another'; must have `update`"):
        wire.decode_update(RecordDict({"vectors": two, "metrics": good["metrics"]}), d=D)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{" * 200_000,
        '{"seed":' * 50_000,
        "null",
        "[]",
        "{}",
        '{"seed": ' + "9" * 5000 + "}",
        '{"clients": 3}',
        "\x1b[31m",
        "x" * (wire.MOST_JOB + 1),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_job_that_is_none_is_one_line(text):
    asked = RecordDict({"job": ConfigRecord({"json": text, "sha256": "a" * 64})})
    with pytest.raises(DataError) as caught:
        wire.decode_setup(asked)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_setting_of_a_job_that_is_out_of_range_is_one_line(job):
    raw = json.loads(job.to_json())
    for wrong in (0, ANSI, "9" * 5000, [[]], None):
        changed = {**raw, "local": {**raw["local"], "steps": wrong}}
        with pytest.raises(DataError, match=r"^job: local.steps: ") as caught:
            wire.read_job(json.dumps(changed))
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()
    for wrong in (3, None, "text", [1]):
        with pytest.raises(DataError, match=r"^job: "):
            wire.read_job(json.dumps({**raw, "clients": wrong}))
    del raw["adapter"]
    with pytest.raises(DataError, match="job: lacks 'adapter'"):
        wire.read_job(json.dumps(raw))


def test_what_a_client_says_went_wrong_reaches_nobody_as_it_was_written():
    kind, line = wire.decode_failure(wire.encode_failure("DataError", ANSI + "y" * 10_000))
    assert kind == "DataError"
    assert line.isprintable()
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert len(line) == MOST_LINE
    for bad in (
        RecordDict({"failure": ConfigRecord({"kind": "DataError"})}),
        RecordDict({"failure": ConfigRecord({"kind": 1, "line": "text"})}),
        RecordDict({"failure": ConfigRecord({"kind": "k" * 1000, "line": "text"})}),
        RecordDict({"failure": ConfigRecord({"kind": "DataError", "line": [ANSI]})}),
        RecordDict({"failure": MetricRecord({"kind": 1})}),
        RecordDict({"failure": ConfigRecord({"kind": "DataError", "line": "l"}), "more": ConfigRecord()}),
    ):
        with pytest.raises(DataError):
            wire.decode_failure(bad)


@pytest.mark.parametrize(
    ("kind", "field", "value", "line"),
    [
        (Advertise, "share_key", bytes(33), "field share_key must be of 32 bytes, is of 33"),
        (Advertise, "client", ANSI, "field client must be 1 to 200 printable characters"),
        (Advertise, "client", "x" * 201, "field client must be 1 to 200 printable characters"),
        (KeyBook, "clients", ["c00"] * 65, "field clients must be a list of at most 64 names"),
        (KeyBook, "clients", ["name"] * 1_000_000, "is list of 1000000"),
        (KeyBook, "signatures", [bytes(64)] * 65, "field signatures must be a list of at most 64"),
        (Inbox, "sealed", [bytes(95)], "field sealed must be of 0 to 94 bytes, is of 95"),
        (MaskedInput, "tag", bytes(15), "field tag must be of 16 bytes"),
        (MaskedInput, "masked", "text", "field masked must be bytes, is 'text'"),
        (Unmask, "self_shares", [bytes(32)], "field self_shares must be of 33 bytes, is of 32"),
        (Unmask, "key_shares", bytes(33), "field key_shares must be a list of at most 64"),
        (Confirmations, "signatures", [1], "field signatures must be bytes, is 1"),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 12 else "",
)
def test_a_message_whose_field_has_another_size_is_refused(kind, field, value, line):
    (sample,) = (s for s in masked if s.name == kind.__name__)
    fields = dict(sample.content["protocol"]) | {field: value}
    with pytest.raises(DataError, match=line) as caught:
        from_fields(kind, fields)
    assert len(str(caught.value)) < 300


def test_a_million_unknown_fields_are_named_by_the_first_few():
    with pytest.raises(DataError, match=r"fields \['0', '1', '2', '3', \.\.\.\]; must be") as caught:
        from_fields(Advertise, {str(i): 0 for i in range(100_000)})
    assert len(str(caught.value)) < 300


def test_every_field_of_bytes_has_a_size():
    for kind in (*messages.MESSAGES, *ckks_messages.MESSAGES, *gram.MESSAGES):
        of_bytes = {n for n, hint in messages._hints(kind).items() if hint in (bytes, list[bytes])}
        assert set(kind.sizes) == of_bytes, kind


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("short", "'short'"),
        ("x" * 100, "'" + "x" * 76 + "..."),
        ("\x1b[31m", "'\\x1b[31m'"),
        (None, "None"),
        (True, "True"),
        (float("nan"), "nan"),
        (2**63, "9223372036854775808"),
        (10**5000, "an integer of 16610 bits"),
        (b"123", "bytes of 3"),
        ([1], "list of 1"),
        ({}, "dict of 0"),
        (object(), "object"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_value_is_quoted_in_bounded_printable_form(value, shown):
    assert quoted(value) == shown


def test_a_line_is_cut_and_keeps_printable_letters_of_any_script():
    assert one_line("Grüße, 世界") == "Grüße, 世界"
    assert one_line("a\tb\nc\u2028d\u200be") == "a?b?c?d?e"
    assert one_line("x" * 401) == "x" * 397 + "..."
    assert one_line("x" * 400) == "x" * 400
