from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families import FAMILIES, HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, build, llama
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from agentmem.engine.probe import TOLERANCE, KVShape, attention, check_calls, compare, probe_logits, relative_error, verify_seam
from agentmem.errors import UnsupportedModel

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str, **changes: Any) -> Any:
    config = CONFIG_MAPPING[kind](**TINY | changes)
    return build(AutoModelForCausalLM._model_mapping[type(config)], config)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_served_and_measured(family: str, dtype: torch.dtype) -> None:
    """The probe returns what the seam will receive and leaves the model with the attention it had."""
    model = FAMILIES[family]().to(dtype)
    before = model.config._attn_implementation

    assert KVShape(LAYERS, HEADS, KV_HEADS, HEAD_DIM) == check_calls(model, 512)
    assert before == model.config._attn_implementation


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma2", {}, "soft-capped attention logits"),
        ("gpt_oss", {"num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "attention sinks"),
        ("deepseek_v3", MLA, "one shape, found 4 heads, 4 KV heads, keys of 24, values of 16"),
        ("diffllama", {}, "attention once, found layer 0: 2"),
        ("bert", {}, "bidirectional"),
        ("nemotron", {}, "attention doesn't get the forward's keywords"),
        ("doge", {}, "a mask that is not causal"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "attention once, found layer 1: 1"),
        ("bloom", {"n_layer": 2}, "attention once, found none"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_only_a_run_shows_is_refused(kind: str, changes: dict[str, Any], reason: str) -> None:
    """Architectures that slipped through by config are refused by what they hand to attention."""
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_calls(tiny(kind, **changes), 512)
    assert kind in caught.value.message


def test_layers_of_different_heads_are_refused() -> None:
    """A model whose second layer has other KV heads is refused, naming both shapes."""
    model = llama()
    odd = model.model.layers[1].self_attn
    odd.k_proj, odd.v_proj = nn.Linear(64, HEAD_DIM), nn.Linear(64, HEAD_DIM)
    with pytest.raises(UnsupportedModel, match="4 heads, 1 KV heads.*4 heads, 2 KV heads"):
        check_calls(model, 512)


def test_rope_phases_from_the_batch_are_refused() -> None:
    """With dynamic RoPE a key changes when another row of the batch is far away: refused."""
    model = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, max_position_embeddings=64)
    with pytest.raises(UnsupportedModel, match="changes with its neighbours"):
        check_calls(model, 512)


def test_tokens_that_meet_outside_attention_are_refused() -> None:
    """A layer that mixes neighbouring rows, as a convolution does, is refused."""

    class Shift(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows + rows.roll(1, dims=1)

    model = llama()
    model.model.layers[1].mlp = Shift()
    with pytest.raises(UnsupportedModel, match="changes with its neighbours"):
        check_calls(model, 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_seam_accepts_the_model_itself(family: str) -> None:
    """The sdpa attention of transformers passes for eager attention, in fp32 and bf16."""
    for dtype in (torch.float32, torch.bfloat16):
        model = FAMILIES[family]().to(dtype)
        verify_seam(model, lambda ids, model=model: model(torch.tensor([ids])).logits[0].float())


def test_verify_seam_refuses_wrong_attention() -> None:
    """Positions shifted for half the tokens, as a wrong seam would do, are noticed."""
    model = llama()
    positions = torch.tensor([[*range(12), *range(20, 32)]])
    with pytest.raises(UnsupportedModel, match="does not reproduce the model: relative error of logits"):
        verify_seam(model, lambda ids: model(torch.tensor([ids]), position_ids=positions).logits[0])


def test_probe_logits_are_eager_ones() -> None:
    """One row of fp32 logits a token, computed with eager attention."""
    model = llama()
    logits = probe_logits(model, [3, 4, 5])
    with attention(model, "eager"), torch.no_grad():
        expected = model(torch.tensor([[3, 4, 5]])).logits[0]

    assert (3, VOCAB) == logits.shape
    assert torch.equal(expected, logits)


def test_compare_looks_at_the_worst_row() -> None:
    """One bad row among many is found; a row within tolerance passes; shapes must agree."""
    reference = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    compare(reference, reference * (1 + TOLERANCE[torch.float32] / 2), torch.float32)
    bad = reference.clone()
    bad[7] = bad[8]

    assert relative_error(reference, bad) > 0.5
    with pytest.raises(UnsupportedModel, match="allowed 1e-04"):
        compare(reference, bad, torch.float32)
    with pytest.raises(UnsupportedModel, match=r"\(49, 128\)"):
        compare(reference, reference[1:], torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_compare_refuses_what_is_not_a_number(value: float) -> None:
    """NaN and infinity never pass for equal."""
    reference = torch.ones(2, 4)
    broken = torch.full((2, 4), value)
    with pytest.raises(UnsupportedModel):
        compare(reference, broken, torch.bfloat16)
