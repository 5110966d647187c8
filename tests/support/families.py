"""Tiny random decoders of every supported family: the shapes that matter (grouped heads, windows, biases), no weights to fetch.

All have hidden size 64, 4 query heads, 2 KV heads, a vocabulary of 128 and tied embeddings switched off, so that the logits of
neighbouring tokens are far apart and a wrong attention pattern shows in the arg max.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 128
HIDDEN = 64
LAYERS = 3
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
WINDOW = 16


def _settings(**changes: Any) -> dict[str, Any]:
    """Return the keyword arguments that all the configs share, with ``changes`` applied."""
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # wide, so that attention is far from uniform
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return shared | changes


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Return a ``model_class`` with random fp32 weights that depend on ``seed`` alone; eval mode, gradients off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():  # biases and norm gains start at 0 and 1, where a mix-up would not show
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif "lm_head" in name:
                    parameter.mul_(2.0)
    return model.eval().requires_grad_(requires_grad=False)


def llama(**changes: Any) -> PreTrainedModel:
    """Return a Llama: RoPE, grouped heads, full attention."""
    return build(LlamaForCausalLM, LlamaConfig(**_settings(**changes)))


def mistral(**changes: Any) -> PreTrainedModel:
    """Return a Mistral whose every layer looks back ``WINDOW`` tokens."""
    return build(MistralForCausalLM, MistralConfig(**_settings(sliding_window=WINDOW) | changes))


def qwen2(**changes: Any) -> PreTrainedModel:
    """Return a Qwen2: biases on the q, k and v projections."""
    return build(Qwen2ForCausalLM, Qwen2Config(**_settings(use_sliding_window=False) | changes))


def qwen3(**changes: Any) -> PreTrainedModel:
    """Return a Qwen3: RMS norm of each query and key head before RoPE."""
    return build(Qwen3ForCausalLM, Qwen3Config(**_settings(use_sliding_window=False) | changes))


def gemma3(**changes: Any) -> PreTrainedModel:
    """Return a Gemma3 text model: two sliding layers around a full one, two RoPE bases, its own softmax scale."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    shared = _settings(sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=HEAD_DIM, hidden_activation="gelu_pytorch_tanh")
    return build(Gemma3ForCausalLM, Gemma3TextConfig(**shared | changes))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3": gemma3,
}
