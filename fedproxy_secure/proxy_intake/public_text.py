"""What a proxy makes of public text, checked before any record is read.

A client has text in which nothing is private: its own, or what comes with this package (stories of the
embedded world, and sentences about real things; of these the one that the proxy predicts better). There

    silence     a number of a block's input that ordinary tokens leave next to zero refuses the proxy: it is
                what a trap is made of, as an adapter's weights move there for extraordinary tokens alone
    prediction  a proxy that predicts no better than the text's token frequencies was not trained on such
                text. With the client's own text that refuses the proxy; with the package's it is a warning

The package's texts may be in no language that the proxy knows, and an honest proxy that was cut to a half
and not healed predicts them worse than frequencies do (SmolLM2-135M at .25: 9.4 nats, frequencies 6.8). A
client that knows what its proxy should read names a file of such text, UTF-8, in the environment variable
`FEDPROXY_PUBLIC_TEXT`; a maker of traps does not know that file.

Silence is the typical (median) size of a number over the text's tokens, over the size of its block's larger
numbers (the .9 quantile). The least value is .36 on honest proxies of the embedded LLM and .15 on
SmolLM2-135M (`python -m tests.bench.trapped_proxy`); refused below .02.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.errors import DataError, ModelError
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.world.real_texts import real_texts
from fedproxy_secure.world.stories import stories

OWN_TEXT = "FEDPROXY_PUBLIC_TEXT"
LEAST_HEARD = 0.02
LARGER = 0.9  # the quantile of a block's numbers that others are compared with
MOST_TOKENS = 512  # of a text
LEAST_DISTINCT = 16  # different tokens of a text
_BYTES = 2**16  # read of the client's own text
_SEED, _PIECES = 20_000, 40  # of the package's texts
_WINDOW = 128  # tokens
_FREQUENCY = 0.5  # the rest of the frequency model's probability is spread over all tokens
log = logging.getLogger(__name__)


def check_public_text(model: nn.Module, tokenizer: Tokenizer, *, max_tokens: int) -> None:
    """Run a proxy on public text, at most `max_tokens` tokens in one go.

    Raises `ModelError` for a number of a block's input that ordinary tokens leave next to zero, for a proxy
    or tokenizer that fails on the text, and if the client's own text is predicted no better than by token
    frequencies; `DataError` for an own text that cannot be read.
    """
    own = own_text()
    texts = bundled_texts() if own is None else (own,)
    known = min((reading(t, model, tokenizer, max_tokens) for t in texts), key=_surprise)
    if known.distinct < LEAST_DISTINCT:
        raise ModelError(
            f"proxy: its tokenizer makes {known.distinct} different tokens of public text; must be "
            f"{LEAST_DISTINCT} or more: name text that it should know in {OWN_TEXT}"
        )
    if not known.loss < known.frequencies:
        problem = (
            f"proxy: predicts public text at {known.loss:.2f} nats a token; must be below "
            f"{known.frequencies:.2f}, which token frequencies reach"
        )
        if own is not None:
            raise ModelError(f"{problem} ({OWN_TEXT})")
        log.warning("%s; or name text that it should know in %s", problem, OWN_TEXT)
    if not known.quietest >= LEAST_HEARD:
        raise ModelError(
            "proxy: on ordinary text one input coordinate of a block has "
            f"{known.quietest:.2g} of the usual size; must be {LEAST_HEARD:g} or more: a smaller one may "
            "be a trap that only chosen tokens trigger"
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a proxy makes of one text.

    Args:
        distinct: how many different tokens the text has.
        loss: nats a token.
        frequencies: what `frequency_loss` gives for the same text.
        quietest: the least of `heard` over all blocks.
    """

    distinct: int
    loss: float
    frequencies: float
    quietest: float


def _surprise(reading: Reading) -> float:
    return reading.loss - reading.frequencies


def reading(text: str, model: nn.Module, tokenizer: Tokenizer, max_tokens: int) -> Reading:
    """Return what a proxy makes of a text. Raises `ModelError` if it fails on it."""
    try:
        windows = _windows(text, tokenizer, max_tokens)
        loss, quietest = read(model, windows)
    except Exception as error:
        raise ModelError(f"proxy: fails on public text ({type(error).__name__}); must run") from error
    if not math.isfinite(loss):
        raise ModelError("proxy: its outputs on public text are not finite; must be")
    return Reading(
        distinct=len(windows.unique()),
        loss=loss,
        frequencies=frequency_loss(windows, vocabulary=max(tokenizer.get_vocab().values()) + 1),
        quietest=quietest,
    )


@lru_cache(maxsize=1)
def bundled_texts() -> tuple[str, ...]:
    """Return the package's public texts."""
    return tuple("\n".join(islice(source(_SEED), _PIECES)) for source in (stories, real_texts))


def own_text() -> str | None:
    """Return the beginning of the client's own public text; None if it names none.

    Raises `DataError` if it cannot be read.
    """
    name = os.environ.get(OWN_TEXT)
    if not name:
        return None
    try:
        with Path(name).open("rb") as file:
            raw = file.read(_BYTES)
    except OSError as error:
        raise DataError(f"{OWN_TEXT}: cannot be read: {error.strerror}") from error
    return raw.decode("utf-8", errors="ignore")  # the last character may be cut


@torch.no_grad()
def read(model: nn.Module, windows: torch.Tensor) -> tuple[float, float]:
    """Return a model's loss on windows of tokens, int64 [n, tokens], and its quietest number.

    The loss is in nats a token; the quietest number is the least of `heard` over all blocks.
    """
    device = next(model.parameters()).device
    ids = windows.to(device)
    out = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True
    )
    logits = out.logits[:, :-1].float().flatten(end_dim=1)
    loss = float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    # the last is what the head reads, behind all adapters
    quietest = min(float(heard(states).min()) for states in out.hidden_states[:-1])
    return loss, quietest


def heard(states: torch.Tensor) -> torch.Tensor:
    """Return the typical size of each of the h numbers of states [..., h], over that of the larger ones."""
    typical = states.float().flatten(end_dim=-2).abs().median(dim=0).values
    larger = torch.quantile(typical, LARGER)
    return typical / larger if larger > 0 else torch.zeros_like(typical)


def frequency_loss(windows: torch.Tensor, *, vocabulary: int) -> float:
    """Return the loss on windows, nats a token, of a model that knows nothing but frequencies.

    It predicts each token from how often the text's other tokens are that token, half of the time, and
    gives all `vocabulary` tokens the same chance otherwise. The first token of a window is not predicted.
    """
    targets = windows[:, 1:].flatten()
    counts = torch.bincount(targets, minlength=vocabulary).double()
    others = (counts[targets] - 1) / max(1, len(targets) - 1)
    return float(-(_FREQUENCY * others + (1 - _FREQUENCY) / vocabulary).log().mean())


def _windows(text: str, tokenizer: Tokenizer, max_tokens: int) -> torch.Tensor:
    """Return the text's first tokens in windows, int64 [n, tokens]; a short text is one window."""
    ids = list(islice(_ids(text, tokenizer), MOST_TOKENS))
    width = min(_WINDOW, max(2, max_tokens), max(1, len(ids)))
    return torch.tensor(ids[: len(ids) // width * width], dtype=torch.int64).view(-1, width)


def _ids(text: str, tokenizer: Tokenizer) -> Iterator[int]:
    for line in text.splitlines():
        yield from cast(Any, tokenizer)(line + "\n", add_special_tokens=False)["input_ids"]
