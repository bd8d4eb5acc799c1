"""The traps' columns in an adapter: the first adapter to broadcast, and what to read from updates."""

from __future__ import annotations

import numpy as np

from attacks.base import NotApplicable
from attacks.integrity.proxy_traps import Trap
from attacks.white_box import WhiteBox

START = 0.1  # standard deviation of the adapter that is broadcast
NEURONS = "mlp.down_proj"  # the map that reads an MLP's neurons


def columns(box: WhiteBox, vector: np.ndarray, one: Trap, traps: int) -> np.ndarray:
    """Return the length of the movement in each of the first `traps` columns of A, float64 [traps].

    Squares are summed over the maps that the trap is read from.
    """
    pieces = box.pieces(vector)
    squares = sum(np.square(pieces[name][:, :traps]).sum(axis=0) for name in maps_of(box, one))
    return np.sqrt(np.asarray(squares, dtype=np.float64))


def first_adapter(box: WhiteBox, one: Trap, rng: np.random.Generator) -> np.ndarray:
    """Return the adapter that the server broadcasts, float32 [d], drawn with deviation `START`.

    For traps in neurons everything but the B behind them is zero: other adapters would change what neurons
    read.
    """
    behind_neurons = {name.replace(".lora_A.", ".lora_B.") for name in maps_of(box, one)}
    parts = []
    for name, shape in zip(box.names, box.shapes, strict=True):
        drawn = rng.normal(0, START, int(np.prod(shape))).astype(np.float32)
        parts.append(drawn if one.maps == "inputs" or name in behind_neurons else np.zeros_like(drawn))
    return np.concatenate(parts)


def maps_of(box: WhiteBox, one: Trap) -> tuple[str, ...]:
    """Return the names of the LoRA A matrices of block 0 that a trap moves.

    Raises `NotApplicable` if the adapter has none.
    """
    if one.maps == "neurons":
        layers: tuple[str, ...] = (NEURONS,)
    elif 0 in box.adapted and box.reads_tokens:
        layers = box.shared_input(0).names
    else:
        layers = ()
    names = [n for n in box.names for layer in layers if ".lora_A." in n and f".0.{layer}." in n]
    if not names:
        raise NotApplicable("no adapter of block 0 reads that: no trap is built for that")
    return tuple(names)
