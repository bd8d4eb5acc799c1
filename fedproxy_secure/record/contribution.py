"""What a client added to a round's sum, from the update that its own state holds.

A corrupted client knows this and subtracts it from the sum. Under CKKS it also stands for what the server
decrypts with a client's help: the transcript holds ciphertexts and no key that opens them.

Not covered: noise of differential privacy, the ring's rounding, a clip that the server proposed (it cuts
5 % of the coordinates at most), the smaller clip of a round whose learning rates have fallen (only weight
decay exceeds it), and weights `encrypted_gram`, which follow from numbers that no transcript holds: each
client counts as one of weight 1 that keeps the public share of its update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.federate.job import AgreedSettings
from fedproxy_secure.federate.sent import trimmed
from fedproxy_secure.record.private import PrivateState, read_private


def contribution(
    state: PrivateState,
    round_number: int,
    settings: AgreedSettings | None,
    adapters: Mapping[int, np.ndarray],
) -> np.ndarray:
    """Return what a client added to a round in which it trained, float32 [d], by the settings' scheme.

    It is the update itself where the server learns single updates, where another package's protocol made
    the sum, or if the settings are not known.

    Args:
        state: of the client.
        round_number: a round in `state.rounds`.
        settings: the run's.
        adapters: by round, the adapter that was broadcast.
    """
    update = state.rounds[round_number].update
    if settings is None:
        return update
    if PROTECTIONS.get(settings.protect.scheme, setting="protect.scheme").protocol is None:
        return update
    previous = None
    if round_number > 0 and round_number - 1 not in state.rounds:
        previous = np.zeros_like(update)  # as `RoundMemoryStore.last_step` has it
    elif {round_number - 1, round_number} <= set(adapters):
        previous = adapters[round_number] - adapters[round_number - 1]
    values, weight = trimmed(update, settings, previous=previous)
    values = values if weight == 1 else np.float32(weight) * values
    clip = settings.protect.clip
    return values if clip is None or settings.privacy.unit == "client" else np.clip(values, -clip, clip)


def contributions(
    transcript: Path,
    keys: Iterable[tuple[int, str]],
    settings: AgreedSettings,
    adapters: Mapping[int, np.ndarray],
) -> dict[tuple[int, str], np.ndarray]:
    """Return what clients added to rounds, by (round, client), float32 [d].

    Raises `RunFolderError` if a client's state cannot be read.
    """
    chosen = sorted(set(keys))
    states = {name: read_private(transcript, name) for name in sorted({name for _, name in chosen})}
    return {
        (r, name): contribution(states[name], r, settings, adapters)
        for r, name in chosen
        if r in states[name].rounds
    }
