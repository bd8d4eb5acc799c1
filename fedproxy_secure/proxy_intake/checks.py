"""Checks that a proxy must pass before a client trains it, whatever the client's records say.

A proxy that fails on some records only would, by the failure, tell its maker what is in them. So lengths,
token ids and weights are checked on the proxy alone, before any record is encoded.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.data.chat.formats import MOST_BEFORE, MOST_BETWEEN, STORED, chat_format
from fedproxy_secure.errors import DataError, ModelError
from fedproxy_secure.models.llm import Tokenizer, blocks_of
from fedproxy_secure.proxy_intake.digest import persistent_buffers
from fedproxy_secure.proxy_intake.files import check_rope
from fedproxy_secure.proxy_intake.tokenizer import MOST_VOCABULARY
from fedproxy_secure.runtime.quoting import quoted

_PIECE = 2**24  # numbers checked in one go
# how configurations name the longest sequence; the first that is there counts
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def check_format(tokenizer: Tokenizer) -> None:
    """Raise `DataError` unless a tokenizer has no stored format of conversations, or one that may be used.

    Each of its strings, read alone, has at most as many tokens as it may have characters, whatever the
    tokenizer's growth: `MOST_BEFORE` once for a conversation, `MOST_BETWEEN` for each message.
    """
    try:
        chat = chat_format(tokenizer)
    except DataError as error:
        raise DataError(f"proxy: its {error}") from error
    if chat is None:
        return
    between = (*chat.between.values(), chat.opening, chat.end)
    texts = [*((t, MOST_BEFORE) for t in chat.before.values()), *((t, MOST_BETWEEN) for t in between)]
    for text, most in texts:
        count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if count > most:
            raise DataError(f"proxy: its {STORED} has a text of {count} tokens; must be at most {most}")


def check_shapes(model: nn.Module, tokenizer: Tokenizer, *, max_tokens: int) -> None:
    """Check that every token of every record of up to `max_tokens` tokens has its place in the model.

    Raises `ModelError` for more tokens than rows of the input embedding or the output head, more rows than
    any vocabulary needs, no padding token, or a longest sequence below `max_tokens`.
    """
    blocks_of(model)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    for what, layer in (
        ("input embedding", cast(Any, model).get_input_embeddings()),
        ("output head", cast(Any, model).get_output_embeddings()),
    ):
        rows = _rows(layer, what)
        if rows > MOST_VOCABULARY:
            raise ModelError(f"proxy: its {what} has {rows} rows; must have at most {MOST_VOCABULARY}")
        if largest >= rows:
            raise ModelError(
                f"proxy: its {what} has {rows} rows; must have {largest + 1}, for its tokenizer's tokens"
            )
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(tokenizer, name)
        if value is None and name != "pad_token_id":
            continue
        if type(value) is not int or not 0 <= value <= largest:
            raise ModelError(f"proxy: its tokenizer's {name} is {value}; must be an id in its vocabulary")
    config = cast(Any, model).config.get_text_config(decoder=True)
    longest = next((v for n in _LENGTHS if isinstance(v := getattr(config, n, None), int)), max_tokens)
    if longest < max_tokens:
        raise ModelError(f"proxy: takes {longest} tokens; must take {max_tokens} (data.max_tokens)")


def check_model(model: nn.Module) -> None:
    """Raise `DataError` for a model, as built, in which one row of a batch changes the outputs of another.

    It looks at the kinds of positions in every module and configuration, and at normalisation over a batch.
    It does not find mixtures of experts with limited room for the tokens of a batch, of which transformers
    5.23 has none among causal LMs. Training under record-level privacy does not rely on this check.
    """
    for module in model.modules():
        kind = vars(module).get("rope_type")
        for one in kind.values() if isinstance(kind, dict) else [kind]:
            check_rope(one)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise DataError("proxy: normalises over a batch; must compute each row independently")


def _rows(layer: Any, what: str) -> int:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise ModelError(f"proxy: has no {what}; must be a causal LM with one")
    return int(weight.shape[0])


def check_finite(model: nn.Module) -> None:
    """Raise `ModelError` for a parameter or saved buffer that is not finite everywhere."""
    for name, tensor in (dict(model.named_parameters()) | persistent_buffers(model)).items():
        if tensor.is_floating_point():
            for piece in tensor.detach().reshape(-1).split(_PIECE):
                if not bool(piece.isfinite().all()):
                    raise ModelError(f"proxy: {quoted(name)} is not finite everywhere; must be")


@torch.no_grad()
def check_runs(model: nn.Module, tokenizer: Tokenizer, *, max_tokens: int) -> None:
    """Run the model once on `max_tokens` tokens from all over its vocabulary, both ends included.

    Raises `ModelError` if it fails, or its outputs are not finite.
    """
    largest = max(tokenizer.get_vocab().values())
    device = next(model.parameters()).device
    ids = torch.linspace(0, largest, max_tokens, dtype=torch.float64).round().long().to(device)[None]
    try:
        logits = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1
        ).logits
    except Exception as error:
        raise ModelError(
            f"proxy: fails on {max_tokens} tokens ({type(error).__name__}); must run (data.max_tokens)"
        ) from error
    if not bool(logits.isfinite().all()):
        raise ModelError(f"proxy: its outputs on {max_tokens} tokens are not finite; must be")
