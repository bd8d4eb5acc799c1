"""What a run's folder belongs to: the kind of work that began in it, and the settings of that work.

A report is signed over its folder. Another kind of work with the same settings would replace the report by
one of its own, with fewer configurations or stamps, so each folder takes one kind only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.files.names import MANIFEST, SETTINGS_FILE
from fedproxy_secure.runtime.quoting import one_line
from fedproxy_secure.runtime.untrusted import parse_json, parse_yaml

Work = Literal["run", "matrix", "comparison", "benchmark"]
MOST_NAMED = 5  # settings that one error names
_MOST_SHOWN = 60  # characters of a setting's value
_MISSING = object()


def check_work(folder: Path, work: Work) -> str:
    """Return the SHA-256 of the settings that a folder belongs to.

    Raises `RunFolderError` if another kind of work began in it, or if its manifest is damaged or missing.
    """
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
        begun, settings = str(manifest["work"]), str(manifest["config_sha256"])
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: is not a run folder: has no {MANIFEST}") from None
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file}: is damaged") from error
    if begun != work:
        raise RunFolderError(
            f"{folder}: is the folder of a {one_line(begun, _MOST_SHOWN)}; must be that of a {work}, "
            "because its report would be replaced; choose another --out"
        )
    return settings


def differing_settings(folder: Path, now: Mapping[str, Any]) -> str:
    """Return in which settings a folder differs from those given `now`, with both values; "" if unknown.

    Only settings that `now` has are compared. At most `MOST_NAMED` are named.
    """
    try:
        kept = parse_yaml((folder / SETTINGS_FILE).read_bytes().decode())
    except (OSError, ValueError, yaml.YAMLError):  # a damaged file is reported where it is needed
        return ""
    apart = _apart(kept, now)
    named = [f"{key}={_shown(before)} there, {_shown(after)} here" for key, before, after in apart]
    more = f" (and {len(named) - MOST_NAMED} more)" if len(named) > MOST_NAMED else ""
    return "; ".join(named[:MOST_NAMED]) + more


def _apart(kept: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each differing value's key, with both values; lists of one length are compared by element."""
    if isinstance(kept, dict) and isinstance(now, Mapping):
        for name, value in now.items():
            yield from _apart(kept.get(name, _MISSING), value, f"{key}.{name}" if key else str(name))
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for index, (before, after) in enumerate(zip(kept, now, strict=True)):
            yield from _apart(before, after, f"{key}.{index}")
    elif kept != now:
        yield key, kept, now


def _shown(value: Any) -> str:
    return "nothing" if value is _MISSING else one_line(repr(value), _MOST_SHOWN)
