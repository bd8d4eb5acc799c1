"""Records and tasks as text, before any tokenizer has seen them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedproxy_secure.errors import DataError

Learned = Literal["answer", "text"]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation; `role`: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One question with its possible answers.

    `prompt` ends without a space; every choice begins with the space that joins it to the prompt;
    `label` is the index of the right choice. An instruction record has one choice, the response.
    `learn`: whether training reads the loss of the right choice's tokens, or of all tokens.
    `messages`: the messages of a conversation before the response; `prompt` is then their text for a
    tokenizer without a stored format.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int
    learn: Learned = "answer"
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(self.choices):
            raise DataError(f"label: must be the index of one of {len(self.choices)} choices")
        try:
            for text in (self.prompt, *self.choices, *(m.content for m in self.messages)):
                text.encode()
        except UnicodeEncodeError:  # such as "\ud800" in JSON, which no tokenizer reads
            raise DataError("has half of a surrogate pair; its texts must be whole UTF-8") from None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One client's records: `train` never leaves the client, `test` measures the result.

    `holdout`: training records that were set aside at random; empty unless an evaluation needs them.
    """

    name: str
    train: tuple[Record, ...]
    test: tuple[Record, ...]
    holdout: tuple[Record, ...] = ()

    def constant_right(self) -> tuple[bool, ...]:
        """Return for each test record whether the most frequent answer of training records is right."""
        ((label, _),) = Counter(record.label for record in self.train).most_common(1)
        return tuple(record.label == label for record in self.test)

    def trained_tests(self) -> int:
        """Count the test records that equal a training record, which a model can answer from memory."""
        trained = {replace(record, learn="answer") for record in self.train}
        return sum(replace(record, learn="answer") in trained for record in self.test)


def records_sha256(tasks: Sequence[Task]) -> str:
    """Return the SHA-256 of the records that tasks train and test on, in their order, as hex."""
    digest = hashlib.sha256()
    for task in tasks:
        for part, records in (("train", task.train), ("test", task.test)):
            digest.update(json.dumps([task.name, part, len(records)]).encode())
            for r in records:
                talk = [[[m.role, m.content] for m in r.messages]] if r.messages else []
                digest.update(json.dumps([r.prompt, r.choices, r.label, *talk]).encode())
    return digest.hexdigest()
