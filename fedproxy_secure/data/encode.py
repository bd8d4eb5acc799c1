"""Token batches of records, and the loss that training minimises.

A prompt begins with the tokenizer's start token (`bos_token_id`), if it has one, also where the tokenizer
itself adds none, as that of `smollm2`. (A stored chat format writes conversations its own way.) Training
and scoring both do so: a model is tested on prompts as it was trained on. Windows of public text
(`data.evaluate.text_windows`) lack it. lm-eval at its defaults sends the token only where the tokenizer
adds it, and else has other numbers than this project.

Prompt and response are tokenised each alone, also in both. A tokenizer that writes a `▁` before every
text (the normaliser `Prepend`, as Llama 2's) then makes one token more of the response ` good` than
lm-eval, which tokenises prompt and response together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedproxy_secure.data.chat.formats import chat_format
from fedproxy_secure.data.chat.tokens import conversations_ids, without_control
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError, Stopped
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.models.packing.packed import can_pack, packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows
from fedproxy_secure.models.passes import checkpointed_blocks

# errors that no input causes; Rust libraries panic on an input with other errors that are no `Exception`
ENDS_THE_PROCESS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, Stopped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One record's tokens: prompt, right choice, end token.

    `response_start`: index of the first token whose loss is read: that of the choice, or 1 if the whole
    text is learned.
    """

    ids: tuple[int, ...]
    response_start: int


@dataclass(frozen=True, kw_only=True)
class EncodedSet:
    """Encoded records in order; `truncated` of them had their prompt cut."""

    items: tuple[Encoded, ...]
    truncated: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded tokens.

    `ids`, `attention`: int64 [b, L]. `response`: float32 [b, L-1], 1 if position j predicts a response
    token (`ids[:, j + 1]`).
    """

    ids: torch.Tensor
    attention: torch.Tensor
    response: torch.Tensor


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return a prompt's tokens, after the tokenizer's start token also if it adds none itself."""
    return many_prompt_ids([prompt], tokenizer)[0]


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def many_text_ids(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return `text_ids` of each text, from one call for all distinct texts, which is much faster."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    encoded: list[list[int]] = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    ids = dict(zip(distinct, encoded, strict=True))
    return [ids[text] for text in texts]


def many_prompt_ids(prompts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return `prompt_ids` of each prompt, from one call."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + ids for ids in many_text_ids(prompts, tokenizer)]


def cut_prompt(prompt: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    """Return the last `room` tokens of a prompt; a start token stays first."""
    if len(prompt) <= room:
        return prompt
    start = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
    return start + prompt[len(prompt) - (room - len(start)) :]


def encode_records(records: Sequence[Record], tokenizer: Tokenizer, *, max_tokens: int) -> EncodedSet:
    """Tokenise records for training; a long prompt loses its beginning, but a response is never cut.

    Conversations are written in the format stored with the tokenizer (`data.chat.formats`), if there is
    one; no template is run. Their messages never become control tokens (`data.chat.tokens`).

    Raises `DataError` for a response that leaves no room for at least one prompt token, for a prompt
    without tokens if only the response is learned, and for a message that cannot avoid control tokens.
    """
    items, truncated = [], 0
    for index, (prompt, response) in enumerate(_prompts_and_responses(records, tokenizer)):
        room = max_tokens - len(response)
        if not response:
            raise DataError(f"record {index}: its response has 0 tokens; must have >= 1")
        if room < 2:
            raise DataError(
                f"record {index}: its response has {len(response)} tokens; "
                f"must be <= {max_tokens - 2} (data.max_tokens - 2)"
            )
        if not prompt and (records[index].learn != "text" or len(response) < 2):
            raise DataError(f"record {index}: its prompt has 0 tokens; must have >= 1")
        cut = cut_prompt(prompt, room, tokenizer)
        truncated += len(cut) < len(prompt)
        # the first token cannot be predicted, because nothing precedes it
        start = 1 if records[index].learn == "text" else len(cut)
        items.append(Encoded(ids=(*cut, *response), response_start=start))
    return EncodedSet(items=tuple(items), truncated=truncated)


def _prompts_and_responses(
    records: Sequence[Record], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each record's prompt, and of its response with its end token."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    chat = chat_format(tokenizer)  # the same for all records
    plain = [r for r in records if chat is None or not r.messages]
    prompts = many_prompt_ids([r.prompt for r in plain], tokenizer)
    responses = many_text_ids([r.choices[r.label] for r in plain], tokenizer)
    pairs = []
    for record, prompt, response in zip(plain, prompts, responses, strict=True):
        if record.messages:
            start = [] if tokenizer.bos_token_id is None else prompt[:1]
            prompt = start + without_control(record.prompt, prompt[len(start) :], tokenizer)
            response = without_control(record.choices[record.label], response, tokenizer)
        pairs.append((prompt, response + end))
    if chat is None or len(plain) == len(records):
        return pairs
    talks = [(r.messages, r.choices[r.label].strip()) for r in records if r.messages]
    closing = [] if chat.end else end
    conversations = iter([(p, r + closing) for p, r in conversations_ids(talks, chat, tokenizer)])
    plain_pairs = iter(pairs)
    return [next(conversations if r.messages else plain_pairs) for r in records]


def encode_each(records: Sequence[Record], tokenizer: Tokenizer, *, max_tokens: int) -> EncodedSet:
    """Encode records as `encode_records` does, without errors that reveal a record's content.

    A record that cannot be encoded for any reason becomes an item without tokens, because the tokenizer's
    author can make it fail for chosen texts. Not covered: native code that ends the process; tokenizers
    that grow a text without bound are refused before (`check_tokenizer`).
    """
    try:
        return encode_records(records, tokenizer, max_tokens=max_tokens)
    except ENDS_THE_PROCESS:
        raise
    except BaseException:  # noqa: S110 - no error may reveal a record; each is encoded alone below
        pass
    items: list[Encoded] = []
    truncated = 0
    for record in records:
        try:
            alone = encode_records([record], tokenizer, max_tokens=max_tokens)
        except ENDS_THE_PROCESS:
            raise
        except BaseException:
            alone = EncodedSet(items=(Encoded(ids=(), response_start=0),), truncated=0)
        items.extend(alone.items)
        truncated += alone.truncated
    return EncodedSet(items=tuple(items), truncated=truncated)


def training_batch(items: Sequence[Encoded], *, pad_id: int, device: torch.device | str) -> Batch:
    """Return items as one batch, padded on the right to the longest."""
    length = max(len(item.ids) for item in items)
    ids = torch.full((len(items), length), pad_id, dtype=torch.int64)
    attention = torch.zeros((len(items), length), dtype=torch.int64)
    response = torch.zeros((len(items), length - 1), dtype=torch.float32)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        attention[row, : len(item.ids)] = 1
        response[row, item.response_start - 1 : len(item.ids) - 1] = 1
    return Batch(ids=ids.to(device), attention=attention.to(device), response=response.to(device))


def batch_loss(model: nn.Module, batch: Batch, *, checkpointing: bool = False) -> torch.Tensor:
    """Return the mean over records of the mean loss over their response tokens, in nats.

    The loss itself only adds records up. Whether the rows of a batch are independent depends on the model:
    in most they are, up to rounding; some scale positions with the longest row. If a record must not affect
    another's gradient, pass a single record.

    The LM head runs only at positions that some record of the batch needs, because with a large vocabulary
    it takes more memory than everything else. Cross entropy is computed in float32. With `checkpointing` a
    backward pass runs the blocks once more (`checkpointed_blocks`).
    """
    positions = batch.response.any(dim=0).nonzero().flatten()
    with checkpointed_blocks(model, checkpointing):
        logits = model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            use_cache=False,
            logits_to_keep=positions,
        ).logits
    response, targets = batch.response[:, positions], batch.ids[:, positions + 1]
    selected = response > 0
    nll = nn.functional.cross_entropy(logits[selected].float(), targets[selected], reduction="none")
    share = response / response.sum(dim=1, keepdim=True) / len(batch.ids)
    return (nll * share[selected]).sum()


def records_loss(
    model: nn.Module, items: Sequence[Encoded], *, pad_id: int, checkpointing: bool = False
) -> torch.Tensor:
    """Return the `batch_loss` of these records, without padding if the model allows packing.

    The result is equal up to rounding. If a record must not affect another's gradient, use `batch_loss` on
    a single record.
    """
    device = next(model.parameters()).device
    if not can_pack(model):
        batch = training_batch(items, pad_id=pad_id, device=device)
        return batch_loss(model, batch, checkpointing=checkpointing)
    pack = pack_rows([Row(trunk=item.ids) for item in items], device)
    keep: list[int] = []
    share: list[float] = []
    for item, start in zip(items, pack.starts, strict=True):
        tokens = len(item.ids) - item.response_start
        keep += range(start + item.response_start - 1, start + len(item.ids) - 1)
        share += [1 / tokens / len(items)] * tokens
    positions = torch.tensor(keep, device=device)
    logits = packed_logits(model, pack, positions, checkpointing=checkpointing)
    nll = nn.functional.cross_entropy(logits.float(), pack.ids[0, positions + 1], reduction="none")
    return (nll * torch.tensor(share, device=device)).sum()
