"""A tiny Llama as a GGUF file, written tensor by tensor as llama.cpp's converter names and orders them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
MERGES = (("Ġ", "Ġ"), ("t", "h"), ("th", "e"))
_CONTROL, _NORMAL = 3, 1  # types of tokens
_OF_A_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tokens() -> list[str]:
    """The vocabulary in order: special tokens, bytes, what merges make."""
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of that vocabulary, as SmolLM2's: digits apart, then GPT-2's splitting rule."""
    vocabulary = {token: index for index, token in enumerate(tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def grouped_llama(*, tied: bool) -> LlamaForCausalLM:
    """A random Llama whose four heads share two heads of keys; its settings are exact in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        rms_norm_eps=2.0**-17,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    model: LlamaForCausalLM,
    file: Path,
    *,
    rule: str | None = "smollm",
    kind: str = "llama",
    scaled: bool = False,
    without: Collection[str] = (),
) -> Path:
    """Write a model and the tokenizer to `file` in float32.

    Args:
        model: what `grouped_llama` returns.
        file: where to.
        rule: how the tokenizer splits texts, or None to say nothing of it.
        kind: the architecture that the file states.
        scaled: whether the file says that rotary positions are scaled.
        without: GGUF names of tensors to leave out.
    """
    from gguf import GGUFWriter, RopeScalingType

    config: Any = model.config
    writer = GGUFWriter(file, kind)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    if scaled:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    _write_tokenizer(writer, rule)
    for name, tensor in _tensors(model).items():
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: Any, rule: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    if rule is not None:
        writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens())
    writer.add_token_types([_CONTROL if token in SPECIAL else _NORMAL for token in tokens()])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _tensors(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    config: Any = model.config
    mine = dict(model.named_parameters())
    found: dict[str, torch.Tensor] = {
        "token_embd.weight": mine["model.embed_tokens.weight"],
        "output_norm.weight": mine["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        found["output.weight"] = mine["lm_head.weight"]
    for block in range(config.num_hidden_layers):
        for theirs, ours in _OF_A_BLOCK.items():
            found[f"blk.{block}.{theirs}.weight"] = mine[f"model.layers.{block}.{ours}.weight"]
        for theirs, heads in (
            ("attn_q", config.num_attention_heads),
            ("attn_k", config.num_key_value_heads),
        ):
            name = f"blk.{block}.{theirs}.weight"
            found[name] = _interleaved(found[name], heads)
    return found


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put rows that turn together side by side, as llama.cpp has them; transformers keeps halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
