"""Changes to a saved proxy, as a server that made it for a purpose could make them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def edit_json(file: Path, **changes: Any) -> Path:
    """Set keys of a JSON object on the disk; None removes one. Returns the folder."""
    raw = json.loads(file.read_text()) if file.exists() else {}
    raw |= changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return file.parent


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the tensors of `model.safetensors` in place. Returns the folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder: Path, place: str = "") -> Path:
    """Turn `model.safetensors` into two shards and an index that names them below `place`."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {}
    for number, mine in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in mine}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, f"{place}{file}")
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_adapter_of(folder: Path, base: Path) -> Path:
    """Make a folder an adapter that changes nothing, on the model in `base`. Returns the folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "README.md").unlink(missing_ok=True)
    return edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
