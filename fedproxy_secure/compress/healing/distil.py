"""Heal a proxy: the closed-form fit, then steps of distillation on public text.

A difference that a block learnt is lifted into the LLM's block, where it meets the LLM's hidden states.
Both the fit and the steps therefore bring each block's input close to what its original reads in the LLM;
in the steps `heal.state_weight` weighs this against predictions.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from fedproxy_secure.compress.distance import distance
from fedproxy_secure.compress.healing.fit import OnBlock, fit_blocks
from fedproxy_secure.compress.healing.precise import PreciseNumbers
from fedproxy_secure.compress.healing.state import HealingState
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.config import HealConfig
from fedproxy_secure.errors import TrainingError
from fedproxy_secure.models.cache import raw_bytes
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.mixed import all_products_mixed, is_mixed
from fedproxy_secure.models.passes import windows_a_pass
from fedproxy_secure.runtime.randomness import stream

log = logging.getLogger(__name__)

HELD_OUT = 8  # windows that measure healing and are never trained on; at most a fifth of all
WARM_UP = 0.1  # share of the steps in which the learning rate rises
MAX_GRAD_NORM = 1.0
SAVE_EVERY_S = 120.0

OnStep = Callable[[int, float], None]  # step from 1, loss of its batch


@dataclass(frozen=True, kw_only=True)
class Healed:
    """How far healing brought a proxy.

    Args:
        kl_before: mean KL(LLM || proxy), nats a token, of next-token distributions on held-out windows.
        kl_after: the same after healing.
        state_error_before: relative error of the proxy's hidden states (`Distance.states`), averaged over
            tokens, on the same windows; 0 if it cannot be measured.
        state_error_after: the same after healing.
        tokens: public tokens that the fit and the steps read, repeats included.
        seconds: time that the fit and the steps took, including any before an interruption.
    """

    kl_before: float
    kl_after: float
    state_error_before: float
    state_error_after: float
    tokens: int
    seconds: float


def heal(
    proxy: nn.Module,
    llm: nn.Module,
    windows: torch.Tensor,
    settings: HealConfig,
    *,
    seed: int,
    plan: BlockPlan | None = None,
    folder: Path | None = None,
    checkpointing: bool = False,
    on_step: OnStep | None = None,
    on_block: OnBlock | None = None,
) -> Healed:
    """Heal a proxy in place on public text: fit its blocks to the LLM, then distil the LLM into them.

    The fit reads `heal.fit_windows` of the windows (`fit_blocks`). Then `heal.steps` steps follow. Their
    loss is KL(LLM || proxy) of next-token distributions plus `heal.state_weight` times the relative error
    of hidden states, averaged over tokens and blocks. The optimiser is AdamW, with a learning rate that
    rises over the first tenth of the steps and falls to 0 by a cosine.

    Args:
        proxy: causal LM with the LLM's vocabulary. It may share the LLM's memory: trained blocks get
            memory of their own.
        llm: the server's LLM; unchanged.
        windows: token ids, int64 [n, tokens]; the last ones are held out.
        seed: seed of the order of windows.
        plan: which LLM block each proxy block stands for. It decides which hidden states are compared, and
            which blocks are trained if `heal.blocks` is `gaps`: those of `BlockPlan.before_gaps`, or all if
            there are none. Without a plan, or if hidden sizes differ, only predictions are compared and
            nothing is fitted; without a plan all blocks are trained.
        checkpointing: whether steps keep less in memory and take longer, as `model.checkpointing` says.
        on_step: called after each step.
        on_block: called after each block that the fit has passed.
        folder: where the state is kept. A call with the same inputs goes on from it, or loads the result.
            One process at a time may use a folder.

    Raises `TrainingError` if the loss stops being finite, `RunFolderError` if the folder cannot be used.
    """
    # no block precedes a gap in a proxy with all of the LLM's blocks, or one that lacks only the first
    gaps = plan.before_gaps if plan is not None and settings.blocks == "gaps" else ()
    trained_blocks = gaps or tuple(range(len(blocks_of(proxy))))
    parameters = [p for i in trained_blocks for p in blocks_of(proxy)[i].parameters()]
    state = HealingState(folder, key=_key(parameters, windows, settings, seed, plan, mixed=is_mixed(llm)))
    result = state.finished(parameters)
    if result is not None:
        return Healed(**result)
    held_out = min(HELD_OUT, max(1, len(windows) // 5))
    train, held_out_windows = windows[:-held_out], windows[-held_out:]
    fitted = train[: 0 if plan is None else settings.fit_windows or 0]
    with _trained(proxy, parameters) as precise:
        # fused: a step makes no further copies of the weights
        optimizer = torch.optim.AdamW(precise.held, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        restored = state.restore(optimizer, precise.held)
        precise.show()
        done, before, seconds = restored or (0, _mean_distance(proxy, llm, plan, held_out_windows), 0.0)
        began, saved = time.perf_counter() - seconds, time.perf_counter()
        if plan is not None and len(fitted) and restored is None:
            count = fit_blocks(proxy, llm, plan, fitted, blocks=trained_blocks, on_block=on_block)
            log.log(
                logging.INFO if count else logging.WARNING,
                "the fit on public text changed %d blocks",
                count,
            )
            precise.read()
        proxy.train()
        order = _order(len(train), settings.steps * settings.batch_size, seed)
        for step in range(done, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _share(step, settings.steps)
            batch = train[order[step * settings.batch_size : (step + 1) * settings.batch_size]]
            loss = _add_gradients(
                proxy,
                llm,
                plan,
                batch,
                state_weight=settings.state_weight,
                checkpointing=checkpointing,
            )
            if not math.isfinite(loss):
                raise TrainingError(
                    f"healing: loss={loss} at step {step}: must be finite; lower heal.learning_rate"
                )
            nn.utils.clip_grad_norm_(precise.held, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            precise.show()
            if on_step is not None:
                on_step(step + 1, loss)
            if time.perf_counter() - saved > SAVE_EVERY_S:
                state.save(optimizer, precise.held, step + 1, before, time.perf_counter() - began)
                saved = time.perf_counter()
    after = _mean_distance(proxy, llm, plan, held_out_windows)
    healed = Healed(
        kl_before=before[0],
        kl_after=after[0],
        state_error_before=before[1],
        state_error_after=after[1],
        tokens=(settings.steps * settings.batch_size + len(fitted)) * windows.shape[1],
        seconds=time.perf_counter() - began,
    )
    state.finish(parameters, asdict(healed))
    return healed


@contextmanager
def _trained(proxy: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[PreciseNumbers]:
    """Make these parameters of a proxy, and no others, trainable, in memory of their own."""
    for p in proxy.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.data = p.data.clone()
        p.requires_grad_(True)
    precise = PreciseNumbers(parameters)
    try:
        yield precise
    finally:
        precise.close()
        proxy.eval()
        for p in parameters:
            p.requires_grad_(False)
            p.grad = None


def _add_gradients(
    proxy: nn.Module,
    llm: nn.Module,
    plan: BlockPlan | None,
    batch: torch.Tensor,
    *,
    state_weight: float,
    checkpointing: bool,
) -> float:
    """Add the gradients of a batch's loss, with as many windows per pass as fit; return the loss."""
    loss = 0.0
    for part in batch.split(windows_a_pass(proxy, batch)):
        with all_products_mixed(llm):
            distances = distance(proxy, llm, plan, part, checkpointing=checkpointing)
            part_loss = (distances.kl + state_weight * distances.states) / batch.numel()
            part_loss.backward()
        loss += float(part_loss.detach())
    return loss


def _order(windows: int, count: int, seed: int) -> torch.Tensor:
    """Return `count` indices of windows, int64: shuffled passes, end to end."""
    rng = stream(seed, "healing")
    passes = [torch.from_numpy(rng.permutation(windows)) for _ in range(-(-count // windows))]
    return torch.cat(passes)[:count] if passes else torch.zeros(0, dtype=torch.int64)


def _share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step, (0, 1]."""
    rising = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rising * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _mean_distance(
    proxy: nn.Module, llm: nn.Module, plan: BlockPlan | None, windows: torch.Tensor
) -> tuple[float, float]:
    """Return the mean KL, nats a token, and the mean relative error of hidden states."""
    distances = [distance(proxy, llm, plan, part) for part in windows.split(windows_a_pass(proxy, windows))]
    kl, states = (sum(float(getattr(d, name)) for d in distances) for name in ("kl", "states"))
    return kl / windows.numel(), states / windows.numel()


def _key(
    parameters: list[nn.Parameter],
    windows: torch.Tensor,
    settings: HealConfig,
    seed: int,
    plan: BlockPlan | None,
    *,
    mixed: bool,
) -> str:
    """Return a hash of everything that decides the result, except the LLM."""
    text = (
        f"{settings.model_dump_json(exclude_none=True)}|{seed}|{tuple(windows.shape)}|{plan and plan.kept}"
    )
    if mixed:
        text += "|mixed"
    digest = hashlib.sha256(text.encode())
    for tensor in (windows, *parameters):
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()
