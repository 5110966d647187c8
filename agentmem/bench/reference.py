"""Hugging Face's own ``generate`` with a full cache, on the same weights: what the service must equal, and is timed beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from agentmem.bench.measure import TokenTimes
from agentmem.bench.options import Options
from agentmem.bench.texts import TextSource
from agentmem.engine.model import ModelHandle, load_model
from agentmem.engine.resolve import resolve
from agentmem.errors import InternalError

_Config: Any = GenerationConfig  # transformers has no types for it
Progress = Callable[[str, float], None]


def load_text(options: Options) -> TextSource:
    """Return real text in the tokens of the model. Loads the tokenizer alone."""
    directory = resolve(options.model, options.cache_dir)
    return TextSource(cast("Any", AutoTokenizer.from_pretrained(directory, local_files_only=True)))


def prepare_model(options: Options, progress: Progress) -> Path:
    """Return the model's directory; ``progress`` gets a stage and a fraction while a GGUF file is converted."""
    return resolve(options.model, options.cache_dir, progress)


class Reference:
    """A model as transformers loads it, with its default attention (sdpa). Blocks the caller while it computes."""

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle
        self._model: Any = handle.model  # transformers decorates what it calls without types
        # What a call leaves unset, generate takes from here: the model's end token, repetition penalty and the like.
        self._model.generation_config = _Config()

    @classmethod
    def load(cls, options: Options, progress: Progress | None = None) -> Reference:
        """Load the model unoptimised, in this process. Errors as ``load_model``."""
        handle = load_model(
            options.model,
            dtype=options.dtype,
            cache_dir=options.cache_dir,
            threads=options.threads,
            optimize=False,
            progress=progress,
        )
        return cls(handle)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V that one token takes, over all layers."""
        handle = self.handle
        return 2 * handle.layers * handle.kv_heads * handle.head_dim * handle.dtype.itemsize

    def text(self) -> TextSource:
        """Return real text in the tokens of the model."""
        return TextSource(cast("Any", self.handle.tokenizer))

    def generate(self, prompt: Sequence[int], max_tokens: int) -> TokenTimes:
        """Return exactly ``max_tokens`` greedy tokens after ``prompt``, which is read anew."""
        clock = _Clock()
        ids = torch.tensor([list(prompt)], device=self.handle.device)
        config = _Config(do_sample=False, max_new_tokens=max_tokens, pad_token_id=0)
        began = time.perf_counter()
        out: Tensor = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=clock)
        new = tuple(out[0, len(prompt) :].tolist())
        if len(new) != max_tokens:
            raise InternalError(f"HF generate gave {len(new)} tokens instead of {max_tokens}")
        return TokenTimes(new, clock.times[1] - began, clock.times[-1] - began)

    @torch.inference_mode()
    def margin(self, context: Sequence[int]) -> float:
        """Return by how much the likeliest next token's logit leads the second's: how close a mismatch is to a tie."""
        ids = torch.tensor([list(context)], device=self.handle.device)
        top = self._model(ids, logits_to_keep=1).logits[0, -1].float().topk(2).values
        return float(top[0] - top[1])

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return fp32 log probabilities ``[len(positions), vocab]``, on the CPU, of what follows the token at each of ``positions``."""
        ids = torch.tensor([list(token_ids)], device=self.handle.device)
        kept = torch.tensor(list(positions), device=self.handle.device)
        logits: Tensor = self._model(ids, logits_to_keep=kept).logits[0]
        return logits.float().log_softmax(-1).cpu()


class _Clock(BaseStreamer):
    """Notes when ``generate`` hands over the prompt and then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last token was noted."""
