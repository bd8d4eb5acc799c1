"""Row spaces of updates: what stands out of rounding, how far an input is from it, and of which parts.

An update is a difference of float32 parameters, so each of its numbers is rounded to their spacing; what is
smaller than that noise's own singular values tells nothing. On a trained model inputs that hardly moved the
loss are lost in it, which is why a client's real update tells less than its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.white_box import WhiteBox

FLOAT32_NOISE = 6e-8  # of the largest singular value: what arithmetic leaves
EDGE = 2.0  # times the largest singular value that rounding alone has


def row_space(
    matrix: np.ndarray, whiten: np.ndarray | None = None, *, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of what stands out of the noise, [rank], and their right vectors, [rank, k]; whitened
    afterwards, or rare directions of the vocabulary would be all noise.

    Args:
        matrix: [rows, k].
        noise: standard deviation of what is random in each of its numbers. That alone has singular values
            of at most `noise (sqrt(rows) + sqrt(k))` (Marchenko and Pastur).
    """
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    edge = EDGE * noise * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1]))
    rank = int((sigma > max(edge, FLOAT32_NOISE * sigma[0])).sum()) if sigma[0] > 0 else 0
    if whiten is None or not rank:
        return sigma[:rank], right[:rank]
    _, sigma, right = np.linalg.svd(sigma[:rank, None] * right[:rank] @ whiten, full_matrices=False)
    return sigma, right


def span_residual(candidates: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distance of unit candidates [n, k] from the span of orthonormal rows [rank, k]; [n] in [0, 1]."""
    inside = np.square(candidates @ right.T).sum(axis=1)
    return np.asarray(np.sqrt(np.clip(1 - inside, 0, None)))


def whitening(inputs: np.ndarray) -> np.ndarray:
    """The symmetric W, [k, k], for which inputs [n, k] times W have second moments of one."""
    values, vectors_ = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    floor = 1e-6 * float(values[-1])
    made: np.ndarray = (vectors_ / np.sqrt(np.maximum(values, floor))) @ vectors_.T
    return made


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """Row spaces of one block's update: matrices [rows, k], and maps from inputs to their rows' space."""

    matrices: tuple[np.ndarray, ...]
    maps: tuple[np.ndarray | None, ...]  # None: the identity
    noise: float = 0.0  # standard deviation of each number: an update is a difference of float32 parameters

    @property
    def capacity(self) -> int:
        """How many inputs the spaces can hold apart."""
        return max(int(min(m.shape)) for m in self.matrices)


def spaces_of(box: WhiteBox, update: np.ndarray, block: int, kind: str) -> Spaces:
    """The parts of an update, made from the box's adapter, whose rows lie in the span of a block's inputs.

    Raises `NotApplicable` if the block is not adapted.
    """
    pieces = box.pieces(update)
    group = box.shared_input(block)
    found: list[np.ndarray] = []
    maps: list[np.ndarray | None] = []
    wanted = {"lora": "lora_A.", "ffa": "lora_B.", "core": "lora_B.default.core."}[kind]
    parameters = dict(box.tuned.named_parameters())
    spacings: list[np.ndarray] = []
    for name, layer in zip(group.names, group.layers, strict=True):
        for parameter, piece in pieces.items():
            if f".{block}.{name}.{wanted}" in parameter:
                found.append(piece)
                maps.append(None if kind == "lora" else white_box.frozen_input_map(layer))
                after = parameters[parameter].detach().numpy() + piece.astype(np.float32)
                spacings.append(np.spacing(np.abs(after)).ravel().astype(np.float64))
    noise = float(np.sqrt(np.square(np.concatenate(spacings)).mean() / 12))
    if kind == "lora":  # one space: all maps see the same inputs
        return Spaces(matrices=(np.concatenate(found),), maps=(None,), noise=noise)
    return Spaces(matrices=tuple(found), maps=tuple(maps), noise=noise)
