"""Looks at a built model through the attention seam: what a config can't tell is found out by running two tokens.

``check_calls`` records what the model hands to its attention function and refuses what the seam would get wrong. ``verify_seam``
then compares logits computed through the seam with those of transformers' eager attention.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from agentmem.engine.support import SUPPORTED
from agentmem.errors import UnsupportedModel

NAME = "agentmem-probe"
PROBE_TOKENS = 24
# Largest relative error of one row of logits, ||ours - reference|| / ||reference||: measured on SmolLM2-135M
# (30 layers), sdpa against eager, are 1.4e-6 in fp32 and 1.9e-2 in bf16.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Arguments that transformers passes along and that change nothing in what attention computes without a cache.
HARMLESS = frozenset({"dropout", "scaling", "sliding_window", "position_ids", "use_cache", "output_attentions", "output_router_logits"})
MEANING = {
    "softcap": "soft-capped attention logits",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "is_causal": "no causal mask: it is bidirectional",
}


@dataclass(frozen=True, slots=True)
class KVShape:
    """What the seam receives, the same in every layer. Counts; ``head_dim`` in elements."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(slots=True)
class _Recorder:
    """Collects the calls of one forward. Travels as a forward keyword, as the step's batch does."""

    layers: list[int] = field(default_factory=list)
    shapes: set[tuple[int, int, int, int]] = field(default_factory=set)  # heads, kv_heads, dim of keys, dim of values
    keys: list[Tensor] = field(default_factory=list)
    extras: set[str] = field(default_factory=set)


def _record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, probe: _Recorder, **kwargs: object
) -> tuple[Tensor, None]:
    """Attention that notes its arguments and returns zeros, so that no row learns of another."""
    probe.layers.append(int(getattr(module, "layer_idx", -1)))
    probe.shapes.add((query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
    probe.keys.append(key[0, :, -1].float())
    if attention_mask is not None:
        probe.extras.add("a mask that is not causal")
    given = {"is_causal": getattr(module, "is_causal", None)} | kwargs
    for name, value_given in given.items():
        if value_given is None or name in HARMLESS or (name == "is_causal" and value_given is True):
            continue
        probe.extras.add(MEANING.get(name, f"the attention argument {name!r}"))
    return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None


def check_calls(model: PreTrainedModel, max_context: int) -> KVShape:
    """Return the shape of K and V that ``model`` hands to its attention function, seen on a forward of two tokens.

    Not to be called while another thread runs the model: its attention function is swapped and put back. Raises UnsupportedModel
    when a layer's calls, shapes or arguments are not what the seam serves, or when tokens meet outside of attention (a convolution,
    a recurrent state, RoPE phases taken from the batch): then the second of two tokens changes with the first one.
    """
    AttentionInterface.register(NAME, _record)
    kind = model.config.model_type
    try:
        with attention(model, NAME):
            near, near_logits = _run(model, [1, 2], [0, 1])
            far, far_logits = _run(model, [3, 2], [max_context - 1, 1])
    except TypeError as error:
        raise UnsupportedModel(f"{kind} can't be served: attention doesn't get the forward's keywords ({error}). {SUPPORTED}") from error
    counts = Counter(near.layers)
    if set(counts) != set(range(model.config.num_hidden_layers)) or set(counts.values()) != {1}:
        found = ", ".join(f"layer {layer}: {count}" for layer, count in sorted(counts.items())) or "none"
        raise UnsupportedModel(f"{kind} can't be served: each layer must call attention once, found {found}. {SUPPORTED}")
    if near.extras:
        raise UnsupportedModel(f"{kind} can't be served: its attention takes {', '.join(sorted(near.extras))}. {SUPPORTED}")
    if len(near.shapes) != 1 or any(key_dim != value_dim for _, _, key_dim, value_dim in near.shapes):
        found = "; ".join(f"{h} heads, {k} KV heads, keys of {d}, values of {e}" for h, k, d, e in sorted(near.shapes))
        raise UnsupportedModel(f"{kind} can't be served: all K and V must have one shape, found {found}. {SUPPORTED}")
    tolerance = TOLERANCE[near_logits.dtype]
    pairs = [*zip(near.keys, far.keys, strict=True), (near_logits, far_logits)]
    if max(relative_error(a.flatten()[None], b.flatten()[None]) for a, b in pairs) > tolerance:
        raise UnsupportedModel(f"{kind} can't be served: a token changes with its neighbours outside of attention. {SUPPORTED}")
    heads, kv_heads, dim, _ = near.shapes.pop()
    return KVShape(layers=len(counts), heads=heads, kv_heads=kv_heads, head_dim=dim)


def _run(model: PreTrainedModel, token_ids: Sequence[int], positions: Sequence[int]) -> tuple[_Recorder, Tensor]:
    """Return what attention received for these two tokens and the logits ``[vocab]`` of the last one."""
    probe = _Recorder()
    with torch.no_grad():
        ids = torch.tensor([token_ids], device=model.device)
        where = torch.tensor([positions], device=model.device)
        logits = model(input_ids=ids, position_ids=where, use_cache=False, probe=probe).logits
    return probe, logits[0, -1]


@contextlib.contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run ``model`` with another attention implementation and put the old one back. Not thread safe: it is the model's config."""
    before = model.config._attn_implementation  # noqa: SLF001 (transformers has no public getter)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def probe_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Return the logits ``[len(token_ids), vocab]``, fp32 on the CPU, that eager attention computes. Swaps attention meanwhile."""
    with attention(model, "eager"), torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False).logits
    return logits[0].float().cpu()


def relative_error(reference: Tensor, ours: Tensor) -> float:
    """Return the largest ||ours - reference|| / ||reference|| over rows; infinity when either is not finite."""
    reference, ours = reference.double(), ours.double()
    error = ((ours - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-12)).max().item()
    return error if error == error else float("inf")  # noqa: PLR0124 (NaN)


def compare(reference: Tensor, ours: Tensor, dtype: torch.dtype) -> None:
    """Raise UnsupportedModel when a row of ``ours [T, vocab]`` is further from ``reference`` than ``TOLERANCE[dtype]``."""
    if reference.shape != ours.shape:
        raise UnsupportedModel(f"the attention seam returned logits {tuple(ours.shape)}, eager attention {tuple(reference.shape)}")
    error = relative_error(reference, ours.to(reference.device))
    if error > TOLERANCE[dtype]:
        raise UnsupportedModel(
            f"the attention seam does not reproduce the model: relative error of logits {error:.1e}, allowed {TOLERANCE[dtype]:.0e}"
        )


def verify_seam(model: PreTrainedModel, run_ours: Callable[[Sequence[int]], Tensor]) -> None:
    """Compare ``run_ours(token_ids) -> logits [T, vocab]`` with eager attention on ``PROBE_TOKENS`` tokens.

    A short probe can't see what only long contexts bring out (a window longer than the probe, soft-capping of small logits);
    ``support.check_config`` refuses those by name. Raises UnsupportedModel when they differ.
    """
    vocab = model.config.get_text_config().vocab_size
    token_ids = [(17 + 31 * index) % vocab for index in range(PROBE_TOKENS)]  # any fixed ids do
    reference = probe_logits(model, token_ids)
    compare(reference, run_ours(token_ids), model.dtype)
