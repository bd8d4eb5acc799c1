"""Conversation formats: the strings around messages, stored as data with the tokenizer.

An LLM's chat template is a program. Only the LLM's owner runs it, once (`data.chat.derived`). The texts
that it puts before, between and after messages are stored in `tokenizer_config.json` under
`conversation_format`, and records are written by joining texts.

    chat = chat_format(tokenizer)             # None: no stored format; conversations are plain text
    prompt, response = chat.pieces(messages, response)

Guarantees: this module runs no template. A stored format has only strings, of bounded length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedproxy_secure.data.records import Message
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer

STORED = "conversation_format"  # in tokenizer_config.json
MOST_BEFORE = 4096  # characters before the first message, with a template's own system message
MOST_BETWEEN = 256  # characters between two messages
MOST_END = 64  # characters after the response, whose loss is read

_BEFORE = {"user": "before_user", "system": "before_system"}
_BETWEEN = {
    ("user", "assistant"): "user_to_assistant",
    ("assistant", "user"): "assistant_to_user",
    ("system", "user"): "system_to_user",
}
_OPENING, _END = "opening", "end"
_MOST = {
    **dict.fromkeys(_BEFORE.values(), MOST_BEFORE),
    **dict.fromkeys((*_BETWEEN.values(), _OPENING), MOST_BETWEEN),
    _END: MOST_END,
}
_OF_SYSTEM = {"before_system", "system_to_user"}


class Piece(NamedTuple):
    """A part of a conversation's text: a message's content, or a text of the format around messages."""

    text: str
    content: bool


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The texts around the messages of a conversation.

    Args:
        before: the text before the first message, by its role. Without `system` there is no such role.
        between: the text between two messages, by their roles.
        opening: the text between the last user message and the response.
        end: the text after the response; may be empty.
    """

    before: Mapping[str, str]
    between: Mapping[tuple[str, str], str]
    opening: str
    end: str

    def pieces(self, messages: Sequence[Message], response: str) -> tuple[list[Piece], list[Piece]]:
        """Return prompt and response in pieces, the response with the end of its turn.

        If the format has no system role, a system message is put before the first user message.
        """
        if messages[0].role not in self.before:
            system, user, *rest = messages
            messages = [Message(role="user", content=f"{system.content}\n\n{user.content}"), *rest]
        prompt = [Piece(self.before[messages[0].role], content=False)]
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            after = self.between[message.role, following.role] if following else self.opening
            prompt += [Piece(message.content, content=True), Piece(after, content=False)]
        return prompt, [Piece(response, content=True), Piece(self.end, content=False)]

    def stored(self) -> dict[str, str]:
        """Return the format as stored in `tokenizer_config.json`."""
        return {
            **{_BEFORE[role]: text for role, text in self.before.items()},
            **{_BETWEEN[roles]: text for roles, text in self.between.items()},
            _OPENING: self.opening,
            _END: self.end,
        }


def chat_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """Return the format that is stored with a tokenizer; None if there is none.

    Raises `DataError` for a value that is no format.
    """
    raw = stored_value(tokenizer)
    return None if raw is None else format_of(raw)


def stored_value(tokenizer: Tokenizer) -> Any:
    """Return the unchecked value that is stored with a tokenizer as its format; None if there is none."""
    return getattr(tokenizer, "init_kwargs", {}).get(STORED)


def format_of(raw: object) -> ChatFormat:
    """Return the format that a stored value describes.

    Raises `DataError` unless it has all strings, with all or none of those of the role `system`, and no
    others, each within its maximum length.
    """
    if not isinstance(raw, dict) or set(raw) not in (set(_MOST), set(_MOST) - _OF_SYSTEM):
        raise DataError(f"{STORED}: must be an object with {', '.join(_MOST)}")
    for name, limit in _MOST.items():
        text = raw.get(name, "")
        if not isinstance(text, str) or len(text) > limit:
            raise DataError(f"{STORED}: {name} must be a text of at most {limit} characters")
    return ChatFormat(
        before={role: raw[name] for role, name in _BEFORE.items() if name in raw},
        between={roles: raw[name] for roles, name in _BETWEEN.items() if name in raw},
        opening=raw[_OPENING],
        end=raw[_END],
    )
