"""Clients write conversations with strings that the proxy's digest covers, and never run its template."""

import json

import pytest

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.data.chat.derived import keep_format
from fedproxy_secure.data.chat.formats import MOST_BETWEEN, STORED, chat_format
from fedproxy_secure.data.chat.messages import chat_record
from fedproxy_secure.data.encode import encode_each, encode_records
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import llm_sha256
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from tests.support.hostile_proxies import edit_json
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}"
RECORD = chat_record([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
SETTINGS = "tokenizer_config.json"


def load(folder):
    return load_proxy(folder, max_tokens=64, device="cpu")


def read(tokenizer):
    (item,) = encode_each([RECORD], tokenizer, max_tokens=64).items
    return tokenizer.decode(item.ids)


@pytest.fixture
def proxy(tmp_path):
    """A proxy whose owner has found out how her template writes conversations."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_model(tiny_llama(2), tokenizer, tmp_path / "proxy")
    return tmp_path / "proxy"


def test_owner_and_client_write_conversations_alike(proxy):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    keep_format(tokenizer)
    (expected,) = encode_records([RECORD], tokenizer, max_tokens=64).items
    (item,) = encode_each([RECORD], load(proxy).tokenizer, max_tokens=64).items
    assert item == expected
    assert tokenizer.decode(item.ids) == "<user>q;<assistant>a;"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('run') }}", "{{ 'x' * 10**13 }}", "{% for i in range(10**9) %}{% endfor %}"],
)
def test_a_client_never_runs_the_template(proxy, monkeypatch, template):
    """With a format that is stored it writes that one; without, plain text."""
    from transformers import PreTrainedTokenizerBase

    def run(*_, **__):
        raise AssertionError("the template was run")

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", run)
    (proxy / "chat_template.jinja").write_text(template)
    tokenizer = load(proxy).tokenizer
    assert tokenizer.chat_template is None
    assert read(tokenizer) == "<user>q;<assistant>a;"
    raw = json.loads((proxy / SETTINGS).read_text())
    del raw[STORED]
    (proxy / SETTINGS).write_text(json.dumps(raw))
    assert read(load(proxy).tokenizer) == "<s>User: q\nAssistant: a</s>"


def test_the_stored_format_is_in_both_digests(proxy):
    loaded, files = load(proxy).loaded_sha256, folder_sha256(proxy)
    stored = json.loads((proxy / SETTINGS).read_text())[STORED]
    edit_json(proxy / SETTINGS, **{STORED: {**stored, "opening": "other"}})
    assert folder_sha256(proxy) != files
    assert load(proxy).loaded_sha256 != loaded


def test_without_conversations_nothing_is_stored_and_the_digest_stays(tmp_path):
    folder = save_tiny(tmp_path / "one", blocks=2)
    save_model(tiny_llama(2), tiny_tokenizer(), tmp_path / "other")
    assert STORED not in json.loads((tmp_path / "other" / SETTINGS).read_text())
    assert load(folder).loaded_sha256 == load(tmp_path / "other").loaded_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"opening": "x" * (MOST_BETWEEN + 1)},
        {"opening": "\U0001f600" * MOST_BETWEEN},  # four tokens each
        {"opening": 1},
        {"opening": {"__type": "AddedToken", "content": "x"}},
        {"tool_to_user": ""},
    ],
)
def test_a_proxy_with_another_format_is_refused_in_one_line(proxy, change):
    stored = json.loads((proxy / SETTINGS).read_text())[STORED]
    edit_json(proxy / SETTINGS, **{STORED: {**stored, **change}})
    with pytest.raises(DataError, match="proxy: its conversation_format") as caught:
        load(proxy)
    assert "\n" not in str(caught.value)


def test_a_new_template_replaces_a_stored_format_and_none_keeps_it(proxy):
    from fedproxy_secure.models.llm import load_tokenizer

    tokenizer = load_tokenizer(proxy)
    before = chat_format(tokenizer)
    tokenizer.chat_template = None
    keep_format(tokenizer)
    assert chat_format(tokenizer) == before is not None
    tokenizer.chat_template = TEMPLATE.replace(";", "!")
    keep_format(tokenizer)
    assert chat_format(tokenizer).end == "!"
    tokenizer.chat_template = "{{ raise_exception('x') }}"
    keep_format(tokenizer)
    assert chat_format(tokenizer) is None


def test_the_llms_digest_knows_its_template(proxy):
    before = llm_sha256(proxy)
    (proxy / "chat_template.jinja").write_text(TEMPLATE + "!")
    assert llm_sha256(proxy) != before
