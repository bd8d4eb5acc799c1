"""Redact clients' paths in the files that a bundle copies: each path becomes `[redacted]`.

A bundle holds only what `archive.MAY_HOLD` names. Of these files, reports and audit logs are copies, and
may quote a path: in the command that made the run, or in the error that ended it. Settings say which paths
are a client's: `data.root`, `clients.source`, `privacy.ledger`, `protect.keys`, `audit.folder`. A client on
a machine of its own has other paths, so every absolute path in an error or a note is removed, too, and so
is the whole error that ended an aborted run. `redactions.json` names the redacted files, with the SHA-256
that the run's own signature has. The same places are redacted in errors that a client sends to a server on
another machine (`line_for_others`).

A path may contain blanks and brackets, so its end is ambiguous. The removed text therefore runs from the
first separator to the next colon or comma that precedes a blank, or to the end of the line; after a quote,
to the closing quote. The part up to the first blank or bracket is also removed wherever it occurs alone.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.federate.client_policy import load_policy
from fedproxy_secure.runtime.escape import printable

MARK = "[redacted]"
# from a possible beginning of a path to `: `, `, ` or the end of the line; matches may overlap
ABSOLUTE = re.compile(
    r"""(?=((?:(?<![^\s'"`(\[{=:,;])(?:file:/{1,3}(?!/)|/(?!/)|(?<!:)//+|~[\w.-]*/|[a-z]:[\\/]|\\\\+)"""
    r"""|(?<=file://)/)(?=[^\s/\\])(?:(?!: |, )[^\r\n])+))""",
    re.IGNORECASE,
)
SHORT = re.compile(r"""[^\s'"`,;:)\]}]+""")  # the part of a path before the first sign that may end it
ENDS = "'\"`.,;:)]}"  # at the end of a path they belong to the sentence
IN_SHELL = shlex.quote("'")[1:-1]  # what an apostrophe is within quotes
PLACES = (("data", "root"), ("privacy", "ledger"), ("protect", "keys"), ("audit", "folder"))


def private_strings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths in a run's settings that a bundle must not hold, the longest first.

    A name without a folder in it, such as `data`, is not private and is left out.
    """
    root = _at(settings, "data", "root")
    private = {str(value) for place in PLACES if (value := _at(settings, *place)) is not None}
    for client in _at(settings, "data", "clients") or ():
        source = str(client.get("source", "")) if isinstance(client, Mapping) else ""
        if source.startswith("hub:"):
            continue
        path = source.replace("{data}", str(root or ""))
        private |= {source, path, path.partition("{")[0]}
        for part in ("train_split", "test_split"):
            private.add(path.replace("{split}", str(client.get(part, part.partition("_")[0]))))
    private |= {str(Path(text).resolve()) for text in private if text and "{" not in text}
    return tuple(sorted(filter(_is_path, private), key=lambda text: (-len(text), text)))


def paths_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the absolute paths that sentences quote.

    >>> paths_in(["client c0: /home/c0/records.jsonl: cannot be read", "1 / 2 of 3/4"])
    ('/home/c0/records.jsonl',)
    >>> paths_in(["/srv/St Mary/x: is missing"])
    ('/srv/St Mary/x', '/srv/St')
    """
    paths = dict.fromkeys(path for text in texts for path in _paths(text))
    return tuple(path for path in paths if _is_path(path))


def _paths(text: str) -> Iterator[str]:
    """Yield the longest and the shortest form that each absolute path may have."""
    for match in ABSOLUTE.finditer(text):
        path, before = match[1], text[match.start() - 1 : match.start()]
        if before and before in "'\"`":
            path = path.partition(before)[0]
        yield path.rstrip().rstrip(ENDS)
        scheme, drive = path[:5].lower() == "file:", path[1:2] == ":"
        start = 5 if scheme else 2 if drive else 0
        if short := SHORT.match(path, start):
            yield (path[:start] + short[0]).rstrip(ENDS)


def line_for_others(line: str, places: Iterable[str]) -> str | None:
    """Return an error's line with these places as `[redacted]`; None if it may name another place as well.

    A place is replaced where it stands alone. The name of a file below it may have colons, commas and
    blanks, so the longest path that exists is replaced. A line that still has a separator names something
    that does not exist, or is elsewhere, and is not passed on.

    >>> line_for_others("/srv/St Mary, Boston: is no folder", ["/srv/St Mary, Boston"])
    '[redacted]: is no folder'
    >>> line_for_others("/srv/St Mary, Boston/missing.key: is not there", ["/srv/St Mary, Boston"])
    """
    known = sorted({form for place in places if _is_path(place) for form in _forms(place)}, key=len)
    if known:
        any_place = "|".join(re.escape(form) for form in reversed(known))
        line = re.sub(rf"""(?:{any_place})(?=$|[:,;'"`)\]])""", MARK, line)
        start = 0
        while match := re.compile(f"(?:{any_place})(?=[/\\\\])").search(line, start):
            end = _end_of_file_name(line, match.start())
            if end is None:
                return None
            line = line[: match.start()] + MARK + line[end:]
            start = match.start() + len(MARK)
    return None if re.search(r"[/\\]", line.replace(" 1 / ", " ")) else line  # errors have `below 1 / n`


def _end_of_file_name(line: str, start: int) -> int | None:
    """Return where the longest path of this machine that begins at `start` ends; None if there is none."""
    ends = [
        match.start() for match in re.finditer(r"""(?=: |, |['"`)\];])|$""", line) if match.start() > start
    ]
    return next((end for end in reversed(ends) if os.path.lexists(line[start:end])), None)


def places_of_a_client(policy_file: str) -> set[str]:
    """Return the places of a client's files, by its policy if that can be read, and of its user."""
    file = Path(policy_file)
    places = {policy_file, str(file.parent)}
    with suppress(OSError, RuntimeError):  # a home or working folder that does not exist
        places |= {str(file.resolve()), str(file.resolve().parent), str(Path.cwd()), str(Path.home())}
    with suppress(FedProxyError):
        policy = load_policy(file, one_machine=True).model_dump(mode="json")
        policy["data"] = {"root": policy["data_root"], "clients": [policy["client"]]}
        places |= {*private_strings(policy)}
    return places


def redacted_text(text: str, private: Iterable[str]) -> str:
    """Return a text without the private strings, in any spelling (`_forms`)."""
    for string in private:
        for form in _forms(string):
            text = text.replace(form, MARK)
    return text


def redacted_value(value: Any, private: Iterable[str]) -> Any:
    """Return plain JSON values with the private strings removed from every text in them."""
    if isinstance(value, str):
        return redacted_text(value, private)
    if isinstance(value, dict):
        return {redacted_text(k, private): redacted_value(v, private) for k, v in value.items()}
    return [redacted_value(v, private) for v in value] if isinstance(value, list) else value


def check_nothing_private(files: Mapping[str, bytes], private: Iterable[str]) -> None:
    """Raise `ConfigError`, naming the file but not the string, if a file holds a private string."""
    forms = [form.encode() for string in private for form in _forms(string)]
    for name, content in files.items():
        if any(form in content for form in forms):
            raise ConfigError(f"{name}: would hold a client's path; nothing was written")


def _forms(string: str) -> list[str]:
    """Return how a string may be spelled: in a command's YAML, in a command, printed, in JSON, in HTML."""
    forms = {string: None, string.replace("'", "''"): None}  # in this order
    forms |= {form.replace("'", IN_SHELL): None for form in forms}
    forms |= {printable(form, keep=keep): None for form in forms for keep in ("", "\n")}
    forms |= {json.dumps(form, ensure_ascii=plain)[1:-1]: None for form in forms for plain in (True, False)}
    forms |= {form.replace("<", "\\u003c"): None for form in forms}  # in the page's scripts
    in_html = [html.escape(form) for form in forms]
    in_template = [form.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for form in in_html]
    return list(dict.fromkeys((*forms, *in_html, *in_template)))


def _at(settings: Mapping[str, Any], section: str, key: str) -> Any:
    part = settings.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def _is_path(text: str) -> bool:
    """Return whether a text names a place in a folder; `demo` and `./` do not."""
    names = [part for part in PurePath(text).parts if part not in ("/", "\\", ".", "..")]
    return ("/" in text or "\\" in text) and bool(names)
