"""Which models the attention seam can serve, decided from their config; the rest are refused by the name of what is missing.

The seam runs many sessions in one flattened row and attends to K and V as the model's attention function receives them. So tokens
may meet only in attention, attention must be plain causal softmax(q.k * scale) (optionally over a sliding window), keys must
carry phases that depend on their own position alone, and all layers must have K and V of one shape. ``probe.check_calls`` looks
at the built model for what a config can't tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from agentmem.errors import UnsupportedModel

SUPPORTED = "served are decoders with plain causal attention, full or sliding: Llama, Mistral, Qwen2, Qwen3, Gemma3 (text) and their like"
PER_LAYER = "one a layer"
LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# Phases are a function of a token's own position. "dynamic" and "longrope" switch frequencies with the longest position of the batch.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "proportional"})


class Refusal(NamedTuple):
    """One thing the seam can't do: its name, and a test on the config that returns what was found ('' : nothing)."""

    name: str
    found: Callable[[PreTrainedConfig], str]


def _read(config: PreTrainedConfig, name: str) -> Any:  # noqa: ANN401 (configs hold anything)
    """Return an attribute of ``config``: None when there is none, ``PER_LAYER`` when it has one value for each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # how a heterogeneous config of transformers answers for what its layers do not agree on
        return PER_LAYER


def _setting(name: str) -> Callable[[PreTrainedConfig], str]:
    """Return a test that finds ``name`` in a config when it is set to anything but None, False, 0 or an empty list."""
    return lambda config: f"{name}={value!r}" if (value := _read(config, name)) else ""


def _known_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    try:
        found = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001 (there is no public look-up without building)
    except KeyError:
        return None
    return cast("type[PreTrainedModel]", found)


def _wraps_modalities(config: PreTrainedConfig) -> str:
    parts = [name for name in config.sub_configs if getattr(config, name, None) is not None]
    return ", ".join(parts)


def _rope_types(config: PreTrainedConfig) -> Iterator[str]:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]  # one entry per layer type, as in Gemma3
    for entry in nested or [parameters]:
        yield str(entry.get("rope_type", "default"))


def _odd_rope(config: PreTrainedConfig) -> str:
    return ", ".join(sorted(f"rope_type={kind!r}" for kind in set(_rope_types(config)) - ROPE_TYPES))


def _odd_layers(config: PreTrainedConfig) -> str:
    return ", ".join(sorted(set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES))


def _recurrent(config: PreTrainedConfig) -> str:
    """Return the class of a recurrent or hybrid model, known by the state that it keeps between tokens instead of K and V."""
    cls = _known_class(config)
    return cls.__name__ if cls is not None and getattr(cls, "_is_stateful", False) else ""


def _alibi(config: PreTrainedConfig) -> str:
    attention = getattr(config, "attn_config", None)
    always = config.model_type if config.model_type == "bloom" else ""
    return always or ("alibi=True" if getattr(config, "alibi", False) or getattr(attention, "alibi", False) else "")


def _head_lists(config: PreTrainedConfig) -> str:
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    values = {name: _read(config, name) for name in names}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value == PER_LAYER or isinstance(value, list | tuple))


REFUSALS = (
    Refusal("an encoder beside the decoder", _setting("is_encoder_decoder")),
    Refusal("linear attention, Mamba or another recurrent state", _recurrent),
    Refusal("parts for other modalities; point to its text model instead", _wraps_modalities),
    Refusal("cross attention", _setting("add_cross_attention")),
    Refusal("ALiBi position bias", _alibi),
    Refusal("soft-capped attention logits", _setting("attn_logit_softcapping")),
    Refusal("bidirectional attention", _setting("use_bidirectional_attention")),
    Refusal("latent K and V (MLA)", _setting("kv_lora_rank")),
    Refusal("K and V shared between layers", _setting("num_kv_shared_layers")),
    Refusal("layers other than full and sliding attention", _odd_layers),
    Refusal("RoPE whose phases depend on the rest of the batch, or an unknown kind", _odd_rope),
    Refusal("head counts that differ between layers", _head_lists),
)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the causal language model class of ``config``. Raises UnsupportedModel when transformers has none."""
    found = _known_class(config)
    if found is None:
        raise UnsupportedModel(f"{config.model_type}: transformers has no causal language model for it; {SUPPORTED}")
    return found


def check_config(config: PreTrainedConfig) -> None:
    """Raise UnsupportedModel, naming everything in ``config`` that the seam can't serve, before any weight is read."""
    found = [f"{refusal.name} ({what})" for refusal in REFUSALS if (what := refusal.found(config))]
    if not found and not model_class(config)._supports_attention_backend:  # noqa: SLF001 (the flag has no public name)
        found = [f"attention that can't be replaced ({model_class(config).__name__} lacks _supports_attention_backend)"]
    if found:
        raise UnsupportedModel(f"{config.model_type} can't be served: it has {'; it has '.join(found)}. {SUPPORTED}")
