"""The first message to a client, its answer, and the answer of a client that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.runtime.quoting import one_line, quoted
from fedproxy_secure.runtime.untrusted import parse_json
from fedproxy_secure.secagg.messages import MOST_NAME
from fedproxy_secure.secagg.terms import HASH_BYTES
from fedproxy_secure.wire.records import (
    check_records,
    flag,
    plain_text,
    record,
    text,
)

MOST_JOB = 2**20  # characters of a job's JSON
MOST_KIND = 64  # characters of the name of an error class


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first message to a client: the job, as text and parsed, and the proxy.

    `sha256`: the proxy's hash, 64 hex digits. `files`: the proxy's files by name, for `proxy_store.unpack`;
    None if they did not come along.
    """

    job: FederationJob
    job_json: str
    sha256: str
    files: ConfigRecord | None


def encode_setup(job: FederationJob, files: Mapping[str, bytes] | None = None) -> RecordDict:
    """Encode the job with the hash of its proxy, and the proxy's files where a client lacks them."""
    content = RecordDict({"job": ConfigRecord({"json": job.to_json(), "sha256": job.proxy_sha256})})
    if files is not None:
        content["files"] = ConfigRecord(dict(files))
    return content


def decode_setup(content: RecordDict) -> Setup:
    """Decode the first message to a client.

    Raises `DataError` for anything missing, unknown or of the wrong type, and for text that is no job.
    """
    check_records(content, "setup", must={"job"}, may={"files"})
    fields = record(content, "job", ConfigRecord, "setup", keys={"json", "sha256"})
    files = content.get("files")
    if files is not None and not isinstance(files, ConfigRecord):
        raise DataError("setup: record `files` must be a ConfigRecord")
    job_json = text(fields, "json", most=MOST_JOB)
    sha256 = text(fields, "sha256")
    if len(sha256) != 2 * HASH_BYTES or not set(sha256) <= set("0123456789abcdef"):
        raise DataError(f"proxy hash {quoted(sha256)}: must be {2 * HASH_BYTES} hex digits")
    return Setup(job=read_job(job_json), job_json=job_json, sha256=sha256, files=files)


def read_job(job_json: str) -> FederationJob:
    """Return the job in another party's text. Raises `DataError` for anything but a whole job."""
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
    """A client's answer to the first message: whether it has the proxy, and the client's name."""

    ready: bool
    client: str


def encode_ready(ready: Ready) -> RecordDict:
    """Encode a client's answer to the first message."""
    return RecordDict({"setup": ConfigRecord({"ready": ready.ready, "client": ready.client})})


def decode_ready(content: RecordDict) -> Ready:
    """Decode a client's answer to the first message.

    Raises `DataError` for anything missing, unknown or of the wrong type.
    """
    check_records(content, "setup reply", must={"setup"})
    fields = record(content, "setup", ConfigRecord, "setup reply", keys={"ready", "client"})
    return Ready(ready=flag(fields, "ready"), client=plain_text(fields, "client", most=MOST_NAME))


def encode_failure(kind: str, line: str) -> RecordDict:
    """Encode a client's one line on what went wrong; `kind` is the name of the error class."""
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
