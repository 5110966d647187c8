from __future__ import annotations

from typing import Any

import pytest
from support.families import FAMILIES
from transformers import CONFIG_MAPPING, PreTrainedConfig

from agentmem.engine.support import check_config
from agentmem.errors import UnsupportedModel

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}


def config(kind: str, **changes: Any) -> PreTrainedConfig:
    return CONFIG_MAPPING[kind](**TINY | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_checked_family_passes(family: str) -> None:
    """Configs of the five families are served."""
    check_config(FAMILIES[family]().config)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "granite", "starcoder2", "smollm3", "gpt2"])
def test_relatives_pass(kind: str) -> None:
    """Plain decoders of other families are not refused by name; GPT-2's learned positions are positions too."""
    check_config(CONFIG_MAPPING[kind]())


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("t5", {}, "encoder beside the decoder"),
        ("bart", {"pad_token_id": 1}, "encoder beside the decoder"),
        ("gemma3", {}, "other modalities; point to its text model.*text_config"),
        ("llava", {}, "other modalities"),
        ("gemma2", {}, "soft-capped attention logits.*attn_logit_softcapping=50"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
        ("deepseek_v3", {}, "MLA.*kv_lora_rank=512"),
        ("minicpm3", {}, "MLA"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "shared between layers.*num_kv_shared_layers=1"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers other than.*conv"),
        ("llama4_text", {}, "layers other than.*chunked_attention"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "layers other than.*linear_attention"),
        ("mamba", {}, "recurrent state.*MambaForCausalLM.*linear_attention"),
        ("jamba", {}, "recurrent state.*JambaForCausalLM"),
        ("recurrent_gemma", {}, "recurrent state"),
        ("gemma4_text", {"head_dim": 16}, "head_dim='one a layer'"),
        ("bloom", {}, "ALiBi.*bloom"),
        ("mpt", {}, "ALiBi.*alibi=True"),
        ("falcon", {"alibi": True}, "ALiBi.*alibi=True"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
        ("llama", {"rope_parameters": DYNAMIC}, "RoPE whose phases.*dynamic"),
        ("phi3", {"rope_parameters": LONG}, "RoPE whose phases.*longrope"),
        ("stablelm", {}, "can't be replaced.*StableLmForCausalLM"),
        ("vit", {}, "no causal language model"),
    ],
)
def test_what_the_seam_can_not_serve_is_refused_by_name(kind: str, changes: dict[str, Any], reason: str) -> None:
    """Each architecture is refused from its config alone; the message names the model type and what is in the way."""
    refused = CONFIG_MAPPING[kind](**changes) if kind in {"gemma3", "llava", "falcon", "mpt"} else config(kind, **changes)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_config(refused)
    assert kind in caught.value.message
    assert "served are decoders" in caught.value.message


def test_head_counts_by_layer_are_refused() -> None:
    """A config that lists a head count per layer is refused, naming the list."""
    with pytest.raises(UnsupportedModel, match=r"differ between layers \(num_key_value_heads=\[2, 1\]\)"):
        check_config(PreTrainedConfig(num_key_value_heads=[2, 1]))


def test_every_reason_is_named_at_once() -> None:
    """Two obstacles give one error with both."""
    with pytest.raises(UnsupportedModel, match="soft-capped.*it has RoPE"):
        check_config(config("gemma2", rope_parameters=DYNAMIC))
