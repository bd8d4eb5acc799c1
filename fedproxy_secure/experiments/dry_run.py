"""The cost of a run and what its server could see, before the run starts.

Bytes and steps are counted. Seconds are estimated from a few steps that are timed on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import Config
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.experiments.run_report import protection_note
from fedproxy_secure.experiments.stages import check_privacy, exact_proxy, prepare
from fedproxy_secure.experiments.sweeps.method_cells import one_thread
from fedproxy_secure.experiments.sweeps.pace import Pace, measure_pace
from fedproxy_secure.experiments.tracking import require
from fedproxy_secure.protect.base import protection_of

FLOAT32_BYTES = 4  # bytes of a weight, and of a number in an update


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The cost of a run, before it starts. Bytes are payload, float32."""

    llm_parameters: int
    llm_blocks: int
    proxy_parameters: int
    compression: str
    proxy_blocks: tuple[int, ...] | None  # LLM blocks that they stand for; None: they stand for none
    adapter_parameters: int
    clients: int
    cohort: int  # clients of one round
    train_records: tuple[int, ...]
    truncated_records: int
    rounds: int
    local_steps: int
    seeds: int
    upload_bytes: int  # one client's update in one round
    protection: str
    privacy: tuple[str, ...]
    mean_error: float | None  # bound on the rounding error of a coordinate of the mean; None: no rounding
    pace: Pace
    run_seconds: float  # of `run` with all seeds, estimated

    @property
    def memory_bytes(self) -> int:
        """Bytes of all models' weights, and of the adapter's gradients and Adam moments."""
        weights = 2 * self.llm_parameters + self.proxy_parameters + 4 * self.adapter_parameters
        return weights * FLOAT32_BYTES

    def _proxy(self) -> str:
        blocks = "" if self.proxy_blocks is None else f", blocks {list(self.proxy_blocks)}"
        return f"{self.proxy_parameters:,} parameters{blocks}, by {self.compression}"

    def _rounding(self) -> str:
        return f"the mean is off by at most {self.mean_error:.1e} per coordinate in round 0"

    def time_row(self) -> tuple[str, str]:
        """Return how long `run` would take, as a name and a formatted value."""
        return "time", self.pace.text(self.run_seconds)

    def rows(self) -> list[tuple[str, str]]:
        """Return the counts as names and formatted values."""
        steps = self.rounds * self.local_steps * self.cohort
        return [
            ("LLM", f"{self.llm_parameters:,} parameters, {self.llm_blocks} blocks"),
            ("proxy", self._proxy()),
            ("adapter", f"{self.adapter_parameters:,} trained parameters"),
            ("clients", f"{self.clients}, with {list(self.train_records)} training records"),
            ("truncated prompts", f"{self.truncated_records}"),
            ("steps", f"{steps:,} per seed ({self.rounds} rounds), {self.seeds} seeds"),
            ("protection", self.protection),
            *[("privacy", line) for line in self.privacy],
            *([] if self.mean_error is None else [("rounding", self._rounding())]),
            ("upload", f"{self.upload_bytes:,} bytes per client and round"),
            ("download", f"{self.adapter_parameters * FLOAT32_BYTES:,} bytes per client and round"),
            ("proxy download", f"{self.proxy_parameters * FLOAT32_BYTES:,} bytes per client, once"),
            ("memory", f"{self.memory_bytes:,} bytes for weights and optimiser, one process"),
        ]


def plan(config: Config, *, in_cells: bool = False) -> RunPlan:
    """Load model and data, compress, count, and time a few steps; write nothing.

    Args:
        in_cells: whether to time on one thread, as cells of a sweep run; else on as many threads as `run`.
    """
    config.check_protection()
    if not in_cells:
        config.check_epsilon()
        require(config.track)
    if config.audit.signing_key is not None:
        read_key(Path(config.audit.signing_key))
    protection = protection_of(config.protect)
    protection.check_installed()
    compression_of(config.compress, config.heal)
    from fedproxy_secure.data.encode import encode_records
    from fedproxy_secure.data.tasks import warn_of_trained_tests
    from fedproxy_secure.federate.client_policy import check_keys
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.models.adapters import adapter_size, attach, tensor_sizes
    from fedproxy_secure.models.llm import blocks_of, parameter_count, sharing_copy

    for seed in config.seeds:
        check_keys(FederationJob.from_config(config, seed=seed), policies=not in_cells)
    began = time.perf_counter()
    materials = prepare(config)
    warn_of_trained_tests(config, materials.tasks)
    proxy = exact_proxy(config, materials, seed=config.seeds[0], remove_ratio=config.compress.remove_ratio)
    proxy = proxy.finished()
    setup = time.perf_counter() - began
    proxy_parameters = parameter_count(proxy.model)
    encoded = [
        encode_records(t.train, materials.tokenizer, max_tokens=config.data.max_tokens)
        for t in materials.tasks
    ]
    tuned = attach(sharing_copy(proxy.model), config.adapter, seed=0)
    job = FederationJob.from_config(config, seed=config.seeds[0])
    warned = check_privacy(job, tuned, {t.name: len(t.train) for t in materials.tasks})
    with one_thread() if in_cells else nullcontext():
        pace = measure_pace(config, materials, proxy.model, tuned, setup=setup)
    return RunPlan(
        llm_parameters=parameter_count(materials.llm),
        llm_blocks=len(blocks_of(materials.llm)),
        proxy_parameters=proxy_parameters,
        compression=config.compress.kind,
        proxy_blocks=None if proxy.plan is None else proxy.plan.kept,
        adapter_parameters=adapter_size(tuned),
        clients=len(materials.tasks),
        cohort=config.cohort,
        train_records=tuple(len(t.train) for t in materials.tasks),
        truncated_records=sum(e.truncated for e in encoded),
        rounds=config.federate.rounds,
        local_steps=config.local.steps,
        seeds=len(config.seeds),
        upload_bytes=protection.upload_bytes(job, tensor_sizes(tuned)),
        protection=protection_note(config),
        privacy=(*_privacy_rows(config, {t.name: len(t.train) for t in materials.tasks}), *warned),
        mean_error=protection.rounding_error(job, tensor_sizes(tuned)),
        pace=pace,
        run_seconds=len(config.seeds) * pace.run_seconds(config),
    )


def _privacy_rows(config: Config, records: Mapping[str, int]) -> tuple[str, ...]:
    """Return each client's noise as a line of text."""
    from fedproxy_secure.dp.record_noise import record_noise

    privacy = config.privacy
    if privacy.unit != "record":
        return ()
    rounds = config.federate.rounds
    noise = {n: record_noise(privacy, config.local, rounds=rounds, records=c) for n, c in records.items()}
    listed = ", ".join(f"{n} {v.noise_multiplier:.3f}" for n, v in noise.items())
    return (
        f"record level, epsilon {privacy.target_epsilon:g} at delta {privacy.target_delta:g}; "
        f"noise multiplier: {listed}",
    )
