"""Find rows of an input embedding that no text reads, because its tokenizer never produces their tokens.

Three kinds are found, from the model's files only:

    padding     rows beyond the tokenizer's last token
    bytes       tokens of a byte-level tokenizer with one of the 13 bytes that UTF-8 never has
    reserved    special tokens that neither settings nor chat template name (`<|reserved_7|>`, `<gh_stars>`)

Guarantees: no text becomes a token of the first two kinds. A reserved token comes from a text that spells
it out, and from no other. Not found: rows that a tokenizer could produce and that no text happens to have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.untrusted import read_json

NO_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})  # RFC 3629
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # bytes that stand for themselves


def unused_rows(folder: Path, rows: int) -> list[int]:
    """Return the indices of embedding rows that no text reads: padding, then bytes, then reserved tokens.

    Args:
        folder: the model's folder.
        rows: how many rows its embedding has.

    Raises `DataError` for files that cannot be read.
    """
    tokenizer = _read(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = [t for t in tokenizer.get("added_tokens") or [] if isinstance(t, dict)]
    if not isinstance(vocabulary, dict) or not isinstance(model, dict):
        vocabulary, ids = {}, [i for i, _ in enumerate(vocabulary or [])]
    else:
        ids = [i for i in vocabulary.values() if type(i) is int]
    last = max([*ids, *(t["id"] for t in added if type(t.get("id")) is int)], default=-1)
    named = {t.get("content") for t in added}
    settings = [_read(folder / name) for name in ("config.json", "generation_config.json")]
    used = set(_ids(settings)) | set(_ids(tokenizer.get("post_processor")))
    unreachable = [
        i for token, i in vocabulary.items() if token not in named and _unreachable(token, tokenizer)
    ]
    words = _named_words(folder)
    reserved = [
        t["id"]
        for t in added
        if t.get("special") is True and t["id"] not in used and not _is_named(t, words)
    ]
    kinds = (range(last + 1, rows), sorted(unreachable), sorted(reserved))
    return [row for kind in kinds for row in kind if row not in used and 0 <= row < rows]


def byte_letters() -> dict[int, str]:
    """Return the letter that byte-level tokenizers write for each byte (GPT-2's)."""
    unprintable = [byte for byte in range(256) if byte not in _PRINTED]
    return {**{b: chr(b) for b in _PRINTED}, **{b: chr(256 + n) for n, b in enumerate(unprintable)}}


_LETTERS = frozenset(letter for byte, letter in byte_letters().items() if byte in NO_UTF8)


def _unreachable(token: str, tokenizer: Mapping[str, Any]) -> bool:
    """Return whether this token of a byte-level BPE tokenizer has bytes that no text has."""
    byte_level = any(
        part.get("type") == "ByteLevel"
        for section in ("pre_tokenizer", "normalizer")
        for part in _parts(tokenizer.get(section))
    )
    return byte_level and tokenizer["model"].get("type") == "BPE" and not _LETTERS.isdisjoint(token)


def _parts(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in (value.get("pretokenizers"), value.get("normalizers")):
            for part in inner if isinstance(inner, list) else ():
                yield from _parts(part)


def _ids(value: object) -> Iterator[int]:
    """Yield the token ids that settings name, at any depth: `eos_token_id: [1, 2]`, a template's `ids`."""
    if isinstance(value, list):
        for inner in value:
            yield from _ids(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "ids" or key.endswith(("_token_id", "_token_ids")):
                yield from (i for i in (inner if isinstance(inner, list) else [inner]) if type(i) is int)
            yield from _ids(inner)


def _named_words(folder: Path) -> list[str]:
    """Return the texts that name special tokens which are in use: settings and templates."""
    settings = _read(folder / "tokenizer_config.json")
    words = [str(value) for key, value in settings.items() if key.endswith("_token")]
    words.append(str(settings.get("chat_template", "")))
    formats = settings.get("conversation_format")  # a template may put a token's name together
    words += [str(text) for text in formats.values()] if isinstance(formats, dict) else []
    template = folder / "chat_template.jinja"
    try:
        return [*words, template.read_text(encoding="utf-8")] if template.exists() else words
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{template.name}: cannot be read: {error}") from error


def _is_named(token: Mapping[str, Any], words: list[str]) -> bool:
    content = str(token.get("content"))
    return any(content in word for word in words)


def _read(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{file.name}: {error}") from error
    return value if isinstance(value, dict) else {}
