"""A proxy's digest is of what was loaded, alike on every machine, and clients hold the server to it."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedproxy_secure.config import parse_config
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.proxy_intake.model import load_proxy
from tests.support.hostile_proxies import edit_json, edit_weights
from tests.support.tiny import VOCABULARY, save_tiny, tiny_settings, tiny_tokenizer

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gemma2": {"head_dim": 12},  # keeps a scale in an unsaved buffer of the model's dtype
    "deepseek_v3": {  # keeps some tensors in float32, and joins those of experts
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 12,
        "qk_nope_head_dim": 4,
    },
}
DTYPES = ("float32", "bfloat16", "float16")


def save_family(folder, family, dtype):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_proxy_loads_bit_for_bit_like_any_model_and_alike_in_every_dtype(tmp_path, family, stored):
    folder = save_family(tmp_path / "proxy", family, stored)
    digests = set()
    for wanted in DTYPES:
        plain, _ = load_llm(folder, device="cpu", dtype=wanted)
        held = load_proxy(folder, max_tokens=32, device="cpu", dtype=wanted)
        digests.add(held.loaded_sha256)
        assert held.model.config.dtype == plain.config.dtype
        for kind in ("named_parameters", "named_buffers"):
            mine, theirs = dict(getattr(held.model, kind)()), dict(getattr(plain, kind)())
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert mine[name].dtype == theirs[name].dtype, name
                assert torch.equal(mine[name], theirs[name]), name
        ids = torch.arange(30)[None]
        assert torch.equal(held.model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert len(digests) == 1


def test_tied_weights_stay_tied(tmp_path):
    folder = save_tiny(tmp_path / "proxy")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    model = load_proxy(folder, max_tokens=32, device="cpu", dtype="bfloat16").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def digest(folder):
    return load_proxy(folder, max_tokens=64, device="cpu").loaded_sha256


def test_another_process_and_place_give_the_same_digest(tmp_path):
    folder = save_tiny(tmp_path / "proxy")
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    line = (
        "import sys; from pathlib import Path\n"
        "from fedproxy_secure.proxy_intake.model import load_proxy\n"
        "print(load_proxy(Path(sys.argv[1]), max_tokens=64, dtype='bfloat16', device='cpu').loaded_sha256)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", line, str(tmp_path / "elsewhere" / "copy")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
    )
    assert ran.stdout.split()[-1] == digest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-5),
        lambda folder: edit_json(folder / "config.json", hidden_act="gelu"),
        lambda folder: edit_json(folder / "config.json", attention_dropout=0.1),
        lambda folder: edit_json(
            folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 9999.0}
        ),
        lambda folder: edit_json(folder / "config.json", is_causal=False),
        lambda folder: edit_json(folder / "config.json", sliding_window=4),
        lambda folder: edit_json(folder / "tokenizer_config.json", padding_side="left"),
        lambda folder: edit_json(folder / "tokenizer_config.json", eos_token="<s>"),
        lambda folder: edit_json(folder / "tokenizer_config.json", split_special_tokens=True),
        lambda folder: edit_json(folder / "tokenizer_config.json", extra_special_tokens=["a"]),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 }}"),
    ],
)
def test_settings_that_matter_change_the_digest(tmp_path, change):
    folder = save_tiny(tmp_path / "proxy")
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_how_a_file_is_written_does_not_change_the_digest(tmp_path, file):
    folder = save_tiny(tmp_path / "proxy")
    before, files = digest(folder), folder_sha256(folder)
    edit_json(folder / file)
    assert folder_sha256(folder) != files
    assert digest(folder) == before


# ------------------------------------------------------------------------------ server and clients


@pytest.fixture
def world(tmp_path):
    config = parse_config(tiny_settings(tmp_path, protect={"scheme": "unsafe_plaintext"}))
    return FederationJob.from_config(config, seed=0), tmp_path / "llm"


def on(job, **changes):
    return job.changed(**changes)


def test_the_server_names_what_its_own_folder_loads_as(world):
    job, folder = world
    here = with_proxy(job, folder)
    assert here.proxy_sha256 == folder_sha256(folder)
    assert here.proxy_loaded_sha256 == digest(folder)
    elsewhere = with_proxy(
        on(job, federate=job.federate.model_copy(update={"engine": "deployment"})), folder
    )
    assert elsewhere.proxy_loaded_sha256 == here.proxy_loaded_sha256


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_clients_of_other_dtypes_agree_with_the_server(world, dtype):
    job, folder = world
    named = with_proxy(job, folder)
    client = build_client(on(named, dtype=dtype), 0, folder)
    with client.model.lent() as tuned:
        assert next(tuned.parameters()).dtype == getattr(torch, dtype)


def test_what_was_loaded_is_part_of_what_clients_sign_and_of_what_privacy_is_spent_on(world):
    job, folder = world
    named = with_proxy(job, folder)
    assert FederationJob.from_json(named.to_json()) == named
    other = on(named, proxy_loaded_sha256="0" * 64)
    assert other.agreed_sha256() != named.agreed_sha256()
    lacking = copy.copy(named.to_json()).replace("proxy_loaded_sha256", "proxy_loaded")
    with pytest.raises(ValueError, match="proxy_loaded"):
        FederationJob.from_json(lacking)
