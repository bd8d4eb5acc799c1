"""Conversations, and tokenizers with a chat template."""

from fedproxy_secure.data.chat.derived import keep_format
from fedproxy_secure.data.chat.messages import chat_record
from fedproxy_secure.data.encode import encode_records
from tests.support.tiny import tiny_tokenizer

SECRET = "Jane"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|e|>"], special_tokens=True)
    tokenizer.chat_template = template
    keep_format(tokenizer)
    return tokenizer


def talk(*contents, system=""):
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def encoded(messages, tokenizer, **changes):
    (item,) = encode_records([chat_record(messages)], tokenizer, max_tokens=1000, **changes).items
    return item
