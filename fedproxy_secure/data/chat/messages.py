"""Conversations in rows: the column `messages`, checked, and as text for tokenizers without a format.

A conversation has at most one system message, then user and assistant messages by turns. It ends with an
assistant message, the response.

Guarantees: an error names the message's number, the type of a value, and the rule; it never quotes a
message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedproxy_secure.data.records import Message, Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.untrusted import parse_json

ROLES = ("system", "user", "assistant")
_HEADINGS = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def chat_record(column: Any) -> Record:
    """Return the record of a conversation: the last message is the response, the others are the prompt.

    `column`: a list of objects with `role` and `content`, or such a list as JSON text, as in CSV cells.

    Raises `DataError` for anything else than a conversation.
    """
    messages = [_message(raw, index) for index, raw in enumerate(_listed(column))]
    first = 1 if messages and messages[0].role == "system" else 0
    for index, message in enumerate(messages[first:], first):
        turn = ROLES[1 + (index - first) % 2]
        if message.role != turn:
            raise DataError(
                f"messages: number {index} is of another role than {turn}; must be user and assistant by "
                "turns, after one system message or none"
            )
    if not messages or messages[-1].role != "assistant":
        raise DataError(
            f"messages: has {len(messages)}; must end with the assistant's, which is the response"
        )
    *before, response = messages
    return Record(
        prompt=plain_prompt(before), choices=(f" {response.content}",), label=0, messages=tuple(before)
    )


def plain_prompt(messages: Sequence[Message]) -> str:
    r"""Return the messages before a response as text, for tokenizers without a stored format.

    >>> plain_prompt([Message(role="user", content="Which day?")])
    'User: Which day?\nAssistant:'
    """
    lines = [f"{_HEADINGS[m.role]} {m.content}" for m in messages]
    return "\n".join([*lines, _HEADINGS["assistant"]])


def _listed(column: Any) -> list[Any]:
    if isinstance(column, str):
        try:
            column = parse_json(column)
        except ValueError:
            raise DataError("messages: is a text that is not JSON; must be a list of messages") from None
    if not isinstance(column, list):
        raise DataError(f"messages: is of type {type(column).__name__}; must be a list of messages")
    return column


def _message(raw: Any, index: int) -> Message:
    place = f"messages: number {index}"
    if not isinstance(raw, dict) or not {"role", "content"} <= set(raw):
        raise DataError(f"{place} must be an object with role and content")
    role, content = raw["role"], raw["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{place}: its role must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise DataError(
            f"{place}: its content is of type {type(content).__name__}; must be a text, not empty"
        )
    return Message(role=role, content=content.strip())
