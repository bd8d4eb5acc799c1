"""Row spaces of updates: their rank above rounding noise, and how far inputs lie from them.

An update is a difference of float32 parameters, so each of its numbers is rounded to the parameters'
spacing. Directions whose singular values are below those of this noise carry no information. On a trained
model, inputs that hardly moved the loss are lost in the noise. This is why a client's real update reveals
less than its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attacks.white_box import WhiteBox
from fedproxy_secure.models.adapters import ADAPTER

FLOAT32_NOISE = 6e-8  # error of the arithmetic, relative to the largest singular value
ROWS = 8192  # inputs of the vocabulary that are processed at once
EDGE = 2.0  # a direction counts if it is above this multiple of the noise's largest singular value


def row_space(
    matrix: np.ndarray, whiten: np.ndarray | None = None, *, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values above the noise, [rank], and their right vectors, [rank, k].

    Whitening comes after the cut; otherwise rare directions of the vocabulary would be all noise.

    Args:
        matrix: [rows, k].
        whiten: [k, k], applied to the right vectors; None leaves them as they are.
        noise: standard deviation of the noise in each number of the matrix. Noise alone has singular values
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
    """Return the distance of unit candidates [n, k] from the span of orthonormal rows [rank, k].

    The distances are float [n] in [0, 1].
    """
    inside = np.square(candidates @ right.T).sum(axis=1)
    return np.asarray(np.sqrt(np.clip(1 - inside, 0, None)))


def whitening(inputs: np.ndarray) -> np.ndarray:
    """Return the symmetric W, [k, k], for which inputs [n, k] times W have second moments of one."""
    moments = np.zeros((inputs.shape[1], inputs.shape[1]))
    for at in range(0, len(inputs), ROWS):
        part = inputs[at : at + ROWS].astype(np.float64)
        moments += part.T @ part
    values, vectors_ = np.linalg.eigh(moments / len(inputs))
    floor = 1e-6 * float(values[-1])
    transform: np.ndarray = (vectors_ / np.sqrt(np.maximum(values, floor))) @ vectors_.T
    return transform


def unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1; rows of zeros stay zero."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """The row spaces of one block's update: matrices [rows, k], and the maps from inputs to their rows."""

    matrices: tuple[np.ndarray, ...]
    maps: tuple[np.ndarray | None, ...]  # None: the identity
    noise: float = 0.0  # standard deviation of each number: an update is a difference of float32 parameters

    @property
    def capacity(self) -> int:
        """The number of inputs that the spaces can hold apart."""
        return max(int(min(m.shape)) for m in self.matrices)


def spaces_of(box: WhiteBox, update: np.ndarray, block: int, kind: str) -> Spaces:
    """Return the parts of an update whose rows lie in the span of a block's inputs.

    The update must have been made from the box's current adapter. Raises `NotApplicable` if the block is
    not adapted.
    """
    pieces = box.pieces(update)
    group = box.shared_input(block)
    matrices: list[np.ndarray] = []
    maps: list[np.ndarray | None] = []
    suffix = {"lora": "lora_A.", "ffa": "lora_B.", "core": "lora_B.default.core."}[kind]
    parameters = dict(box.tuned.named_parameters())
    spacings: list[np.ndarray] = []
    for name, layer in zip(group.names, group.layers, strict=True):
        for parameter, piece in pieces.items():
            if f".{block}.{name}.{suffix}" in parameter:
                matrices.append(piece)
                maps.append(None if kind == "lora" else _frozen_input_map(layer))
                after = parameters[parameter].detach().numpy() + piece.astype(np.float32)
                spacings.append(np.spacing(np.abs(after)).ravel().astype(np.float64))
    noise = float(np.sqrt(np.square(np.concatenate(spacings)).mean() / 12))
    if kind == "lora":  # one space: all maps see the same inputs
        return Spaces(matrices=(np.concatenate(matrices),), maps=(None,), noise=noise)
    return Spaces(matrices=tuple(matrices), maps=tuple(maps), noise=noise)


def _frozen_input_map(layer: Any) -> np.ndarray:
    """Return the A of a PEFT layer, float64 [r, k]."""
    weight: np.ndarray = layer.lora_A[ADAPTER].weight.detach().double().numpy()
    return weight
