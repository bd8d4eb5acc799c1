"""How long work takes on this machine: real steps are timed, and then multiplied.

It times a training step of the proxy, the evaluation of some test records by the LLM and by the proxy, and
a step of healing if healing or plug-back read public text. Times of other remove ratios follow from the
share of blocks. Attacks, and the protocol of a protection beside its training, are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import nn

from fedproxy_secure.config import Config
from fedproxy_secure.data.encode import Encoded, encode_each
from fedproxy_secure.data.evaluate import choice_correct
from fedproxy_secure.data.records import Record
from fedproxy_secure.experiments.method import method_of
from fedproxy_secure.experiments.stages import Materials
from fedproxy_secure.experiments.sweeps.cell_progress import (
    healing_units,
    plug_back_units,
    plug_backs,
    step_units,
    trained_records,
)
from fedproxy_secure.experiments.sweeps.method_cells import Cell
from fedproxy_secure.runtime.progress import duration
from fedproxy_secure.runtime.randomness import stream

T = TypeVar("T")
EVALUATED = 8  # most test records that are timed
BEST_OF = 2  # calls, of which the fastest counts


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured seconds, in one process.

    Args:
        ratio: the remove ratio of the proxy that was timed.
        batch: number of records of a training step.
        tests: number of test records of all clients.
        setup: seconds until a cell has loaded its models and records.
        step: seconds of a training step of the proxy.
        llm, proxy: seconds of a test record with the LLM, and with the proxy.
        window: seconds of a window of public text in a step of healing; 0 if nothing reads public text.
    """

    ratio: float
    batch: int
    tests: int
    setup: float
    step: float
    llm: float
    proxy: float
    window: float

    def run_seconds(self, config: Config, *, remove_ratio: float | None = None) -> float:
        """Return the seconds of `run` with one seed, by default at the settings' remove ratio."""
        size = 1.0 if remove_ratio is None else (1 - remove_ratio) / (1 - self.ratio)
        training = trained_records(config) / self.batch * self.step * size
        evaluation = 2 * self.tests * (self.llm + self.proxy * size)  # before tuning and after
        ratio = self.ratio if remove_ratio is None else remove_ratio
        public_text = self.healing_seconds(config, ratio) + self.plug_back_seconds(config, ratio)
        return self.setup + public_text + training + evaluation

    def healing_seconds(self, config: Config, remove_ratio: float) -> float:
        """Return the seconds that healing a proxy takes."""
        return self._public_seconds(healing_units(config, remove_ratio=remove_ratio))

    def plug_back_seconds(self, config: Config, remove_ratio: float) -> float:
        """Return the seconds that plug-back spends on public text, for a factor or to align."""
        return self._public_seconds(plug_back_units(config, remove_ratio=remove_ratio))

    def _public_seconds(self, units: float) -> float:
        return self.window * units / step_units(remove_ratio=self.ratio)

    def cell_seconds(self, config: Config, cell: Cell) -> float:
        """Return the seconds of a comparison's cell whose proxy is already prepared."""
        method = method_of(cell.method)
        size = (1 - (cell.remove_ratio or 0.0)) / (1 - self.ratio)
        seconds = self.setup + self.tests * (self.llm + self.proxy * size * method.needs_ratio)
        if method.trains:
            seconds += trained_records(config) / self.batch * self.step * size
        if cell.remove_ratio is not None:
            seconds += plug_backs(config, method) * self.plug_back_seconds(config, cell.remove_ratio)
        return seconds

    def text(self, seconds: float, *, processes: int = 1) -> str:
        """Return a time as text, with the measurements that it is computed from."""
        parts = [
            f"{self.step:.2g} s per step of {self.batch} records",
            f"{_small(self.llm)} per test record",
        ]
        if self.window:
            parts.append(f"{self.window:.2g} s per window of public text")
        return (
            f"about {duration(seconds)} ({', '.join(parts)}, {processes} process{'es' * (processes > 1)}; "
            "just measured on this machine)"
        )


def together(pieces: Sequence[float], processes: int) -> float:
    """Return the least seconds that pieces of these seconds take in several processes."""
    return max(sum(pieces) / processes, max(pieces, default=0.0))


def measure_pace(
    config: Config, materials: Materials, proxy: nn.Module, tuned: nn.Module, *, setup: float
) -> Pace:
    """Time a few steps on real records; this trains the adapter of `tuned` and writes nothing.

    Args:
        proxy: an exact proxy, which may share its weights; some steps heal it if public text is to be read.
        tuned: the same with an adapter.
        setup: as in `Pace`.
    """
    tests = [task.test for task in materials.tasks]
    sample = _spread(tests, min(EVALUATED, sum(map(len, tests))), key=lambda r: len(r.prompt))
    return Pace(
        ratio=config.compress.remove_ratio,
        batch=config.local.batch_size,
        tests=sum(map(len, tests)),
        setup=setup,
        step=_step_seconds(config, materials, tuned),
        llm=_record_seconds(config, materials, materials.llm, sample),
        proxy=_record_seconds(config, materials, tuned, sample),
        window=_window_seconds(config, materials, proxy) if _reads_public_text(config) else 0.0,
    )


def _step_seconds(config: Config, materials: Materials, tuned: nn.Module) -> float:
    """Return the seconds of a training step on records as long as the clients' are on average."""
    from fedproxy_secure.federate.training import train

    pad_id, local = materials.tokenizer.pad_token_id, config.local
    per_client = [
        encode_each(task.train, materials.tokenizer, max_tokens=config.data.max_tokens).items
        for task in materials.tasks
    ]
    items = _spread(per_client, local.batch_size, key=lambda i: len(i.ids))
    if config.privacy.unit == "record":
        seconds = _best(lambda: _private_step(config, tuned, items, pad_id))
    else:
        step_ends: list[float] = []
        train(
            tuned,
            items,
            steps=1 + BEST_OF,  # the first warms up
            local=local,
            pad_id=pad_id,
            rng=stream(0, "pace"),
            subject="timing",
            checkpointing=config.model.checkpointing,
            on_step=lambda _: step_ends.append(time.perf_counter()),
        )
        seconds = min(b - a for a, b in pairwise(step_ends))
    mean = sum(_mean_tokens(o) for o in per_client) / len(
        per_client
    )  # every client takes equally many steps
    return seconds * mean / _mean_tokens(items)


def _private_step(config: Config, tuned: nn.Module, items: Sequence[Encoded], pad_id: int) -> None:
    """Take a private step on all of `items`, with a fixed noise seed because nothing is kept."""
    from fedproxy_secure.dp.noise import Noise
    from fedproxy_secure.dp.record_noise import RecordNoise
    from fedproxy_secure.federate.private_training import train_privately

    private = RecordNoise(noise_multiplier=1.0, clip_norm=config.privacy.clip_norm, sampling_rate=1.0)
    train_privately(
        tuned,
        items,
        steps=1,
        local=config.local,
        private=private,
        noise=Noise(bytes(32)),
        pad_id=pad_id,
        subject="timing",
    )


def _record_seconds(
    config: Config, materials: Materials, model: nn.Module, sample: Sequence[Record]
) -> float:
    def judge() -> None:
        choice_correct(model, materials.tokenizer, sample, max_tokens=config.data.max_tokens)

    return _best(judge) / len(sample)


def _reads_public_text(config: Config) -> bool:
    return config.heal.heals or plug_back_units(config, remove_ratio=config.compress.remove_ratio) > 0


def _window_seconds(config: Config, materials: Materials, proxy: nn.Module) -> float:
    """Return the seconds of a step of healing that reads one window."""
    from fedproxy_secure.compress.healing import heal

    step_ends: list[float] = []
    heal(
        proxy,
        materials.llm,
        materials.windows[:1].repeat(1 + BEST_OF, 1),
        config.heal.model_copy(update={"fit_windows": None, "steps": 1 + BEST_OF, "batch_size": 1}),
        seed=0,
        checkpointing=config.model.checkpointing,
        on_step=lambda *_: step_ends.append(time.perf_counter()),
    )
    return min(b - a for a, b in pairwise(step_ends))


def _best(work: Callable[[], None]) -> float:
    """Return the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(BEST_OF):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _spread(groups: Sequence[Sequence[T]], count: int, *, key: Callable[[T], int]) -> list[T]:
    """Return `count` items, taken in turns from all groups, and from short to long in each group."""
    ordered = [sorted(group, key=key) for group in groups if group]
    turns = -(-count // len(ordered))
    return [group[int((turn + 0.5) / turns * len(group))] for turn in range(turns) for group in ordered][
        :count
    ]


def _mean_tokens(items: Sequence[Encoded]) -> float:
    return sum(len(i.ids) for i in items) / len(items)


def _small(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
