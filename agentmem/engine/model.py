"""Loads a model once and hands it around with all that the rest needs to know of it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from agentmem.engine import fingerprint
from agentmem.engine.fingerprint import FingerprintParts
from agentmem.engine.gguf import Progress, quiet_bars
from agentmem.engine.optimize import Optimization, optimize_for_cpu
from agentmem.engine.probe import KVShape, check_calls
from agentmem.engine.resolve import resolve, weight_files
from agentmem.engine.support import check_config
from agentmem.errors import InvalidInput, UnsupportedModel
from agentmem.types import Fingerprint

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")
STAGE = "loading model"


@dataclass(frozen=True, slots=True, eq=False)
class ModelHandle:
    """A loaded model. ``model`` is in eval mode, needs no gradients, and is run by one thread at a time.

    ``max_context`` is the trained length in tokens; ``vocab_size`` the width of the logits; ``parts`` the hashes behind
    ``fingerprint`` (``parts.tokenizer`` tells what token ids mean).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    name: str
    fingerprint: Fingerprint
    parts: FingerprintParts
    dtype: torch.dtype
    device: torch.device
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    optimization: Optimization


def load_model(
    id: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    cache_dir: Path,
    threads: int = 0,
    optimize: bool = True,
    progress: Progress | None = None,
) -> ModelHandle:
    """Load model ``id`` (see ``resolve``) and check that the attention seam can serve it.

    ``threads`` sets torch's threads for the whole process (0: leave them); ``optimize`` packs linear layers on the CPU;
    ``progress`` is called with a stage and a fraction from 0 to 1. Reads only local files, unless ``id`` is a hub id. Raises
    InvalidInput for a value that is not allowed or a model that is incomplete, UnsupportedModel for an architecture that can't
    be served, StorageFailed when a conversion can't be written.
    """
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    if threads < 0:
        raise InvalidInput(f"threads is {threads}; allowed are 0 (torch's default) and above")
    if threads:
        torch.set_num_threads(threads)
    report = progress or (lambda _stage, _fraction: None)
    directory = resolve(id, cache_dir, progress)
    report(STAGE, 0.0)
    config = _read_config(directory)
    check_config(config)
    max_context = _max_context(config)
    tokenizer = _read_tokenizer(directory)
    report(STAGE, 0.2)
    model = _read_weights(directory, config, torch_dtype).to(torch_device)  # type: ignore[arg-type]  # decorated without types
    report(STAGE, 0.7)
    shape = check_calls(model, max_context)
    optimization = Optimization(reason="switched off")
    if optimize and torch_device.type == "cpu":
        optimization = optimize_for_cpu(model)
    parts = FingerprintParts(
        config=fingerprint.config_hash(json.loads((directory / "config.json").read_bytes())),
        weights=fingerprint.weights_hash(weight_files(directory), cache_dir),
        dtype=str(torch_dtype),
        tokenizer=fingerprint.tokenizer_hash(tokenizer),
        template=fingerprint.template_hash(tokenizer.chat_template),
    )
    report(STAGE, 1.0)
    return _handle(id, model=model, tokenizer=tokenizer, shape=shape, parts=parts, max_context=max_context, optimization=optimization)


def _handle(
    name: str,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shape: KVShape,
    parts: FingerprintParts,
    max_context: int,
    optimization: Optimization,
) -> ModelHandle:
    return ModelHandle(
        model=model,
        tokenizer=tokenizer,
        config=model.config,
        name=name,
        fingerprint=parts.combined(),
        parts=parts,
        dtype=model.dtype,
        device=model.device,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_context=max_context,
        vocab_size=model.config.vocab_size,
        eos_token_ids=eos_token_ids(model, tokenizer),
        optimization=optimization,
    )


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is cuda when there is one. Raises InvalidInput."""
    if name not in DEVICES:
        raise InvalidInput(f"device {name!r} is unknown; allowed are {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for, but torch sees no CUDA device; allowed here are auto, cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called ``name``; ``auto`` is bf16 where ``device`` computes in it, else fp16 on cuda and fp32 on cpu.

    Raises InvalidInput.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InvalidInput(f"dtype {name!r} is unknown; allowed are auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every id that ends a reply according to the generation config, the config or the tokenizer."""
    found: set[int] = set()
    for ids in (getattr(model.generation_config, "eos_token_id", None), model.config.eos_token_id, tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


def _max_context(config: PreTrainedConfig) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 2:
        raise UnsupportedModel(f"{config.model_type} can't be served: its config names no trained length (max_position_embeddings)")
    return length


def _read_config(directory: Path) -> PreTrainedConfig:
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(directory, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{directory / 'config.json'} is not a config that transformers knows: {error}") from error


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    try:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(directory, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"model directory {directory} has no tokenizer that transformers can read: {error}") from error


def _read_weights(directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in eval mode without gradients. A weight that the files lack would be random: that is refused."""
    try:
        with quiet_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidInput(f"weights in {directory} can't be read: {error}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise InvalidInput(f"weights in {directory} are incomplete: {len(missing)} missing or of another shape, the first is {missing[0]}")
    return cast("PreTrainedModel", model.eval().requires_grad_(requires_grad=False))
