"""The tokenizers that a proxy may have: those whose output is at most a constant times their input.

A tokenizer is a program in the file `tokenizer.json`. Its maker can make it turn one word into 10^14
characters, or search that word for hours. A client whose records contain the word then runs out of memory
or never answers, and no error is raised that could be caught. So every part of a tokenizer, and every
setting of a part, must be on a list before the library reads the file. What the library then holds in
memory is checked once more.

    growth     parts together grow text by a factor of at most `MOST_GROWTH`, and the model does not at all
    patterns   regular expressions search in at most quadratic time (`proxy_intake.patterns`)
    chance     `dropout` must be none: the same record must have the same tokens each time
    size       numbers of tokens and merges, and the lengths of tokens, are bounded
    records    no `truncation` or `padding`: tokens of a text must not depend on those beside it

Guarantees: for a tokenizer that passes, the number of tokens is at most `MOST_GROWTH` (and, by
`add_special_tokens`, a constant more) times the bytes of a text. Not guaranteed: that the library's native
code, given such a tokenizer, fails on no text; that its running time tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake.patterns import MOST_PATTERN, why_refused
from fedproxy_secure.runtime.quoting import quoted

MOST_VOCABULARY = 2**21  # tokens; the largest in use have 2^18
MOST_MERGES = 2**22
MOST_ADDED = 2**16
MOST_TOKEN = 1024  # characters of one token; some in use are runs of 256
MOST_GROWTH = 64  # bytes after all parts, over bytes before
MOST_PARTS = 16  # normalizers, pre-tokenizers, ... of a sequence
_MOST_TEXT = 64  # characters of a setting, patterns apart
_MOST_WORD = 1000  # characters of a word that WordPiece looks at, in quadratic time

_TOP = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"}
_TOP |= {"decoder", "model"}
_ADDED = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_BYTE_LEVEL = {"add_prefix_space", "trim_offsets", "use_regex"}
_METASPACE = {"replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}

# section -> (what a `Sequence` calls its parts, part -> its settings)
_PARTS: Mapping[str, tuple[str, Mapping[str, set[str]]]] = {
    "normalizer": (
        "normalizers",
        {
            "BertNormalizer": {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"},
            "ByteLevel": set(),
            "Lowercase": set(),
            "NFC": set(),
            "NFD": set(),
            "NFKC": set(),
            "NFKD": set(),
            "Nmt": set(),
            "Prepend": {"prepend"},
            "Replace": {"pattern", "content"},
            "Strip": {"strip_left", "strip_right"},
            "StripAccents": set(),
        },
    ),
    "pre_tokenizer": (
        "pretokenizers",
        {
            "BertPreTokenizer": set(),
            "ByteLevel": _BYTE_LEVEL,
            "CharDelimiterSplit": {"delimiter"},
            "Digits": {"individual_digits"},
            "Metaspace": _METASPACE,
            "Punctuation": {"behavior"},
            "Split": {"pattern", "behavior", "invert"},
            "UnicodeScripts": set(),
            "Whitespace": set(),
            "WhitespaceSplit": set(),
        },
    ),
    "post_processor": (
        "processors",
        {
            "BertProcessing": {"sep", "cls"},
            "ByteLevel": _BYTE_LEVEL,
            "RobertaProcessing": {"sep", "cls", "trim_offsets", "add_prefix_space"},
            "TemplateProcessing": {"single", "pair", "special_tokens"},
        },
    ),
    "decoder": (
        "decoders",
        {
            "BPEDecoder": {"suffix"},
            "ByteFallback": set(),
            "ByteLevel": _BYTE_LEVEL,
            "Fuse": set(),
            "Metaspace": _METASPACE,
            "Replace": {"pattern", "content"},
            "Strip": {"content", "start", "stop"},
            "WordPiece": {"prefix", "cleanup"},
        },
    ),
}
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_WORDS = {"unk_token", *_AFFIXES}
_MODELS = {
    "BPE": {"vocab", "merges", "dropout", "fuse_unk", "byte_fallback", "ignore_merges"} | _WORDS,
    "Unigram": {"vocab", "unk_id", "byte_fallback"},
    "WordLevel": {"vocab", "unk_token"},
    "WordPiece": {"vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"},
}
# bytes of UTF-8 after over before, at most (Unicode's FAQ on normalization; rounded up); other parts: 1
_GROWTH = {
    "BertNormalizer": 9.0,
    "Lowercase": 2.0,
    "NFC": 3.0,
    "NFD": 3.0,
    "NFKC": 11.0,
    "NFKD": 11.0,
    "StripAccents": 3.0,
}
_SPACES = frozenset({r"\s+", " {2,}"})  # all that `Replace` may search for beside literal text


def check_tokenizer(raw: object) -> None:
    """Raise `DataError` unless the value of a `tokenizer.json` describes a tokenizer that may be used."""
    tokenizer = _object(raw, "it")
    _only(tokenizer, _TOP, "it")
    for name in ("truncation", "padding"):
        if tokenizer.get(name) is not None:
            raise _wrong(f"has {name}; must have none, as records would depend on each other")
    growth = 1.0
    for section, (plural, known) in _PARTS.items():
        parts = list(_flat(tokenizer.get(section), section, plural))
        if len(parts) > MOST_PARTS:
            raise _wrong(f"its {section} has {len(parts)} parts; must have at most {MOST_PARTS}")
        grown = math.prod(_checked(part, section, known) for part in parts)
        if section == "decoder":  # starts anew, from tokens
            _check_growth(grown)
        else:
            growth *= grown
    _check_growth(growth)
    _check_model(_object(tokenizer.get("model"), "its model"))
    _check_added(tokenizer.get("added_tokens"))


def _check_growth(growth: float) -> None:
    if growth > MOST_GROWTH:
        raise _wrong(f"may make text {growth:.0f} times as long; must be at most {MOST_GROWTH}")


def _flat(value: object, section: str, plural: str) -> Iterator[dict[str, Any]]:
    """Yield the parts of a section, those of nested sequences one after the other."""
    if value is None:
        return
    part = _object(value, f"its {section}")
    if part.get("type") != "Sequence":
        yield part
        return
    _only(part, {"type", plural}, f"its {section}")
    for inner in _list(part.get(plural), f"its {section}"):
        yield from _flat(_object(inner, f"its {section}"), section, plural)


def _checked(part: dict[str, Any], section: str, known: Mapping[str, set[str]]) -> float:
    """Return the factor by which one part may make text longer."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in known:
        raise _wrong(f"has the {section} {quoted(kind)}; must be one of {', '.join(known)}")
    what = f"its {section} {kind}"
    _only(part, {"type", *known[kind]}, what)
    if kind == "TemplateProcessing":
        _check_template(part, what)
        return 1.0
    _check_words(part, what)
    if kind == "Split":
        pattern, literal = _pattern(part, what)
        if not literal and (reason := why_refused(pattern)):
            raise _wrong(f"{what}: {reason}")
        return 1.0
    if kind == "Replace":
        return _growth_of_replace(part, what)
    if kind == "Prepend":
        return 1.0 + _bytes(part.get("prepend"), what)
    if kind == "Metaspace":  # of each piece, whose first character it may come before
        return 1.0 + _bytes(part.get("replacement"), what, most=1)
    if kind == "ByteLevel":
        return 4.0 if part.get("add_prefix_space") else 2.0
    return _GROWTH.get(kind, 1.0)


def _check_words(part: dict[str, Any], what: str) -> None:
    """Raise `DataError` unless all values but the pattern are plain and short."""
    for name, value in ((n, v) for n, v in part.items() if n != "pattern"):
        if isinstance(value, list) and name in ("sep", "cls"):  # a token and its id
            value = value[0] if len(value) == 2 else value
        if not (value is None or isinstance(value, bool | int | str)) or len(str(value)) > _MOST_TEXT:
            raise _wrong(f"{what}: {name} must be a word of at most {_MOST_TEXT} characters")


def _growth_of_replace(part: dict[str, Any], what: str) -> float:
    pattern, literal = _pattern(part, what)
    if not literal and pattern not in _SPACES:
        raise _wrong(f"{what}: may search for literal text or spaces alone")
    replaced = len(pattern.encode(errors="surrogatepass")) if literal else 1
    return max(1.0, _bytes(part.get("content"), what) / replaced)


def _pattern(part: dict[str, Any], what: str) -> tuple[str, bool]:
    """Return a part's pattern, which is not empty, and whether it is literal text."""
    pattern = _object(part.get("pattern"), f"{what}: its pattern")
    for kind in ("String", "Regex"):
        text = pattern.get(kind)
        if len(pattern) == 1 and isinstance(text, str) and 0 < len(text) <= MOST_PATTERN:
            return text, kind == "String"
    raise _wrong(f"{what}: its pattern must be a text of 1 to {MOST_PATTERN} characters")


def _bytes(text: object, what: str, most: int = _MOST_TEXT) -> int:
    if not isinstance(text, str) or len(text) > most:
        raise _wrong(f"{what}: its text must have at most {most} characters")
    return len(text.encode(errors="surrogatepass"))


def _check_template(part: dict[str, Any], what: str) -> None:
    for name in ("single", "pair"):
        if len(_list(part.get(name), what)) > MOST_PARTS:
            raise _wrong(f"{what}: must have at most {MOST_PARTS} pieces")
        texts = [p for p in part[name] if isinstance(p, dict) and "Sequence" in p]
        if len(texts) > (1 if name == "single" else 2):
            raise _wrong(f"{what}: must have each text once")
    tokens = _object(part.get("special_tokens"), what)
    if len(tokens) > MOST_PARTS:
        raise _wrong(f"{what}: must have at most {MOST_PARTS} special tokens")
    for token in tokens.values():
        if len(_list(_object(token, what).get("ids"), what)) > MOST_PARTS:
            raise _wrong(f"{what}: must have at most {MOST_PARTS} ids of a special token")


def _check_model(model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)  # older versions wrote no type
    if not isinstance(kind, str) or kind not in _MODELS:
        raise _wrong(f"has the model {quoted(kind)}; must be one of {', '.join(_MODELS)}")
    what = f"its model {kind}"
    _only(model, {"type", *_MODELS[kind]}, what)
    dropout = model.get("dropout")
    if dropout is not None and (isinstance(dropout, bool) or dropout != 0):
        raise _wrong("has dropout; must have none, as the same text must have the same tokens each time")
    for name in _WORDS:
        if model.get(name) is not None:
            _bytes(model[name], f"{what}: {name}")
    if model.get("byte_fallback") and (affix := next(filter(model.get, _AFFIXES), None)):
        raise _wrong(f"{what}: byte_fallback beside {affix}: must be alone, as each byte would be a token")
    longest = model.get("max_input_chars_per_word", 0)
    if type(longest) is not int or not 0 <= longest <= _MOST_WORD:
        raise _wrong(f"{what}: max_input_chars_per_word must be at most {_MOST_WORD}")
    tokens: list[object]
    if kind == "Unigram":
        pairs = _list(model.get("vocab"), what)
        tokens = [pair[0] if isinstance(pair, list) and pair else None for pair in pairs]
    else:
        tokens = list(_object(model.get("vocab"), what))
    _check_tokens(tokens, MOST_VOCABULARY, what)
    if len(_list(model.get("merges", []), what)) > MOST_MERGES:
        raise _wrong(f"{what}: must have at most {MOST_MERGES} merges")


def _check_added(value: object) -> None:
    tokens = [_object(token, "its added token") for token in _list(value or [], "its added tokens")]
    for token in tokens:
        _only(token, _ADDED, "its added token")
    _check_tokens([token.get("content") for token in tokens], MOST_ADDED, "its added tokens")


def _check_tokens(tokens: list[object], most: int, what: str) -> None:
    if len(tokens) > most:
        raise _wrong(f"{what}: {len(tokens)} tokens; must be at most {most}")
    if not all(isinstance(token, str) and len(token) <= MOST_TOKEN for token in tokens):
        raise _wrong(f"{what}: each token must be a text of at most {MOST_TOKEN} characters")


def _only(value: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(value) - known):
        raise _wrong(
            f"{what} has the setting {quoted(unknown[0])}; must be one of {', '.join(sorted(known))}"
        )


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} must be a JSON object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(f"{what} must be a list")
    return value


def _wrong(text: str) -> DataError:
    return DataError(f"proxy's tokenizer: {text}")
