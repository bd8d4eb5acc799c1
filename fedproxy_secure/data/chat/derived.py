"""The strings that an LLM's chat template puts around messages, derived from made-up conversations.

Only the LLM's owner runs this module, the only one that runs a template, which is a program that came with
the LLM. Clients get the strings (`data.chat.formats`), and `proxy_intake.model` removes the template.

Guarantees: no template gets a record. For templates that join texts, the result equals that of
`apply_chat_template`, without spaces at both ends of each message and at the end of the conversation;
today's date, which some templates write, is a fixed one. Special treatment of particular texts is lost. Not
guaranteed: that a template terminates; that Jinja's sandbox, in which transformers runs it, is secure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedproxy_secure.data.chat.formats import STORED, ChatFormat, format_of
from fedproxy_secure.data.records import Message
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer

MOST_TEMPLATE = 2**16  # characters
# replaces the function that transformers offers templates for today's date
_FIXED_DATE = "{%- macro strftime_now(form) -%}1 January 2025{%- endmacro -%}"
_ROUNDS = 3  # of made-up conversations


def keep_format(tokenizer: Tokenizer) -> None:
    """Store the format of a tokenizer's chat template with it, or nothing if that cannot be derived.

    Without a template, a stored format stays.
    """
    if getattr(tokenizer, "chat_template", None):
        tokenizer.init_kwargs.pop(STORED, None)
        chat = derived_format(tokenizer)
        if chat is not None:
            tokenizer.init_kwargs[STORED] = chat.stored()


def derived_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """Return the format of a tokenizer's chat template.

    The result is None if there is no template, or it fails on made-up conversations, does more than join
    texts, writes the same conversation in two ways, or puts too long texts around messages.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template or len(str(template)) > MOST_TEMPLATE:
        return None
    alone = _texts_around(tokenizer, ("user", "assistant") * 2)
    if alone is None:
        return None
    before, to_assistant, to_user, opening, end = alone
    chat = ChatFormat(
        before={"user": before},
        between={("user", "assistant"): to_assistant, ("assistant", "user"): to_user},
        opening=opening,
        end=end.rstrip(),
    )
    if not _fits(chat) or not _agrees(tokenizer, chat, ()):
        return None
    system_parts = _texts_around(tokenizer, ("system", *("user", "assistant") * 2))
    if system_parts is None:
        return chat
    extended = ChatFormat(
        before={**chat.before, "system": system_parts[0]},
        between={**chat.between, ("system", "user"): system_parts[1]},
        opening=opening,
        end=chat.end,
    )
    return extended if _fits(extended) and _agrees(tokenizer, extended, ("system",)) else chat


def _fits(chat: ChatFormat) -> bool:
    try:
        format_of(chat.stored())
    except DataError:
        return False
    return True


def _agrees(tokenizer: Tokenizer, chat: ChatFormat, first: tuple[str, ...]) -> bool:
    """Return whether a format writes other made-up conversations as the template does."""
    for rounds in range(1, _ROUNDS + 1):
        messages = _made_up((*first, *("user", "assistant") * rounds), f"Line {rounds}\nof a Talk – No. ")
        *before, response = messages
        prompt, reply = chat.pieces(before, response.content)
        written = _rendered(tokenizer, messages)
        if written is None or written.rstrip() != "".join(p.text for p in (*prompt, *reply)):
            return False
    return True


def _texts_around(tokenizer: Tokenizer, roles: Sequence[str]) -> list[str] | None:
    """Return the template's texts before, between and after messages of these roles; None if it fails."""
    messages = _made_up(roles, "zqx")
    remaining, around = _rendered(tokenizer, messages), list[str]()
    if remaining is None:
        return None
    for message in messages:
        if remaining.count(message.content) != 1:
            return None
        part, _, remaining = remaining.partition(message.content)
        around.append(part)
    return [*around, remaining]


def _made_up(roles: Sequence[str], words: str) -> list[Message]:
    return [Message(role=role, content=f"{words}{index}w") for index, role in enumerate(roles)]


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str | None:
    """Return a made-up conversation as the template writes it; None if it fails or two results differ."""
    conversation: list[Any] = [{"role": m.role, "content": m.content} for m in messages]
    try:
        first, second = (
            tokenizer.apply_chat_template(
                conversation,
                chat_template=_FIXED_DATE + tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=False,
            )
            for _ in range(2)
        )
    except Exception:  # a template may raise anything
        return None
    return first if isinstance(first, str) and first == second else None
