"""Loading a model on the CPU: its weights are the file's own pages, shared, and the file stays as it is."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake.model import load_proxy
from tests.support.tiny import VOCABULARY, same_weights, save_tiny, tiny_llama, tiny_tokenizer
from tests.support.tiny_gguf import grouped_llama, write_gguf

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


MODELS = {
    "llama": tiny_llama,
    "llama, tied": lambda: grouped_llama(tied=True),
    "gpt2": tiny_gpt2,
}


@pytest.fixture(params=MODELS)
def folder(request, tmp_path) -> Path:
    MODELS[request.param]().save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def mapped(model: torch.nn.Module, folder: Path) -> set[bool]:
    """Whether the parameters lie where this process has mapped a file of the folder."""
    places = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors") and str(folder) in line:
            start, end = line.split()[0].split("-")
            places.append(range(int(start, 16), int(end, 16)))
    return {any(p.data_ptr() in place for place in places) for p in model.parameters()}


@on_linux
def test_weights_are_views_of_the_mapped_file(folder):
    assert mapped(load_llm(folder, device="cpu", dtype="float32")[0], folder) == {True}


@on_linux
def test_a_clients_proxy_is_a_view_of_its_file_too(tmp_path):
    folder = save_tiny(tmp_path / "proxy", blocks=2)
    assert mapped(load_proxy(folder, max_tokens=16, device="cpu").model, folder) == {True}


@on_linux
def test_weights_from_a_gguf_file_are_views_of_the_converted_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    file = write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf")
    assert mapped(load_llm(file, device="cpu")[0], tmp_path / "cache") == {True}


@torch.no_grad()
def test_writing_to_weights_reaches_neither_the_file_nor_another_copy(folder):
    before = (folder / "model.safetensors").read_bytes()
    changed, other = (load_llm(folder, device="cpu")[0] for _ in range(2))
    for parameter in changed.parameters():
        parameter.fill_(7)
    assert (folder / "model.safetensors").read_bytes() == before
    assert same_weights(load_llm(folder, device="cpu")[0], other)
    assert not same_weights(other, changed)


@torch.no_grad()
def test_saving_into_the_folder_leaves_a_loaded_model_as_it_was(folder):
    loaded, _ = load_llm(folder, device="cpu")
    copies = [parameter.clone() for parameter in loaded.parameters()]
    other, _ = load_llm(folder, device="cpu")
    for parameter in other.parameters():
        parameter.fill_(7)
    other.save_pretrained(folder)
    assert all(torch.equal(p, c) for p, c in zip(loaded.parameters(), copies, strict=True))
    assert same_weights(load_llm(folder, device="cpu")[0], other)
