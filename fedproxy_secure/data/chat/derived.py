"""The strings that an LLM's chat template puts around messages, found out from made-up conversations.

For the LLM's owner alone: this is the only module that runs a template, a program that came with her LLM.
Clients get the strings (`data.chat.formats`), and `proxy_intake.model` takes the template away.

Guarantees: no template is shown a record. For templates that join texts, what is written is what
`apply_chat_template` gives, without spaces at both ends of each message and at the end of all; today's
date, which some write, is a fixed one. What a template would do to some texts alone is not done.
Not guaranteed: that a template ends at all; that Jinja's sandbox, in which transformers runs it, holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedproxy_secure.data.chat.formats import STORED, ChatFormat, format_of
from fedproxy_secure.data.records import Message
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer

MOST_TEMPLATE = 2**16  # characters
# takes the place of what transformers offers templates for today's date
_FIXED_DATE = "{%- macro strftime_now(form) -%}1 January 2025{%- endmacro -%}"
_ROUNDS = 3  # of made-up conversations


def keep_format(tokenizer: Tokenizer) -> None:
    """Store with a tokenizer how its chat template writes conversations, or nothing if it cannot be used.

    Without a template, what is stored already stays.
    """
    if getattr(tokenizer, "chat_template", None):
        tokenizer.init_kwargs.pop(STORED, None)
        found = derived_format(tokenizer)
        if found is not None:
            tokenizer.init_kwargs[STORED] = found.stored()


def derived_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """Return how a tokenizer's chat template writes conversations.

    None if there is no template, or it fails on made-up conversations, does more than join texts, writes
    the same conversation in two ways, or puts longer texts around messages than it may.
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
    try:
        format_of(found.stored())
    except DataError:
        return False
    return True


def _agrees(tokenizer: Tokenizer, found: ChatFormat, first: tuple[str, ...]) -> bool:
    """Return whether other made-up conversations are written as the template writes them."""
    for rounds in range(1, _ROUNDS + 1):
        messages = _made_up((*first, *("user", "assistant") * rounds), f"Line {rounds}\nof a Talk – No. ")
        *before, response = messages
        prompt, ending = found.pieces(before, response.content)
        if _rendered(tokenizer, messages).rstrip() != "".join(p.text for p in (*prompt, *ending)):
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
    """Return a made-up conversation as the template writes it; empty if it fails or does not repeat it."""
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
    except Exception:  # whatever a template raises
        return ""
    return first if isinstance(first, str) and first == second else ""
