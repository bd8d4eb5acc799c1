"""Tokenizers of well-known shapes are taken; those that grow text, search for long or draw are not."""

import json
import re

import pytest
from tokenizers import Tokenizer

from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import demo_llm_folder
from fedproxy_secure.proxy_intake.tokenizer import check_tokenizer
from tests.support.tiny import tiny_tokenizer

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEXES = [
    CL100K,
    CL100K.replace("{1,3}", ""),
    O200K,
    GPT2,
    DEEPSEEK,
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"\s+$",
    r"\p{N}{1,3}",
]


def tokenizer(**changes):
    raw = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    model = {**raw["model"], **changes.pop("model", {})}
    return {**raw, "model": model, **changes}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def literal(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(plural, *parts):
    return {"type": "Sequence", plural: list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
START = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TEXT, SECOND = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [START, TEXT],
    "pair": [START, TEXT, START, SECOND],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
SHAPES = {
    "tests": {},
    "GPT-2": {"post_processor": BYTES, "pre_tokenizer": {**BYTES, "use_regex": True}},
    "Llama 3": {
        "pre_tokenizer": sequence("pretokenizers", split(CL100K), BYTES),
        "post_processor": sequence("processors", BYTES, TEMPLATE),
        "model": {"ignore_merges": True},
    },
    "Qwen": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence("pretokenizers", split(CL100K.replace("{1,3}", "")), BYTES),
    },
    "Llama 2": {
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, literal(" ", "▁")),
        "pre_tokenizer": None,
        "post_processor": TEMPLATE,
        "decoder": sequence(
            "decoders", literal("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
        "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<s>"},
    },
    "Gemma": {
        "normalizer": literal(" ", "▁"),
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "model": {"byte_fallback": True, "fuse_unk": True},
    },
    "SmolLM": {
        "pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}
        )
    },
    "DeepSeek": {
        "normalizer": sequence("normalizers"),
        "pre_tokenizer": sequence(
            "pretokenizers", split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), BYTES
        ),
    },
    "BERT": {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_tokenizers_of_well_known_models_are_taken(shape):
    raw = tokenizer(**SHAPES[shape])
    check_tokenizer(raw)
    loaded = Tokenizer.from_str(json.dumps(raw))  # the library takes it too, and writes what is taken again
    check_tokenizer(json.loads(loaded.to_str()))


@pytest.mark.parametrize("regex", REGEXES)
def test_regular_expressions_of_well_known_models_are_taken(regex):
    check_tokenizer(tokenizer(pre_tokenizer=split(regex)))


def test_the_tokenizer_of_this_project_is_taken():
    check_tokenizer(json.loads((demo_llm_folder() / "tokenizer.json").read_text()))


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+$", "(a|aa)+", "(?:a*)*b", r"(a)\1", "a*a*a*b", "a+a+b", r"a+b+(?!\S)", "a?a?a?a?a?aaaaa",
        "(?=a*a)b", "(?<=a+)b", "a{1,99}", "a{2}{2}", "(?:a|b)+", "[[a]&&[b]]+", "a++++", ".*.*x", "", "(",
        r"(?i:a*)+", "a|" * 40,
    ],
)  # fmt: skip
def test_regular_expressions_that_may_search_for_long_are_refused(regex):
    with pytest.raises(DataError, match=r"^proxy's tokenizer: its pre_tokenizer Split"):
        check_tokenizer(tokenizer(pre_tokenizer=split(regex)))


PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
WRONG = {
    "grows a word": ({"normalizer": literal("a", "b" * 65)}, "at most 64 characters"),
    "grows in two steps": (
        {"normalizer": sequence("normalizers", literal("a", "b" * 9), literal("b", "c" * 9))},
        "162 times as long; must be at most 64",
    ),
    "grows in nested steps": (
        {
            "normalizer": sequence(
                "normalizers", literal("a", "bb"), sequence("normalizers", literal("b", "c" * 40))
            )
        },
        "160 times",
    ),
    "grows in two sections": (
        {"normalizer": {"type": "NFKC"}, "pre_tokenizer": sequence("pretokenizers", BYTES, BYTES, BYTES)},
        "88 times",
    ),
    "grows in decoding": ({"decoder": sequence("decoders", *[literal("a", "b" * 9)] * 2)}, "81 times"),
    "finds nothing everywhere": ({"normalizer": literal("", "b")}, "a text of 1 to"),
    "searches": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}},
        "literal text or spaces alone",
    ),
    "many parts": ({"normalizer": sequence("normalizers", *[{"type": "NFC"}] * 17)}, "has 17 parts"),
    "a table of its own": ({"normalizer": PRECOMPILED}, "normalizer 'Precompiled'; must be one of"),
    "an unknown part": ({"pre_tokenizer": {"type": "Python"}}, "pre_tokenizer 'Python'; must be"),
    "an unknown setting": ({"pre_tokenizer": {**BYTES, "times": 9}}, "the setting 'times'; must be one of"),
    "no object": ({"normalizer": [1]}, "its normalizer must be a JSON object"),
    "truncation": ({"truncation": {"max_length": 8}}, "has truncation; must have none"),
    "padding": ({"padding": {"strategy": "BatchLongest"}}, "has padding; must have none"),
    "dropout": ({"model": {"dropout": 0.5}}, "has dropout; must have none"),
    "dropout, true": ({"model": {"dropout": True}}, "has dropout"),
    "a long token": ({"model": {"vocab": {"a" * 1025: 0}}}, "at most 1024 characters"),
    "a long prefix": ({"model": {"continuing_subword_prefix": "a" * 65}}, "at most 64 characters"),
    "a prefix beside bytes": (
        {"model": {"byte_fallback": True, "continuing_subword_prefix": "##"}},
        "byte_fallback beside continuing_subword_prefix: must be alone",
    ),
    "a suffix beside bytes": (
        {"model": {"byte_fallback": True, "end_of_word_suffix": "</w>"}},
        "byte_fallback beside end_of_word_suffix: must be alone",
    ),
    "an unknown model": ({"model": {"type": "Evil"}}, "has the model 'Evil'"),
    "a long added token": ({"added_tokens": [{"id": 0, "content": "a" * 1025}]}, "at most 1024 characters"),
    "many added tokens": (
        {"added_tokens": [{"content": "a"}] * (2**16 + 1)},
        "65537 tokens; must be at most",
    ),
    "a text twice": ({"post_processor": {**TEMPLATE, "single": [TEXT, TEXT]}}, "each text once"),
    "a long template": ({"post_processor": {**TEMPLATE, "single": [START] * 17}}, "at most 16 pieces"),
    "more sections": ({"more": 1}, "has the setting 'more'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_on_no_list_is_refused_in_one_line(what):
    changes, line = WRONG[what]
    with pytest.raises(DataError, match="^proxy's tokenizer: .*" + re.escape(line)) as found:
        check_tokenizer(tokenizer(**changes))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["Ａﷺ e\u0301 12 \t\n", "ﷺ" * 9, "İ中a", "a b  c"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_no_more_than_the_bound(shape, text):
    loaded = Tokenizer.from_str(json.dumps(tokenizer(**SHAPES[shape])))
    assert len(loaded.encode(text, add_special_tokens=False).ids) <= 64 * len(text.encode())
