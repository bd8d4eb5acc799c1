"""The methods that `compare` runs: FedProxy's variants and every baseline, on one budget.

Each takes the same records, the same number of training sequences and the same adapter settings:
`rounds x steps x batch_size` sequences a client; the centralised ones see as many in all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fedproxy_secure.compress.plan import BlockPlan, blocks_to_remove, plan_uniform
from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import Config, FusionConfig, Method, ProtectConfig
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.adapters import attach, vector_bytes
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.training import train
from fedproxy_secure.llm import blocks_of, with_blocks
from fedproxy_secure.pipeline import (
    Accuracy,
    Materials,
    evaluate,
    make_fused_llm,
    make_proxy,
    prepare,
    tune,
    upload_bytes,
)
from fedproxy_secure.randomness import stream

PLAINTEXT = ProtectConfig(scheme="unsafe_plaintext")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one method reached with one seed.

    `fused`: accuracy per task of the model the owner ends with. `tuned`: of the small model the clients
    hold, or None where there is none. `upload_bytes`: payload one client sends in one round.
    """

    fused: dict[str, Accuracy]
    tuned: dict[str, Accuracy] | None
    upload_bytes: int


def run_method(
    method: Method, config: Config, *, seed: int, remove_ratio: float | None, folder: Path
) -> Outcome:
    """Run one method from scratch. Models that clients load are written below `folder`."""
    materials = prepare(config)
    if method == "zero_shot":
        return Outcome(fused=evaluate(materials.llm, materials, config), tuned=None, upload_bytes=0)
    if method == "centralised_llm":
        tuned = _train_pooled(materials.llm, materials, config, seed)
        return Outcome(fused=evaluate(tuned, materials, config), tuned=None, upload_bytes=0)
    if method == "fedavg_llm":
        job = _job(config, seed, FusionConfig(rule="fedavg"))
        tuned = tune(job, materials.llm, _saved(materials.llm, materials, folder / "llm"))
        bytes_up = vector_bytes(tuned)
        return Outcome(fused=evaluate(tuned, materials, config), tuned=None, upload_bytes=bytes_up)
    if remove_ratio is None:
        raise ConfigError(f"method {method}: needs a remove ratio")
    if method in ("fedot", "fedot_equal_bytes"):
        return _fedot(method, config, materials, seed, remove_ratio, folder)
    proxy = make_proxy(config, materials, seed=seed, remove_ratio=remove_ratio)
    if method == "local_only":
        return _local_only(proxy, materials, config, seed)
    if method == "zero_shot_proxy":
        tuned = proxy.model
        accuracies = evaluate(tuned, materials, config)
        return Outcome(fused=accuracies, tuned=accuracies, upload_bytes=0)
    if method == "centralised_proxy":
        tuned = _train_pooled(proxy.model, materials, config, seed)
        bytes_up = 0
    else:
        job = _job(config, seed, fusion_of(method, config), protect_of(method, config))
        tuned = tune(job, proxy.model, _saved(proxy.model, materials, folder / "proxy"))
        bytes_up = upload_bytes(job, tuned)
    return Outcome(
        tuned=evaluate(tuned, materials, config),
        fused=evaluate(make_fused_llm(materials, proxy, tuned), materials, config),
        upload_bytes=bytes_up,
    )


def fusion_of(method: Method, config: Config) -> FusionConfig:
    """The fusion settings of a method of FedProxy; what the method does not fix comes from `config`."""
    own, tuning = config.fusion, config.compare
    plain = own.model_copy(
        update={"rule": "fedavg", "server_learning_rate": 1.0, "pcr_lambda": 0.0, "prox_mu": 0.0}
    )
    changes: dict[str, dict[str, object]] = {
        "fedproxy_fedavg": {},
        "fedproxy_fedavg_lr": {"server_learning_rate": tuning.server_learning_rate},
        "fedproxy_fedadam": {
            "rule": "fedadam",
            "server_learning_rate": tuning.fedadam_learning_rate,
        },
        "fedproxy_fedprox": {"prox_mu": tuning.prox_mu},
        "fedproxy_ties": {"rule": "ties"},
        "fedproxy_h_ties": {"rule": "h_ties"},
        "fedproxy_h_ties_pcr": {"rule": "h_ties", "pcr_lambda": tuning.pcr_lambda},
        "masked_fedavg": {},
        "masked_fedavg_lr": {"server_learning_rate": tuning.server_learning_rate},
        "masked_h_ties_coordinate": {"rule": "h_ties"},
        "masked_h_ties_block": {"rule": "h_ties"},
    }
    return plain.model_copy(update=changes[method])


def protect_of(method: Method, config: Config) -> ProtectConfig:
    """How a method's updates travel: `masked_*` by the settings of `protect`, all others in the clear."""
    if not method.startswith("masked_"):
        return PLAINTEXT
    granularity = "coordinate" if method.endswith("_coordinate") else "block"
    return config.protect.model_copy(update={"scheme": "masking", "granularity": granularity})


def offsite_tuning_plan(llm_blocks: int, remove_ratio: float) -> tuple[BlockPlan, tuple[int, ...]]:
    """Offsite-Tuning's plan: the first and last blocks are adapters, the middle is uniformly dropped.

    Returns the plan of the model that clients hold, and which of *its* blocks are trained. As many
    blocks are held as in a proxy of the same ratio; a quarter of them, at least one a side, is trained.
    """
    keep = llm_blocks - blocks_to_remove(llm_blocks, remove_ratio)
    side = max(1, keep // 8)
    if keep < 2 * side + 1:
        raise ConfigError(
            f"remove_ratio={remove_ratio}: leaves {keep} of {llm_blocks} blocks; FedOT needs at least "
            f"{2 * side + 1}: adapters at both ends and an emulator between"
        )
    middle = llm_blocks - 2 * side
    emulator = plan_uniform(middle, 1 - (keep - 2 * side) / middle).kept
    kept = (
        *range(side),
        *(side + i for i in emulator),
        *range(llm_blocks - side, llm_blocks),
    )
    trained = (*range(side), *range(keep - side, keep))
    return BlockPlan(llm_blocks=llm_blocks, kept=kept), trained


def _fedot(
    method: Method, config: Config, materials: Materials, seed: int, ratio: float, folder: Path
) -> Outcome:
    plan, trained = offsite_tuning_plan(len(blocks_of(materials.llm)), ratio)
    held = with_blocks(materials.llm, list(plan.kept))
    job = replace(_job(config, seed, FusionConfig(rule="fedavg")), blocks=trained)
    if method == "fedot_equal_bytes":
        rank = round(config.adapter.rank * len(plan.kept) / len(trained))
        scale = config.adapter.alpha / config.adapter.rank
        job = replace(
            job, adapter=config.adapter.model_copy(update={"rank": rank, "alpha": round(rank * scale)})
        )
    tuned = tune(job, held, _saved(held, materials, folder / "emulator"))
    emulated = Proxy(model=held, plan=plan, importance=())
    return Outcome(
        tuned=evaluate(tuned, materials, config),
        fused=evaluate(make_fused_llm(materials, emulated, tuned), materials, config),
        upload_bytes=vector_bytes(tuned),
    )


def _local_only(proxy: Proxy, materials: Materials, config: Config, seed: int) -> Outcome:
    """Every client tunes the proxy alone; each task is judged on its own client's model."""
    tuned_on: dict[str, Accuracy] = {}
    fused_on: dict[str, Accuracy] = {}
    for task in materials.tasks:
        own = replace(materials, tasks=(task,))
        model = with_blocks(proxy.model, list(range(len(blocks_of(proxy.model)))))
        tuned = _train_pooled(model, own, config, seed)
        tuned_on |= evaluate(tuned, own, config)
        fused_on |= evaluate(make_fused_llm(own, proxy, tuned), own, config)
    return Outcome(tuned=tuned_on, fused=fused_on, upload_bytes=0)


def _train_pooled(model: nn.Module, materials: Materials, config: Config, seed: int) -> nn.Module:
    """Tune an adapter on all tasks' records together, as many steps as all their clients take."""
    tuned = attach(model, config.adapter, seed=seed)
    items = [
        item
        for task in materials.tasks
        for item in encode_records(task.train, materials.tokenizer, max_tokens=config.data.max_tokens).items
    ]
    train(
        tuned,
        items,
        steps=config.federate.rounds * config.local.steps * len(materials.tasks),
        local=config.local,
        pad_id=materials.tokenizer.pad_token_id,
        rng=stream(seed, "centralised", *(t.name for t in materials.tasks)),
        who="centralised training",
    )
    return tuned


def _job(
    config: Config, seed: int, fusion: FusionConfig, protect: ProtectConfig = PLAINTEXT
) -> FederationJob:
    return replace(FederationJob.from_config(config, seed=seed), fusion=fusion, protect=protect)


def _saved(model: nn.Module, materials: Materials, folder: Path) -> Path:
    if not (folder / "config.json").exists():
        save_model(model, materials.tokenizer, folder)
    return folder
