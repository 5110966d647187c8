"""A model directory and a GGUF file small enough to write in a test."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from support.families import VOCAB, llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agentmem.engine.fingerprint import FingerprintParts

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}"


def word_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``size`` words: four special tokens, then w4, w5, ..."""
    vocab = {word: index for index, word in enumerate([*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), size))])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(directory: Path, model: PreTrainedModel | None = None) -> Path:
    """Write ``model`` (a tiny Llama by default) and a tokenizer into ``directory``; return the directory."""
    (model or llama()).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


def save_gguf(path: Path) -> Path:
    """Write a tiny random Llama as GGUF (fp16 weights, SentencePiece-like vocabulary) to ``path``; return ``path``."""
    from gguf import GGUFWriter, TokenType

    dim, ff, layers, heads, kv_heads = 32, 64, 2, 2, 1
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(index) for index in range(len(words))])
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (len(words) - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float16 if len(shape) > 1 else np.float32))

    add("token_embd.weight", len(words), dim)
    add("output_norm.weight", dim)
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            add(f"{block}.{name}.weight", dim)
        for name in ("attn_q", "attn_output"):
            add(f"{block}.{name}.weight", dim, dim)
        for name in ("attn_k", "attn_v"):
            add(f"{block}.{name}.weight", dim * kv_heads // heads, dim)
        for name in ("ffn_gate", "ffn_up"):
            add(f"{block}.{name}.weight", ff, dim)
        add(f"{block}.ffn_down.weight", dim, ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def differences(one: FingerprintParts, other: FingerprintParts) -> tuple[str, ...]:
    """Return the names of the parts in which two fingerprints differ."""
    return tuple(field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name))
