"""What a client's check of its proxy takes from a server that makes the proxy leak (attack A10).

Honest proxies first: what the check measures on them, beside its bounds. Then each trap of
`attacks.integrity.proxy_traps` on the embedded LLM's proxy at .5: whether clients take the proxy or which
rule refuses it, and the AUC at telling which tokens records hold, as if nobody had checked. Four clients of
the demo world (200 records each) train one round with `lora` adapters, 8 AdamW steps of 32 records as in
configs/demo_matrix.yaml, unless a row says otherwise. `python -m tests.bench.trapped_proxy`, some ten
minutes on one core; with SmolLM2-135M if it is installed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from attacks.base import NotApplicable, Truth
from attacks.integrity.proxy_traps import TRAPS, Trap
from attacks.integrity.trapped_proxy import TrappedProxy
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.errors import ModelError
from fedproxy_secure.experiments.stages import Materials, make_proxy, prepare
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from fedproxy_secure.proxy_intake import public_text, weights
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import PublicSettings, View
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import Row, publish

COMMAND = "python -m tests.bench.trapped_proxy"
RATIOS = (0.25, 0.5, 0.75)
SEED = 0
RECORDS = 200  # a client
# what differs from the settings: the protection, and how clients train
ROUNDS: dict[str, dict[str, dict[str, Any]]] = {
    "masked sum of 4, AdamW 8 x 32": {"protect": {"scheme": "masking"}},
    "updates in the clear, AdamW 8 x 32": {"protect": {"scheme": "unsafe_plaintext"}},
    "masked sum of 4, SGD 1 x 4": {
        "protect": {"scheme": "masking"},
        "local": {"optimizer": "sgd", "steps": 1, "batch_size": 4, "learning_rate": 0.1},
    },
    "masked sum of 4, AdamW 8 x 32, record-level epsilon 8": {
        "protect": {"scheme": "masking"},
        "privacy": {"unit": "record", "target_epsilon": 8.0, "target_delta": 1e-3},
    },
}


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    quiet = ["audit.holdout=0", "audit.canaries=[]", "adapter.kind=lora"]
    config = load_config("configs/demo_matrix.yaml", quiet)
    materials = prepare(config)
    for ratio in RATIOS:
        for steps in (0, 24):
            healed = load_config("configs/demo_matrix.yaml", [*quiet, f"heal.steps={steps}"])
            proxy = make_proxy(healed, prepare(healed), seed=SEED, remove_ratio=ratio)
            what = f"embedded LLM at {ratio}, {'healed' if steps else 'not healed'}"
            rows += honest_rows(what, proxy.model, materials.tokenizer)
    publish("trapped_proxy", rows)
    with tempfile.TemporaryDirectory() as name:
        proxy = make_proxy(config, materials, seed=SEED, remove_ratio=0.5)
        save_model(proxy.model, materials.tokenizer, Path(name))
        for one in TRAPS:
            rows += trap_rows(config, materials, one, Path(name))
            publish("trapped_proxy", rows)
    rows += real_rows()
    publish("trapped_proxy", rows)


def honest_rows(what: str, model: nn.Module, tokenizer: Any) -> list[Row]:
    """What the client's check measures on an honest proxy, and that it passes."""
    embedding = cast(Any, model).get_input_embeddings().weight.detach()
    readings = [public_text.reading(t, model, tokenizer, 128) for t in public_text.bundled_texts()]
    known = min(readings, key=lambda r: r.loss - r.frequencies)
    weights.check_weights(model, tokenizer)
    public_text.check_public_text(model, tokenizer, max_tokens=128)
    measured = (
        ("rows alike", weights.rows_alike(embedding), "share", weights.MOST_ROWS_ALIKE),
        ("outliers", max(weights.outliers(model))[0], "x", weights.MOST_OUTLIER),
        ("between blocks", max(weights.between_blocks(model))[0], "x", weights.MOST_BETWEEN_BLOCKS),
        ("leverage", float(weights.leverage(embedding).max()), "share", weights.MOST_LEVERAGE),
        ("loss over frequencies'", known.loss / known.frequencies, "x", 1.0),
    )
    rows = [
        _row(f"{what}: {m}", v, unit=unit, target=f"<= {most:g}", ok=v <= most)
        for m, v, unit, most in measured
    ]
    least = public_text.LEAST_HEARD
    rows.append(
        _row(
            f"{what}: quietest", known.quietest, unit="x", target=f">= {least}", ok=known.quietest >= least
        )
    )
    return rows


def trap_rows(config: Config, materials: Materials, one: Trap, folder: Path) -> Iterator[Row]:
    """Whether clients take a trapped proxy, and its AUC in every round, as if they had not checked."""
    for what, changes in ROUNDS.items():
        view, truth = played(config, materials, changes, folder)
        taken = "taken"
        for checked in (True, False):
            attack = TrappedProxy([one], checked=checked)
            try:
                exam = attack.exam(truth, view, stream(SEED, "trap", one.name))
                break
            except (NotApplicable, ModelError) as error:
                taken = str(error)
        else:
            print(f"{one.name}, {what}: {taken}", file=sys.stderr, flush=True)
            continue
        guess = attack.guess(view, exam.question, cast(Any, None), stream(SEED, "guess"))
        made = attack.score(guess, exam.answer)[0]
        yield Row.of(f"{one.name}, {what}: token AUC ({taken})", made, command=COMMAND)
        print(f"{one.name}, {what}: {made.value:.3f} ({taken})", file=sys.stderr, flush=True)


def played(
    config: Config, materials: Materials, changes: dict[str, dict[str, Any]], folder: Path
) -> tuple[View, Truth]:
    """A server's view before round 0, at the settings with `changes`, and the clients' records."""
    model, _ = load_llm(folder, device="cpu", dtype="float32")
    d = len(get_vector(attach(model, config.adapter, seed=SEED)))
    clients = {}
    for task in materials.tasks:
        items = encode_records(
            task.train[:RECORDS], materials.tokenizer, max_tokens=config.data.max_tokens
        ).items
        clients[task.name] = PrivateState(
            client=task.name, train=tuple(items), holdout=(), canaries=(), rounds={}
        )
    sections = {
        name: getattr(config, name).model_copy(update=changes.get(name, {}))
        for name in ("local", "protect", "privacy")
    }
    settings = PublicSettings(
        seed=SEED,
        d=d,
        adapter=config.adapter,
        fusion=config.fusion.model_copy(update={"rule": "fedavg"}),
        federate=config.federate,
        max_tokens=config.data.max_tokens,
        blocks=None,
        clients=tuple(sorted(clients)),
        **sections,
    )
    view = View(
        threat_model="malicious_proxy",
        settings=settings,
        adapters={0: np.zeros(d, np.float32)},
        updates={(0, name): np.zeros(d, np.float32) for name in clients},
        sums={},
        cohorts={0: settings.clients},
        proxy=folder,
    )
    return view, Truth(clients=clients)


def real_rows() -> list[Row]:
    """The honest rows of SmolLM2-135M, whole and with blocks left out evenly, not healed."""
    try:
        model, tokenizer = load_llm("smollm2", device="cpu", dtype="float32")
    except ModelError as error:
        print(error, file=sys.stderr)
        return []
    rows = honest_rows("SmolLM2-135M", model, tokenizer)
    blocks = len(blocks_of(model))
    for ratio in RATIOS:
        kept = np.linspace(0, blocks - 1, round(blocks * (1 - ratio))).round().astype(int).tolist()
        part = with_blocks(model, kept, share=True)
        rows += honest_rows(f"SmolLM2-135M at {ratio}, not healed", part, tokenizer)
    return rows


def _row(metric: str, value: float, *, unit: str, target: str, ok: bool) -> Row:
    return Row(metric=metric, value=value, n=1, unit=unit, target=target, ok=ok, command=COMMAND)


if __name__ == "__main__":
    main()
