"""Tune a model of your own on records of your own: a tiny LLM and three clients' files, made on the spot.

    python examples/own_model_and_data.py [FOLDER]

It takes seconds. The LLM is random, so its accuracy means nothing; what matters is where each file goes.
For a real run leave out steps 1 and 2 and name your model's folder and your files in step 3.
"""

# %% [markdown]
# ## 1 The model: any Hugging Face folder of a causal LM with its tokenizer, weights as safetensors

# %%
import json
import random
import sys
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedproxy_secure as fp

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_model_and_data")
special = ["<pad>", "<s>", "</s>"]
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(special + letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
torch.manual_seed(0)
llm = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(special + letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
)
llm.save_pretrained(folder / "llm")
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
).save_pretrained(folder / "llm")

# %% [markdown]
# ## 2 The records: one file per client and split; JSONL, CSV and Parquet will do

# %%
clients = ("north", "south", "west")
rng = random.Random(0)
for client in clients:
    for split, count in (("train", 24), ("test", 12)):
        rows = []
        for _ in range(count):
            late = rng.random() < 0.5
            days = rng.randrange(-30, 0) if late else rng.randrange(30)
            text = f"invoice {rng.randrange(1000)}, due in {days} days"
            rows.append({"text": text, "choices": ["on time", "late"], "label": int(late)})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{client}.{split}.jsonl").write_text(lines, encoding="utf-8")
(folder / "public.txt").write_text("Invoices are letters that ask for money. " * 100, encoding="utf-8")

# %% [markdown]
# ## 3 The settings: they name only what differs from the defaults; masking is on without being named

# %%
settings = {
    "name": "own",
    "model": {"path": str(folder / "llm"), "device": "cpu"},
    "data": {
        "public_text": str(folder / "public.txt"),
        "max_tokens": 64,
        "clients": [
            {"name": client, "task": "classification", "source": f"{folder}/{client}.{{split}}.jsonl"}
            for client in clients
        ],
    },
    "compress": {"remove_ratio": 0.5, "calibration_sequences": 4},
    "adapter": {"rank": 2},
    "local": {"steps": 2, "batch_size": 8},
    "federate": {"rounds": 2},
}
(folder / "own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

# %% [markdown]
# ## 4 The run: the same as `fedproxy-secure run own.yaml --out run`

# %%
config = fp.load_config(folder / "own.yaml")
report = fp.run(config, folder / "run")
for measure in report.configurations[0].measures:
    print(f"{measure.axis:<12} {measure.key:<24} {measure.estimate.value:.4g} {measure.estimate.unit}")
print(f"the proxy and the fused LLM, as Hugging Face folders: {folder / 'run' / 'seed-0'}")
