"""Conversations as records: how they are written down, and what is learned of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.data.chat.formats import MOST_BEFORE, MOST_BETWEEN, MOST_END, chat_format, format_of
from fedproxy_secure.data.chat.messages import chat_record
from fedproxy_secure.data.encode import encode_each, encode_records
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError, Stopped
from tests.support.chat import CHATML, SECRET, encoded, talk, with_template
from tests.support.tiny import tiny_tokenizer

HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|e|>"
    "{% endfor %}"
)


WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end>\n{% endfor %}"
)


BRACKETS = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = none %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and s %}<<SYS>>\n{{ s }}\n<</SYS>>\n\n{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)


THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}<|e|>{% endfor %}"
)


DATED = (
    "{{ strftime_now('%d %b %Y') }} {% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)


JOINED = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


STORED_FORMAT = {
    "before_user": "",
    "before_system": "",
    "user_to_assistant": "",
    "assistant_to_user": "",
    "system_to_user": "",
    "opening": "",
    "end": "",
}


TEMPLATES = [CHATML, HEADERS, BRACKETS, THINKING]


WORDS = st.text("ab Z.\n<é", min_size=1, max_size=12).map(str.strip).filter(bool)


@pytest.mark.parametrize("template", TEMPLATES, ids=["chatml", "headers", "brackets", "thinking"])
@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(WORDS, min_size=1, max_size=3), response=WORDS, system=st.one_of(st.just(""), WORDS)
)
def test_a_conversation_has_the_tokens_that_its_chat_template_gives(template, contents, response, system):
    tokenizer, turns = with_template(template), []
    for content in contents[:-1]:
        turns += [content, "ok"]
    messages = talk(*turns, contents[-1], response, system=system)
    item = encoded(messages, tokenizer)
    written = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    assert list(item.ids) == tokenizer(written, add_special_tokens=False)["input_ids"]
    learned = tokenizer.decode(item.ids[item.response_start :])
    assert learned.lstrip().startswith(response)
    assert learned.replace(response, "", 1).strip() in ("<|im_end|>", "<|e|>", "</s>")


def test_the_loss_is_read_of_the_last_turn_alone():
    item = encoded(talk("one", "ONE", "two", "TWO"), with_template(CHATML))
    read = with_template(CHATML).decode(item.ids[item.response_start :])
    assert read == "TWO<|im_end|>"


def test_a_tokenizer_without_a_template_reads_plain_text_with_start_and_end():
    tokenizer = tiny_tokenizer()
    item = encoded(talk("one", "ONE", "two", "TWO", system="S"), tokenizer)
    assert tokenizer.decode(item.ids) == (
        "<s>System: S\nUser: one\nAssistant: ONE\nUser: two\nAssistant: TWO</s>"
    )
    assert tokenizer.decode(item.ids[item.response_start :]) == " TWO</s>"


def test_a_template_without_an_end_gets_the_tokenizers():
    tokenizer = with_template("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    assert encoded(talk("q", "a"), tokenizer).ids[-1] == tokenizer.eos_token_id


def test_a_system_message_that_a_template_has_no_role_for_comes_before_the_first_question():
    tokenizer = with_template(WITHOUT_SYSTEM)
    item = encoded(talk("q", "a", system="be kind"), tokenizer)
    assert tokenizer.decode(item.ids) == "<start>user\nbe kind\n\nq<end>\n<start>model\na<end>"


def test_what_a_template_writes_of_today_is_the_same_every_day():
    assert chat_format(with_template(DATED)).before["user"] == "1 January 2025 <user>"


def test_a_long_conversation_loses_its_beginning_and_no_token_of_the_response():
    tokenizer = with_template(CHATML)
    records = [chat_record(talk("x" * 300, "y" * 20))]
    found = encode_records(records, tokenizer, max_tokens=50)
    assert found.truncated == 1
    assert len(found.items[0].ids) == 50
    assert tokenizer.decode(found.items[0].ids[found.items[0].response_start :]) == "y" * 20 + "<|im_end|>"


def test_with_learn_text_the_whole_conversation_is_learned():
    record = chat_record(talk("q", "a"))
    whole = Record(
        prompt=record.prompt, choices=record.choices, label=0, learn="text", messages=record.messages
    )
    (item,) = encode_records([whole], with_template(CHATML), max_tokens=100).items
    assert item.response_start == 1


def test_conversations_and_other_records_stay_in_their_order():
    tokenizer = with_template(CHATML)
    other = Record(prompt="plain", choices=(" p",), label=0)
    records = [other, chat_record(talk("q", "a")), other, chat_record(talk("r", "b"))]
    items = encode_records(records, tokenizer, max_tokens=100).items
    ends = [tokenizer.decode(item.ids[item.response_start :]) for item in items]
    assert ends == [" p</s>", "a<|im_end|>", " p</s>", "b<|im_end|>"]


# --- templates that do something else


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception(messages[0]['content']) }}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ messages[-1]['content'] }}",
        "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}",
        f"{{{{ 'x' * {MOST_BEFORE + 1} }}}}" + JOINED,
        JOINED + f"{{{{ 'x' * {MOST_END + 1} }}}}",
        "{% for m in messages %}<{{ range(10**6) | random }}>{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ lipsum(n=1) }}{{ m['content'] }}{% endfor %}",
        f"{{% for m in messages %}}{{{{ m['content'] }}}}{{{{ 'x' * {MOST_BETWEEN + 1} }}}}{{% endfor %}}",
        "{% no template",
        "x" * 2**17,
        "",
    ],
)
def test_a_template_that_does_more_than_join_texts_is_not_used(template):
    tokenizer = with_template(template)
    assert chat_format(tokenizer) is None
    read = tokenizer.decode(encoded(talk("q", "a"), tokenizer).ids)
    assert read == "<s>User: q\nAssistant: a</s>"


def test_no_template_is_ever_shown_a_record():
    """Else whoever made it could make a client fail, or write something else, for texts of their choice."""
    watching = (
        "{% for m in messages %}{% if 'Jane' in m['content'] %}{{ raise_exception('found') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}<|e|>{% endfor %}"
    )
    tokenizer = with_template(watching)
    records = [chat_record(talk(who, "yes")) for who in (SECRET, "Mary")]
    one, other = encode_each(records, tokenizer, max_tokens=100).items
    assert tokenizer.decode(one.ids) == tokenizer.decode(other.ids).replace("Mary", SECRET)


def test_what_ends_an_attack_is_no_failure_of_a_record():
    class Ends:
        def __call__(self, *_texts, **_options):
            raise Stopped

        def __getattr__(self, name):
            return getattr(tiny_tokenizer(), name)

    record = Record(prompt="q", choices=(" a",), label=0)
    with pytest.raises(Stopped):
        encode_each([record], Ends(), max_tokens=100)


def test_records_are_written_without_running_a_template(monkeypatch):
    tokenizer = with_template(CHATML)
    before = encoded(talk("q", "a"), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('run') }}"
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *_, **__: pytest.fail("was run"))
    assert encoded(talk("q", "a"), tokenizer) == before


def test_one_record_that_fails_changes_no_other_even_if_the_template_differs_by_call():
    tokenizer = with_template(
        "{% for m in messages %}{{ ['A', 'B'] | random }}{{ m['content'] }}{% endfor %}"
    )
    records = [chat_record(talk("q", "a"))] * 12
    too_long = chat_record(talk("q", "a" * 200))
    items = encode_each(records, tokenizer, max_tokens=100).items
    assert len(set(items)) == 1
    assert encode_each([*records, too_long], tokenizer, max_tokens=100).items[:12] == items


def test_a_template_that_has_the_system_message_in_the_last_question_gets_it_before_the_first():
    """As documented: the same for one question, not what the template does for more."""
    in_last = (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}[I]"
        "{% if s and loop.index0 == (rest | length) - 2 %}{{ s }}\n\n{% endif %}"
        "{{ m['content'] }}[/I]{% else %}{{ m['content'] }}<|e|>{% endif %}{% endfor %}"
    )
    tokenizer = with_template(in_last)
    item = encoded(talk("q", "a", "r", "b", system="S"), tokenizer)
    assert tokenizer.decode(item.ids) == "[I]S\n\nq[/I]a<|e|>[I]r[/I]b<|e|>"


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {},
        {"opening": "", "end": ""},
        {**STORED_FORMAT, "other": ""},
        {k: v for k, v in STORED_FORMAT.items() if k != "system_to_user"},
        {**STORED_FORMAT, "end": None},
        {**STORED_FORMAT, "end": "x" * (MOST_END + 1)},
        {**STORED_FORMAT, "opening": "x" * (MOST_BETWEEN + 1)},
        {**STORED_FORMAT, "before_system": "x" * (MOST_BEFORE + 1)},
    ],
)
def test_a_stored_value_that_is_no_format_is_refused(raw):
    with pytest.raises(DataError, match=r"^conversation_format: ") as caught:
        format_of(raw)
    assert "\n" not in str(caught.value)


def test_a_format_is_the_same_after_it_was_stored():
    found = chat_format(with_template(CHATML))
    assert found.before["system"] == "<|im_start|>system\n"
    assert format_of(json.loads(json.dumps(found.stored()))) == found
