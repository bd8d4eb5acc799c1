"""A child process that parses clients' ciphertexts first, because a malformed one can kill its reader.

TenSEAL's C++ code answers a few malformed ciphertexts with an abort, not an exception, and may ask for any
amount of memory. The server therefore sends clients' bytes to a child process, and parses them itself only
if the child parsed them and is still alive.

    parent -> child   kind (1 byte), length of a vector, number of bytes (8 bytes each), the bytes
    child -> parent   one byte, taken or refused; the end of the stream if the bytes killed the child

A process has one child, which is started when first needed and holds one context at a time.

Guarantees: `Probe` raises `DataError` for bytes that kill the child, take longer than `PATIENCE_S` or need
more than `MOST_MEMORY`; the parent has then not parsed them. Not guaranteed: that bytes which misuse memory
do the same in both processes.
"""

from __future__ import annotations

import atexit
import os
import resource
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Literal

from fedproxy_secure.errors import DataError
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks import products as ckks_gram

Kind = Literal["sum", "sketch"]
PATIENCE_S = 60.0
MOST_MEMORY = 2**33  # bytes of the child's address space
CONTEXTS: dict[Kind, bytes] = {"sum": b"S", "sketch": b"K"}  # a context, by the use of its ciphertexts
CIPHERTEXT = b"V"
TAKEN, REFUSED = b"+", b"-"
_HEAD = struct.Struct("<cQQ")
_PROGRAM = "from fedproxy_secure.secagg.ckks.probe import main; main()"


class Probe:
    """Parses a context, and then ciphertexts under it, in the child process.

    Args:
        kind: what the ciphertexts are for: `sum`, vectors to add, or `sketch`, vectors to multiply.
        public: the serialised context.
        length: of a vector.

    Raises `DataError` for a context that cannot be read or has other parameters.
    """

    def __init__(self, kind: Kind, public: bytes, length: int) -> None:
        self._kind, self._public, self._length = CONTEXTS[kind], public, length
        with _child.lock:
            self._enter()

    def check(self, encrypted: bytes) -> None:
        """Raise `DataError` unless these bytes could come from `encrypt`."""
        with _child.lock:
            if _child.owner is not self:
                self._enter()
            if _child.ask(CIPHERTEXT, self._length, encrypted) != TAKEN:
                raise DataError(f"CKKS vector: must be {self._length} numbers, as `encrypt` makes it")

    def _enter(self) -> None:
        """Give this probe's context to the child process."""
        if _child.ask(self._kind, self._length, self._public) != TAKEN:
            raise DataError("CKKS key: cannot be read, or has other parameters")
        _child.owner = self


class _Child:
    """The child process, if it was started; `owner` is the probe whose context it holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: Probe | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, what: bytes, length: int, data: bytes) -> bytes:
        """Return the child's answer, or b"" if there was none and the child was killed.

        `what`: the kind of `data`, one of `CONTEXTS` or `CIPHERTEXT`. `length`: of a vector.
        """
        if what != CIPHERTEXT:
            self.owner = None
        if self.process is None:
            self.process = _started()
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None
        assert sink is not None
        answer = b""
        with suppress(OSError):  # the child has ended
            sink.write(_HEAD.pack(what, length, len(data)))
            sink.write(data)
            sink.flush()
            if select.select([source], [], [], PATIENCE_S)[0]:
                answer = source.read(1)
        if not answer:
            self.end()
        return answer

    def end(self) -> None:
        """Kill the child process, if there is one."""
        process, self.process, self.owner = self.process, None, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(OSError):  # of bytes that the child did not read
                    stream.close()
            process.wait()


_child = _Child()
atexit.register(_child.end)


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this interpreter, a program of this module
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    """Run the child: answer until standard input ends, with bounded memory and without core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer each request from `source` with one byte."""
    read: Callable[[bytes], None] = _without_context
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        what, length, size = _HEAD.unpack(head)
        data = source.read(size)
        answer = TAKEN
        try:
            if what == CIPHERTEXT:
                read(data)
            else:
                read = _without_context  # if the new context cannot be read, the old one is not used
                read = _reader(what, length, data)
        except DataError:
            answer = REFUSED
        sink.write(answer)
        sink.flush()


def _reader(what: bytes, length: int, public: bytes) -> Callable[[bytes], None]:
    """Return a function that raises `DataError` unless its argument is ciphertexts under this context."""
    if what == CONTEXTS["sum"]:
        return ckks.CkksSum(public, length).add
    return ckks_gram.reader(public)


def _without_context(data: bytes) -> None:
    raise DataError("ciphertext: has no context")
