"""What the two parts of healing bring, and what they cost: `make bench-healing`.

Proxies of SmolLM2-135M by `configs/real_proxies.yaml`, at each remove ratio healed by the closed-form fit,
by steps, and by both; judged on windows of public text that neither saw. Some 40 minutes of one core;
`python -m tests.bench.healing 0.5 "128 windows fitted"` measures one of them. A word that ends in `.txt` is
a file of other public text.
"""

from __future__ import annotations

import sys

import torch

from fedproxy_secure import prepare
from fedproxy_secure.compress.healing import HELD_OUT, heal
from fedproxy_secure.config import load_config
from fedproxy_secure.experiments.stages import PUBLIC_WINDOW_TOKENS, exact_proxy
from tests.bench.rows import Row, publish

COMMAND = "make bench-healing"
SETTINGS = "configs/real_proxies.yaml"
RATIOS = (0.25, 0.5)
PARTS = {  # fitted windows, steps
    "30 steps": (0, 30),
    "128 windows fitted": (128, 0),
    "512 windows fitted": (512, 0),
    "128 windows fitted, 30 steps": (128, 30),
}


def main() -> None:
    """Measure what is asked for, or everything; print, write."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    texts = [word for word in words if word.endswith(".txt")][:1]
    ratios = [ratio for ratio in RATIOS if str(ratio) in words]
    parts = [part for part in PARTS if part in words]
    unknown = set(words) - {*texts, *map(str, ratios), *parts}
    if unknown:
        raise SystemExit(f"{' '.join(sorted(unknown))}: must be of {RATIOS}, {list(PARTS)} or a .txt file")
    measured = [(ratio, part) for ratio in ratios or RATIOS for part in parts or PARTS]
    publish("healing", [row for ratio, part in measured for row in rows(ratio, part, *texts)])


def rows(ratio: float, part: str, text: str = "real_things") -> list[Row]:
    """Return the rows of one proxy."""
    fit_windows, steps = PARTS[part]
    most = max(fit for fit, _ in PARTS.values())  # all variants are judged on the same windows
    config = load_config(
        SETTINGS, ["attacks.suite=none", f"data.public_text={text}", f"heal.fit_windows={most}"]
    )
    materials = prepare(config)
    proxy = exact_proxy(config, materials, seed=0, remove_ratio=ratio)
    windows = materials.healing_windows
    settings = config.heal.model_copy(update={"fit_windows": fit_windows, "steps": steps})
    healed = heal(proxy.model, materials.llm, windows, settings, seed=0, plan=proxy.plan)
    name = f"{ratio:.0%} removed, {text.rsplit('/', 1)[-1]}, {part}"
    return [
        _row(f"{name}: KL before", healed.kl_before, "nats"),
        _row(f"{name}: KL", healed.kl_after, "nats"),
        _row(f"{name}: error of hidden states before", healed.state_error_before, "share"),
        _row(f"{name}: error of hidden states", healed.state_error_after, "share"),
        _row(f"{name}: time", healed.seconds, "s", n=1),
    ]


def _row(metric: str, value: float, unit: str, n: int = HELD_OUT * PUBLIC_WINDOW_TOKENS) -> Row:
    return Row(metric=metric, value=value, n=n, unit=unit, target="", ok=None, command=COMMAND)


if __name__ == "__main__":
    main()
