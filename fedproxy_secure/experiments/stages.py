"""The stages of the pipeline on one page: compress, federate, fuse, evaluate.

Every stage is a function of ordinary torch and transformers objects and can be called on its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.healing import HELD_OUT, heal
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.config import Config
from fedproxy_secure.data.chat.derived import keep_format
from fedproxy_secure.data.evaluate import choice_correct, response_losses, text_windows
from fedproxy_secure.data.records import Task
from fedproxy_secure.data.sources import public_text
from fedproxy_secure.data.tasks import load_tasks
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.evidence.losses import TextLoss
from fedproxy_secure.experiments.results import Accuracy, Score, text_clients
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.fuse.stage import Fused, fuse
from fedproxy_secure.models.adapters import attach, check_rank, set_vector, tensor_sizes
from fedproxy_secure.models.llm import Tokenizer, load_llm
from fedproxy_secure.runtime.progress import NoProgress, Progress

if TYPE_CHECKING:
    from fedproxy_secure.flower.engines import Federate

PUBLIC_WINDOW_TOKENS = 128
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Materials:
    """The inputs of a run: the owner's LLM, public token windows, and every client's task."""

    llm: nn.Module
    tokenizer: Tokenizer
    windows: torch.Tensor  # int64 [n, tokens]: for calibration, also of plugging back
    fidelity_windows: torch.Tensor  # equally many, none of the windows above
    healing_windows: torch.Tensor  # int64 [n, tokens], none of the windows above; n = 0 without healing
    aligning_windows: torch.Tensor  # the healing windows, and more if they are too few to align on
    tasks: tuple[Task, ...]


def prepare(config: Config, *, seed: int | None = None) -> Materials:
    """Load LLM, public text and tasks; `seed` (None: the first) seeds the draws of the section `audit`."""
    llm, tokenizer = load_llm(config.model.path, device=config.model.device, dtype=config.model.dtype)
    check_rank(llm, config.adapter)
    keep_format(tokenizer)
    tasks = load_tasks(config.data, audit=config.audit, seed=config.seeds[0] if seed is None else seed)
    return Materials(llm=llm, tokenizer=tokenizer, tasks=tasks, **windows_by_use(config, tokenizer))


def windows_by_use(config: Config, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Return windows of public text, int64 [n, 128], by the names of `Materials`; never client records.

    The first `compress.calibration_sequences` are for calibration. Equally many at the end are for fidelity
    alone: nothing was chosen by them. Those between are for healing. Raises `DataError` for too short text.
    """
    windows, align_on = public_windows(config, tokenizer), config.plug_back.align_windows or 0
    count = config.compress.calibration_sequences
    healing, extra = windows[count:-count], windows[:0]
    if align_on > len(healing):
        extra = public_windows(config, tokenizer, align_on=align_on)[len(windows) :]
    fewest = 2 * count + 2 * (config.heal.heals or align_on > 0)
    found = len(windows) + (len(extra) if len(windows) >= 2 * count else 0)  # extra ones only align
    if found < fewest:
        raise DataError(
            f"data.public_text={config.data.public_text}: has {found} windows of {PUBLIC_WINDOW_TOKENS} "
            f"tokens; must have at least {fewest}; add text, or lower compress.calibration_sequences"
        )
    return {
        "windows": windows[:count],
        "fidelity_windows": windows[-count:],
        "healing_windows": healing,
        "aligning_windows": torch.cat([healing, extra]),
    }


def public_windows(config: Config, tokenizer: Tokenizer, *, align_on: int = 0) -> torch.Tensor:
    """Return a run's windows of public text; with `align_on` more, so that so many can be aligned on."""
    count = 2 * config.compress.calibration_sequences
    if further := max(config.heal.windows, align_on):
        count += HELD_OUT + further
    text = public_text(config.data.public_text, root=config.data.root, texts=4 * count)
    return text_windows(text, tokenizer, window_tokens=PUBLIC_WINDOW_TOKENS, limit=count)


def make_proxy(
    config: Config,
    materials: Materials,
    *,
    seed: int,
    remove_ratio: float,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Proxy:
    """Stage 1: return the proxy that clients get: `exact_proxy`, then `heal_proxy`; raises their errors."""
    proxy = exact_proxy(config, materials, seed=seed, remove_ratio=remove_ratio)
    return heal_proxy(config, materials, proxy, seed=seed, folder=folder, progress=progress)


def exact_proxy(config: Config, materials: Materials, *, seed: int, remove_ratio: float) -> Proxy:
    """Return the proxy of the settings' compression at `remove_ratio`, neither healed nor finished.

    Raises `ConfigError` if the LLM cannot be compressed as the settings say.
    """
    settings = config.compress.model_copy(update={"remove_ratio": remove_ratio})
    return compression_of(settings, config.heal).build(
        materials.llm, settings, windows=materials.windows, seed=seed
    )


def heal_proxy(
    config: Config,
    materials: Materials,
    proxy: Proxy,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Proxy:
    """Heal a proxy in place as the settings' `heal` says, and finish it; return it as clients get it.

    Its details get the record of healing. `folder`: where healing keeps its state; a call with the same
    inputs goes on from it, and one process at a time may use it. Raises as `compress.healing.heal` does.
    """
    if not config.heal.heals:
        return proxy.finished()
    display, reported = progress or NoProgress(), 0
    blocks = len(proxy.plan.kept) if config.heal.fit_windows and proxy.plan is not None else 0

    def tell(done: int, note: str) -> None:
        nonlocal reported
        display.advance("heal", done - reported, note=note)
        reported = done

    display.start("heal", blocks + config.heal.steps)
    healed = heal(
        proxy.model,
        materials.llm,
        materials.healing_windows,
        config.heal,
        seed=seed,
        plan=proxy.plan,
        folder=folder,
        checkpointing=config.model.checkpointing,
        on_block=lambda block, _: tell(block + 1, f"block {block} of the fit"),
        on_step=lambda step, loss: tell(blocks + step, f"loss {loss:.2f}"),
    )
    display.done("heal")
    return replace(proxy, details={**proxy.details, "healing": asdict(healed)}).finished()


def tune(
    job: FederationJob,
    model: nn.Module,
    model_folder: Path,
    *,
    run_folder: Path | None = None,
    progress: Progress | None = None,
    on_round: Callable[[], None] | None = None,
    federate: Federate | None = None,
) -> nn.Module:
    """Stage 2: tune `model` (in place) with all clients; return it with the tuned adapter attached.

    Args:
        model_folder: holds the same model for the clients.
        run_folder: where every round is saved, so that a second call goes on where the first was stopped.
        on_round: called after rounds were saved, at least once and finally after the last round.
        federate: replaces the engine that the job names.
    """
    from fedproxy_secure.flower import engines

    display = progress or NoProgress()
    tuned = attach(model, job.adapter, seed=job.seed, blocks=job.blocks)
    # in this process every client's update is reported, from Flower's own processes only whole rounds
    updates_a_round = job.clients_a_round if job.federate.engine == "in_process" else 1
    display.start("federate", job.federate.rounds * updates_a_round)
    initial = initial_state(tuned)
    for line in check_privacy(job, tuned, {}):
        log.warning(line)
    on_saved = on_round or (lambda: None)

    def round_saved(metrics: Mapping[str, float]) -> None:
        if updates_a_round == 1:
            display.advance("federate", note=f"moved {metrics['step_norm']:.3f}")
        on_saved()

    final = (federate or engines.federate)(
        job,
        model_folder,
        initial,
        run_folder=run_folder,
        on_client=lambda client: display.advance("federate", note=client),
        on_round=round_saved,
    )
    on_saved()
    display.done("federate")
    set_vector(tuned, final.adapter)
    return tuned


def check_privacy(job: FederationJob, tuned: nn.Module, records: Mapping[str, int]) -> tuple[str, ...]:
    """Return notes on the run's differential privacy before it starts; () if there are none.

    Raises `ConfigError` for a target that cannot be reached.
    """
    from fedproxy_secure.protect.secure_sum.noise import noise_of, planned_threshold, signal_to_noise

    if job.privacy.unit == "record":
        for name, count in records.items():
            try:
                record_noise(job.privacy, job.local, rounds=job.federate.rounds, records=count)
            except ConfigError as error:
                raise ConfigError(f"client {name}: {error}") from error
        return ()
    if job.privacy.unit == "client":
        sizes = tensor_sizes(tuned)
        noise_of(job, d=sum(sizes), clients=job.clients_a_round, threshold=planned_threshold(job))
        ratio = signal_to_noise(job, sizes)
        hopeless = "; use more clients or a smaller adapter" if ratio < 1 else ""
        return (
            f"Client-level noise: the signal-to-noise ratio of a round's sum over {job.clients_a_round} "
            f"clients is at most {ratio:.2g}{hopeless}.",
        )
    return ()


def make_fused_llm(
    config: Config,
    materials: Materials,
    proxy: Proxy,
    tuned: nn.Module,
    *,
    progress: Progress | None = None,
) -> Fused:
    """Stage 3: plug what tuning taught the proxy back into the LLM, as the section `plug_back` says.

    Args:
        proxy: the result of `make_proxy`.
        tuned: that proxy with its tuned adapter, the result of `tune`.
    """
    return fuse(
        config.plug_back,
        materials.llm,
        proxy,
        tuned,
        windows=materials.windows,
        align_on=materials.aligning_windows,
        progress=progress,
    )


def evaluate(
    model: nn.Module,
    materials: Materials,
    config: Config,
    *,
    progress: Progress | None = None,
    name: str = "evaluate",
) -> dict[str, Score]:
    """Return the score on each client's test records, by task: accuracy, or on free text the loss.

    Accuracy is lm-eval's `acc` and `acc_norm`, 0-shot. `name`: the name of its progress.
    """
    display, scores, texts = progress or NoProgress(), dict[str, Score](), text_clients(config)
    tokenizer, max_tokens = materials.tokenizer, config.data.max_tokens
    for task in materials.tasks:
        bar, reported = f"{name}: {task.name}", 0

        def tell(done: int, all_passes: int, bar: str = bar) -> None:
            nonlocal reported
            if reported == 0:
                display.start(bar, all_passes)
            display.advance(bar, done - reported)
            reported = done

        if task.name in texts:
            lost = response_losses(model, tokenizer, task.test, max_tokens=max_tokens, on_passes=tell)
            scores[task.name] = TextLoss(nats=tuple(lost.nats.tolist()), tokens=tuple(lost.tokens.tolist()))
        else:
            right = choice_correct(model, tokenizer, task.test, max_tokens=max_tokens, on_passes=tell)
            acc, acc_norm = tuple(right.acc.tolist()), tuple(right.acc_norm.tolist())
            scores[task.name] = Accuracy(correct=acc, correct_norm=acc_norm)
        display.done(bar)
    return scores
