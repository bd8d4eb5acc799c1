"""Rows of tokens joined end to end, and the place of each token in padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that are read once, and their continuations, which do not see each other."""

    trunk: Sequence[int]
    branches: Sequence[Sequence[int]] = ()

    @property
    def tokens(self) -> int:
        """The number of tokens, trunk and branches together."""
        return len(self.trunk) + sum(len(b) for b in self.branches)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows in one sequence of tokens, and the place of each token in padded rows.

    Args:
        ids: int64 [1, tokens]; row after row, each with its trunk and then its branches.
        positions: int64 [1, tokens]; the position of a token in its own sequence, from 0.
        starts: the index of each row's first token.
        shape: the padded rows' number and length.
        padded: int64 [rows * longest]; the token at each place of the padded rows, token 0 for padding.
        places: int64 [tokens]; the place of each token in the padded rows, flattened.
        visible: bool [rows, longest, longest]: whether a token sees another; None if every token sees all
            earlier ones of its row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: tuple[int, ...]
    shape: tuple[int, int]
    padded: torch.Tensor
    places: torch.Tensor
    visible: torch.Tensor | None


def pack_rows(rows: Sequence[Row], device: torch.device | str = "cpu") -> Pack:
    """Return rows as one sequence of tokens on `device`."""
    lengths = [row.tokens for row in rows]
    longest = max(lengths)
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    padded = torch.zeros((len(rows), longest), dtype=torch.int64)
    places = torch.cat([torch.arange(n) + r * longest for r, n in enumerate(lengths)])
    for r, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        padded[r, :length] = torch.arange(start, start + length)
    return Pack(
        ids=torch.tensor([token for row in rows for part in (row.trunk, *row.branches) for token in part])[
            None
        ].to(device),
        positions=torch.cat([_positions(row) for row in rows])[None].to(device),
        starts=tuple(starts),
        shape=(len(rows), longest),
        padded=padded.flatten().to(device),
        places=places.to(device),
        visible=_visible(rows, longest, device),
    )


def _positions(row: Row) -> torch.Tensor:
    trunk = len(row.trunk)
    return torch.cat(
        [torch.arange(trunk), *(torch.arange(trunk, trunk + len(branch)) for branch in row.branches)]
    )


def _visible(rows: Sequence[Row], longest: int, device: torch.device | str) -> torch.Tensor | None:
    """Return which token of a row sees which, or None if no row has more than one branch."""
    if all(len(row.branches) < 2 for row in rows):
        return None
    part = torch.full((len(rows), longest), -1)  # 0: the trunk, or padding behind it
    for r, row in enumerate(rows):
        sizes = [len(row.trunk), *(len(b) for b in row.branches)]
        part[r, : sum(sizes)] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    keys_part, queries_part = part[:, None, :], part[:, :, None]
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    return (earlier & ((keys_part == queries_part) | (keys_part == 0))).to(device)


def additive_mask(pack: Pack, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask to add to scores, 0 if a token is seen, else -inf: [(rows,) longest, longest]."""
    visible = pack.visible
    if visible is None:
        visible = torch.ones(pack.shape[1], pack.shape[1], dtype=torch.bool).tril()
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
