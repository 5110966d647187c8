"""Runs the model once per step for all sessions of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.engine import attention_seam
from agentmem.engine.batch import StepBatch, Work, build_batch
from agentmem.engine.compacting import Heads
from agentmem.memory.pool import KVPool
from agentmem.memory.shape import KVShape


class Runner:
    """Holds a causal LM whose attention goes through the seam. Engine thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        attention_seam.register()
        self.model: Any = model  # transformers decorates what it calls without types
        self.model.set_attn_implementation(attention_seam.NAME)
        self.heads = _heads(self.model)
        self.windows = _windows(self.model)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Tensor:
        """Write K and V of every token of ``batch`` and return logits ``[len(batch.logits_rows), vocab]`` in fp32."""
        out = self.model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logits_rows,
            step=batch,
        )
        logits: Tensor = out.logits[0]
        return logits.float()

    def logits_of(self, token_ids: Sequence[int], shape: KVShape) -> Tensor:
        """Return the logits ``[len(token_ids), vocab]`` of a text on its own, fp32, by way of a pool that is thrown away.

        Half of it goes in as one chunk, the rest token by token, so that both ways of attending take part.
        """
        pool = KVPool(shape, len(token_ids) * shape.row_bytes, len(token_ids))
        branch = pool.match([])
        pool.reserve(branch, len(token_ids))
        half = len(token_ids) // 2
        chunks = [token_ids[:half], *([token_id] for token_id in token_ids[half:])]
        steps = [Work(branch, chunk, range(len(chunk))) for chunk in chunks if chunk]
        return torch.cat([self.forward(build_batch(pool, [work], shape.device)) for work in steps])


def _windows(model: Any) -> tuple[int, ...]:  # noqa: ANN401 - see Runner.model
    """Return how many tokens each layer's sliding window lets a query see, itself included; 0: all."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _heads(model: Any) -> Heads:  # noqa: ANN401 - see Runner.model
    """Return how the model's heads read; of models whose layers differ in scale, the first layer's."""
    config = model.config.get_text_config()
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = (module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "scaling"))
    scale = next((float(module.scaling) for module in layers), dim**-0.5)
    return Heads(config.num_attention_heads // config.num_key_value_heads, scale)
