"""How a tokenizer writes conversations down, found out from its chat template without showing it a record.

A chat template is a program that comes with the LLM and, at a client, with the proxy from the server.
Shown a record, it could fail, loop or write something else for texts of its maker's choice, and tell the
maker about the record by that. So it is run on made-up conversations alone. What it puts before, between
and after messages is taken from there, and records are written with it by joining texts.

    chat = chat_format(tokenizer)             # None: no template, or one that does more than join texts
    prompt, response = chat.written(messages, response)

Guarantees: what a template does cannot depend on a record. For templates that join texts, what is written
is what `apply_chat_template` gives, without spaces at both ends of each message and at the end of all;
today's date, which some write, is a fixed one. What a template would do to some texts alone is not done.
Not guaranteed: that a template ends at all; that Jinja's sandbox, in which transformers runs it, holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedproxy_secure.data.records import Message
from fedproxy_secure.models.llm import Tokenizer

MOST_TEMPLATE = 2**16  # characters
MOST_BETWEEN = (
    4096  # characters before or between messages; a system message of the template's own is there
)
MOST_END = 64  # characters after the response, whose loss is read
# takes the place of what transformers offers templates for today's date
_FIXED_DATE = "{%- macro strftime_now(form) -%}1 January 2025{%- endmacro -%}"
_ROUNDS = 3  # of made-up conversations


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """What stands around the messages of a conversation.

    Args:
        before: before the first message, by its role. Without `system` the template knows no such role.
        between: between two messages, by their roles.
        opening: between the last user message and the response.
        end: after the response; may be empty.
    """

    before: Mapping[str, str]
    between: Mapping[tuple[str, str], str]
    opening: str
    end: str

    def written(self, messages: Sequence[Message], response: str) -> tuple[str, str]:
        """Return prompt and response as text, the response with what ends its turn.

        A system message that the template has no role for is put before the first user message.
        """
        if messages[0].role not in self.before:
            system, user, *rest = messages
            messages = [Message(role="user", content=f"{system.content}\n\n{user.content}"), *rest]
        parts = [self.before[messages[0].role]]
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            role = message.role
            parts += [message.content, self.between[role, following.role] if following else self.opening]
        return "".join(parts), response + self.end


def chat_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """Return how a tokenizer's chat template writes conversations.

    None if there is no template, or it fails on made-up conversations, does more than join texts, or puts
    longer texts around messages than it may.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template or len(str(template)) > MOST_TEMPLATE:
        return None
    alone = _found(tokenizer, ("user", "assistant") * 2)
    if alone is None:
        return None
    before, to_assistant, to_user, opening, end = alone
    found = ChatFormat(
        before={"user": before},
        between={("user", "assistant"): to_assistant, ("assistant", "user"): to_user},
        opening=opening,
        end=end.rstrip(),
    )
    if not _fits(found) or not _agrees(tokenizer, found, ()):
        return None
    told = _found(tokenizer, ("system", *("user", "assistant") * 2))
    if told is None:
        return found
    more = ChatFormat(
        before={**found.before, "system": told[0]},
        between={**found.between, ("system", "user"): told[1]},
        opening=opening,
        end=found.end,
    )
    return more if _fits(more) and _agrees(tokenizer, more, ("system",)) else found


def _fits(found: ChatFormat) -> bool:
    texts = (*found.before.values(), *found.between.values(), found.opening)
    return max(map(len, texts)) <= MOST_BETWEEN and len(found.end) <= MOST_END


def _agrees(tokenizer: Tokenizer, found: ChatFormat, first: tuple[str, ...]) -> bool:
    """Return whether other made-up conversations are written as the template writes them."""
    for rounds in range(1, _ROUNDS + 1):
        messages = _made_up((*first, *("user", "assistant") * rounds), f"Line {rounds}\nof a Talk – No. ")
        *before, response = messages
        if _rendered(tokenizer, messages).rstrip() != "".join(found.written(before, response.content)):
            return False
    return True


def _found(tokenizer: Tokenizer, roles: Sequence[str]) -> list[str] | None:
    """Return what the template puts before, between and after messages of these roles; None if it fails."""
    messages = _made_up(roles, "zqx")
    left, around = _rendered(tokenizer, messages), list[str]()
    for message in messages:
        if left.count(message.content) != 1:
            return None
        part, _, left = left.partition(message.content)
        around.append(part)
    return [*around, left]


def _made_up(roles: Sequence[str], words: str) -> list[Message]:
    return [Message(role=role, content=f"{words}{index}w") for index, role in enumerate(roles)]


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Return a made-up conversation as the template writes it; empty if it fails."""
    conversation: list[Any] = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            chat_template=_FIXED_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=False,
        )
    except Exception:  # whatever a template raises
        return ""
    return text if isinstance(text, str) else ""
