"""The tokens of conversations, whose messages never become control tokens.

A message may spell out a special token, such as `<|im_end|>`, and so end its turn and forge another one.
Conversations are tokenised as one text, as in training an LLM with its template. If a message then has a
control token, that conversation is tokenised in pieces, and messages by a copy of the tokenizer that reads
special tokens as plain text.

Guarantees: no control token comes from a message, in whole or in part. Control tokens are special tokens
and other added tokens in the format. The token for unknown text counts as a control token if it is also the
start or end token, or occurs in the format. Otherwise it may come from a message's unknown text, where it
begins and ends nothing. Not guaranteed: that the model does not take a message's text, such as `User:`, for
a heading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fedproxy_secure.data.chat.formats import ChatFormat, Piece
from fedproxy_secure.data.records import Message
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer

_readers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # tokenizer -> its backend, for messages


def conversations_ids(
    talks: Sequence[tuple[Sequence[Message], str]], chat: ChatFormat, tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each conversation's prompt, and of its response with the end of its turn.

    A token with characters of both belongs to the response.

    Raises `DataError` for a message in which the tokenizer cannot avoid control tokens.
    """
    control = _control(tokenizer, (*chat.before.values(), *chat.between.values(), chat.opening, chat.end))
    conversations = [chat.pieces(messages, response) for messages, response in talks]
    texts = ["".join(piece.text for piece in (*prompt, *reply)) for prompt, reply in conversations]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    pairs = []
    for (prompt, reply), ids, places in zip(
        conversations, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        pieces = [*prompt, *reply]
        used = [place for place, token in zip(places, ids, strict=True) if token in control]
        if _names_unknown(pieces, tokenizer) or _overlap(used, list(_contents(pieces))):
            pairs.append((_in_pieces(prompt, control, tokenizer), _in_pieces(reply, control, tokenizer)))
            continue
        length = sum(len(piece.text) for piece in prompt)
        cut = sum(end <= length for _, end in places)
        pairs.append((ids[:cut], ids[cut:]))
    return pairs


def without_control(text: str, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens `ids` of a text, or others if it spells out special tokens.

    Raises `DataError` for a text in which the tokenizer cannot avoid control tokens.
    """
    control, pieces = _control(tokenizer, ()), [Piece(text, content=True)]
    if control.isdisjoint(ids) and not _names_unknown(pieces, tokenizer):
        return ids
    return _in_pieces(pieces, control, tokenizer)


def _control(tokenizer: Tokenizer, texts: Sequence[str]) -> set[int]:
    """Return the special tokens, and the added tokens in the format's texts.

    The token for unknown text is left out only if it has no other use.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if texts:
        encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        of_format = {i for ids in encoded for i in ids}
        special |= of_format & added.keys()
        used |= of_format
    return special - ({tokenizer.unk_token_id} - used)


def _names_unknown(pieces: Sequence[Piece], tokenizer: Tokenizer) -> bool:
    """Return whether a message spells out the token for unknown text."""
    name = tokenizer.unk_token
    return bool(name) and any(piece.content and str(name) in piece.text for piece in pieces)


def _contents(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each message in the text of all pieces."""
    place = 0
    for piece in pieces:
        if piece.content:
            yield place, place + len(piece.text)
        place += len(piece.text)


def _overlap(used: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> bool:
    """Return whether any character range in `used` overlaps one in `spans`; both are sorted."""
    remaining = iter(spans)
    span = next(remaining, None)
    for start, end in used:
        while span is not None and span[1] <= start:
            span = next(remaining, None)
        if span is not None and span[0] < end:
            return True
    return False


def _in_pieces(pieces: Sequence[Piece], control: set[int], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of pieces, tokenised one by one, without control tokens from messages."""
    ids: list[int] = []
    for text, content in pieces:
        if not content:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            continue
        message_ids: list[int] = _reader(tokenizer).encode(text, add_special_tokens=False).ids
        if not control.isdisjoint(message_ids):
            raise DataError(
                "a message spells out a control token that this tokenizer cannot read as text, "
                "or has unknown text that it reads as a control token; must have neither"
            )
        ids += message_ids
    return ids


def _reader(tokenizer: Tokenizer) -> Any:
    """Return a copy of a tokenizer's backend that reads special tokens as text.

    The setting belongs to the backend, which threads share, so a copy is needed.
    """
    if tokenizer not in _readers:
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        _readers[tokenizer] = backend
    return _readers[tokenizer]
