from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB
from support.tiny import differences, save_gguf, save_model
from torch import nn

from agentmem.engine import model as module
from agentmem.engine.model import ModelHandle, eos_token_ids, load_model, pick_device, pick_dtype
from agentmem.errors import InvalidInput, UnsupportedModel

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def load(directory: Path, **options: Any) -> ModelHandle:
    options = {"dtype": "fp32", "device": "cpu", "cache_dir": directory.parent / "cache"} | options
    return load_model(str(directory), **options)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_the_saved_one(family: str, tmp_path: Path) -> None:
    """The handle tells the model's shape, and the logits are the original's up to the packed layers' tolerance."""
    original = FAMILIES[family]()
    handle = load(save_model(tmp_path / "model", original))
    ids = torch.tensor([[5, 6, 7, 8]])

    assert (LAYERS, HEADS, KV_HEADS, HEAD_DIM) == (handle.layers, handle.heads, handle.kv_heads, handle.head_dim)
    assert (512, VOCAB, frozenset({2})) == (handle.max_context, handle.vocab_size, handle.eos_token_ids)
    assert (torch.float32, CPU) == (handle.dtype, handle.device)
    assert torch.allclose(original(ids).logits, handle.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert not handle.model.training
    assert not [name for name, weight in handle.model.named_parameters() if weight.requires_grad]


def test_optimizing_can_be_switched_off(directory: Path) -> None:
    """With the flag off every linear layer is torch's own, and the handle says so."""
    plain = load(directory, optimize=False)

    assert "switched off" == plain.optimization.reason
    assert type(plain.model.lm_head) is nn.Linear
    assert load(directory).optimization.packed > 0


def test_the_fingerprint_follows_content_not_place(directory: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same model; optimizing doesn't count; dtype, weights, template and config do, each named."""
    first = load(directory, optimize=False)
    copy = save_model(tmp_path / "copy")
    second = load(copy)
    assert first.fingerprint == second.fingerprint

    assert ("dtype",) == differences(first.parts, load(directory, dtype="bf16").parts)
    (copy / "chat_template.jinja").write_text("other")
    assert ("template",) == differences(first.parts, load(copy).parts)
    edit_config(copy, rms_norm_eps=1e-3)
    assert ("config", "template") == differences(first.parts, load(copy).parts)
    save_model(tmp_path / "copy", FAMILIES["llama"](num_hidden_layers=2))
    assert ("config", "weights") == differences(first.parts, load(copy).parts)


def test_a_gguf_file_loads_in_any_dtype_from_one_conversion(tmp_path: Path) -> None:
    """The weights' identity is the same in fp32 and bf16; progress runs from 0 to 1 in each stage."""
    path = save_gguf(tmp_path / "tiny.gguf")
    stages: list[tuple[str, float]] = []
    full = load(path, progress=lambda stage, fraction: stages.append((stage, fraction)))
    half = load(path, dtype="bf16")

    assert ("dtype",) == differences(full.parts, half.parts)
    assert ["converting GGUF", "loading model"] == list(dict.fromkeys(stage for stage, _ in stages))
    assert 2 == [fraction for _, fraction in stages].count(1.0)
    assert (256, frozenset({2})) == (full.max_context, full.eos_token_ids)


def test_a_missing_weight_is_refused(directory: Path) -> None:
    """A tensor that the file lacks would be random; the error names it."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match="incomplete: 1 missing.*model.layers.1.mlp.up_proj.weight"):
        load(directory)


def test_damaged_files_are_refused_by_name(directory: Path) -> None:
    """Truncated weights, a missing tokenizer and a broken config give errors naming the directory or the file."""
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InvalidInput, match=f"weights in {directory} can't be read"):
        load(directory)
    for path in directory.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InvalidInput, match="no tokenizer"):
        load(directory)
    (directory / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InvalidInput, match=r"config.json is not a config"):
        load(directory)


def test_what_the_seam_can_not_serve_is_refused_before_weights_are_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic RoPE and a config without a trained length are UnsupportedModel without touching the weights."""
    monkeypatch.setattr(module, "_read_weights", pytest.fail)
    edit_config(directory, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(UnsupportedModel, match="dynamic"):
        load(directory)
    with pytest.raises(UnsupportedModel, match="trained length"):
        module._max_context(SimpleNamespace(model_type="odd"))


def test_settings_with_unknown_values_name_the_allowed(directory: Path) -> None:
    """Each wrong value is InvalidInput listing what is allowed."""
    with pytest.raises(InvalidInput, match="dtype 'int8' is unknown; allowed are auto, fp32, bf16, fp16"):
        load(directory, dtype="int8")
    with pytest.raises(InvalidInput, match="device 'tpu' is unknown; allowed are auto, cpu, cuda"):
        load(directory, device="tpu")
    with pytest.raises(InvalidInput, match="threads is -1"):
        load(directory, threads=-1)


def test_threads_are_set(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive number of threads becomes torch's; 0 leaves it alone."""
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    load(directory, threads=0)
    load(directory, threads=2)

    assert [2] == chosen


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_auto_dtype_on_cpu(monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], expected: torch.dtype) -> None:
    """Processors that multiply bf16 get bf16, others fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)

    assert expected == pick_dtype("auto", CPU)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_dtype_on_cuda(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype) -> None:
    """A device that only emulates bf16, such as a V100, gets fp16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bf16 or including_emulation)

    assert expected == pick_dtype("auto", torch.device("cuda"))


def test_auto_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuda when there is one; asking for it where there is none is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ["cuda", "cuda", "cpu"] == [pick_device(name).type for name in ("auto", "cuda", "cpu")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cpu" == pick_device("auto").type
    with pytest.raises(InvalidInput, match="no CUDA device"):
        pick_device("cuda")


def test_end_tokens_come_from_all_three_places() -> None:
    """Generation config, config and tokenizer may each name one, several or none."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 8]), config=SimpleNamespace(eos_token_id=2))

    assert frozenset({2, 7, 8, 9}) == eos_token_ids(model, SimpleNamespace(eos_token_id=9))
    assert frozenset({2}) == eos_token_ids(
        SimpleNamespace(generation_config=None, config=SimpleNamespace(eos_token_id=2)), SimpleNamespace(eos_token_id=None)
    )
