"""Writing of models' folders, with errors in one line, as for every other file of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedproxy_secure.errors import RunFolderError


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Create a folder, and let a `with` block write a model into it.

    Raises `RunFolderError` for a full disk or a folder that cannot be written, reported by any library.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror or error}") from error
    except Exception as error:  # tokenizers raises a bare `Exception` with the system's message
        if not isinstance(error, SafetensorError) and "os error" not in str(error).lower():
            raise
        raise RunFolderError(f"{folder}: cannot be written: {' '.join(str(error).split())}") from error
