"""The first message to a client, parts of the proxy, answers to both, and a failed client's answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.proxy_intake.files import MOST_FILES
from fedproxy_secure.proxy_intake.parts import Part
from fedproxy_secure.runtime.quoting import one_line, quoted
from fedproxy_secure.runtime.untrusted import parse_json
from fedproxy_secure.secagg.messages import MOST_NAME
from fedproxy_secure.secagg.terms import HASH_BYTES
from fedproxy_secure.wire.records import (
    check_records,
    flag,
    integer,
    plain_text,
    record,
    text,
)

MOST_JOB = 2**20  # characters of a job's JSON
MOST_KIND = 64  # characters of the name of an error class
MOST_PART = 2**24  # bytes of the proxy in one message
PART_DATA = "data"  # the record that holds a part's bytes


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first message to a client: the job, as text and parsed, and the proxy's hash, 64 hex digits."""

    job: FederationJob
    job_json: str
    sha256: str


def encode_setup(job: FederationJob) -> RecordDict:
    """Encode the job with the hash of its proxy."""
    return RecordDict({"job": ConfigRecord({"json": job.to_json(), "sha256": job.proxy_sha256})})


def decode_setup(content: RecordDict) -> Setup:
    """Decode the first message to a client.

    Raises `DataError` for anything missing, unknown or of the wrong type, and for text that is not a job.
    """
    check_records(content, "setup", must={"job"})
    fields = record(content, "job", ConfigRecord, "setup", keys={"json", "sha256"})
    job_json = text(fields, "json", most=MOST_JOB)
    return Setup(job=read_job(job_json), job_json=job_json, sha256=_sha256(fields, "sha256"))


def _sha256(fields: ConfigRecord, name: str) -> str:
    sha256 = text(fields, name)
    if len(sha256) != 2 * HASH_BYTES or not set(sha256) <= set("0123456789abcdef"):
        raise DataError(f"proxy hash {quoted(sha256)}: must be {2 * HASH_BYTES} hex digits")
    return sha256


def encode_part(part: Part) -> RecordDict:
    """Encode a part of the proxy."""
    names, sizes = list(part.sizes), list(part.sizes.values())
    place = ConfigRecord(
        {"sha256": part.sha256, "copy": part.copy, "names": names, "sizes": sizes, "at": part.at}
    )
    return RecordDict({"place": place, PART_DATA: ConfigRecord({"bytes": part.data})})


def decode_part(content: RecordDict) -> Part:
    """Decode a part of the proxy; `proxy_intake.arriving` checks the files' names and sizes.

    Raises `DataError` for anything missing, unknown, of the wrong type or too large.
    """
    check_records(content, "part", must={"place", PART_DATA})
    keys = {"sha256", "copy", "names", "sizes", "at"}
    place = record(content, "place", ConfigRecord, "part", keys=keys)
    data = record(content, PART_DATA, ConfigRecord, "part", keys={"bytes"})["bytes"]
    if type(data) is not bytes or len(data) > MOST_PART:
        raise DataError(f"part: `bytes` must be at most {MOST_PART} bytes")
    names: Any = place["names"]
    sizes: Any = place["sizes"]
    for name, values, kind in (("names", names, str), ("sizes", sizes, int)):
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise DataError(f"part: `{name}` must be a list of {kind.__name__}")
    if not 0 < len(set(names)) == len(names) == len(sizes) <= MOST_FILES:
        raise DataError(
            f"part: {len(names)} names, {len(sizes)} sizes: must be as many, 1 to {MOST_FILES}, names once"
        )
    sizes_by_name = dict(zip(names, sizes, strict=True))
    return Part(
        sha256=_sha256(place, "sha256"),
        sizes=sizes_by_name,
        at=integer(place, "at"),
        data=data,
        copy=_sha256(place, "copy") if place["copy"] != "" else "",
    )


def read_job(job_json: str) -> FederationJob:
    """Return the job in another party's text. Raises `DataError` for anything but a complete job."""
    try:
        raw = parse_json(job_json)
        if not isinstance(raw, dict):
            raise DataError(f"job: is {quoted(raw)}; must be an object")
        return FederationJob.from_json(job_json)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise DataError(f"job: lacks {quoted(where)}") from None
        raise DataError(one_line(f"job: {where}: {first['msg']}", 200)) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(one_line(f"job: cannot be read: {type(error).__name__}: {error}", 200)) from None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A client's answer to the first message and to a part.

    Args:
        ready: whether the client has the proxy.
        client: the client's name.
        has: how many bytes of the proxy have arrived, from the first on; 0 once it is ready. For a traced
            proxy only the answer to a part says it, because the first message does not name the copy.
    """

    ready: bool
    client: str
    has: int = 0


def encode_ready(ready: Ready) -> RecordDict:
    """Encode a client's answer to the first message or to a part."""
    return RecordDict({"setup": ConfigRecord(asdict(ready))})


def decode_ready(content: RecordDict) -> Ready:
    """Decode a client's answer to the first message or to a part.

    Raises `DataError` for anything missing, unknown or of the wrong type.
    """
    check_records(content, "setup reply", must={"setup"})
    fields = record(content, "setup", ConfigRecord, "setup reply", keys={"ready", "client", "has"})
    return Ready(
        ready=flag(fields, "ready"),
        client=plain_text(fields, "client", most=MOST_NAME),
        has=integer(fields, "has"),
    )


def encode_failure(kind: str, line: str) -> RecordDict:
    """Encode a client's failure: one line on what went wrong, and `kind`, the name of the error class."""
    return RecordDict({"failure": ConfigRecord({"kind": kind, "line": line})})


def decode_failure(content: RecordDict) -> tuple[str, str] | None:
    """Return (kind, line) of a failure, both printable and bounded, or None for any other reply.

    Raises `DataError` for a failure that is malformed itself.
    """
    if "failure" not in content:
        return None
    check_records(content, "failure", must={"failure"})
    failure = record(content, "failure", ConfigRecord, "failure", keys={"kind", "line"})
    line = failure["line"]
    if type(line) is not str:
        raise DataError(f"line={quoted(line)}: must be text")
    return one_line(text(failure, "kind", most=MOST_KIND), MOST_KIND), one_line(line)
