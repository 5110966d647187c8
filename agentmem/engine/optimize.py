"""Linear layers on the CPU, with weights packed once into the layout that oneDNN computes in.

``F.linear`` repacks its weight at every call, which costs more than the product itself while few rows are decoded. Projections
that read the same input (q, k, v; gate, up) become one product. Results equal ``F.linear`` up to the order of sums; see
``TOLERANCE``. The operators are private to torch, so their absence is an outcome, not an error.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # largest error over the largest output, one layer
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # Llama, Mistral, Qwen2, Qwen3, Gemma3 and many more
ROWS_HINT = 1  # packed for decoding; measured as fast as any other hint up to 2,048 rows


@dataclass(frozen=True, slots=True)
class Optimization:
    """What was done: counts of packed layers, of those that share a product, and why anything was left as it was ('' : nothing)."""

    packed: int = 0
    fused: int = 0
    reason: str = ""


class PackedLinear(nn.Module):
    """A linear layer for inference on the CPU, fp32 or bf16: ``[..., in]`` to ``[..., out]``.

    Holds only the packed weight, which is neither a parameter nor in the state dict.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS_HINT)  # noqa: SLF001
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> Tensor:
        """An unpacked copy ``[out, in]``, for code that asks a layer for its dtype or device. Slow."""
        dense: Tensor = self._packed.to_dense()
        return dense

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``rows @ weight.T + bias``."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")  # noqa: SLF001
        return out


class SharedProduct:
    """One product for several layers, with biases all or none, that are called with the same tensor, one after the other.

    Whichever layer is called first computes for all; the others find the result by the identity of their input, and the last one
    lets go of it. Any other order or input is computed anew, so it costs time, never correctness, as long as nobody changes
    the input in place between the calls. Threads may share it: the only state is one reference to an immutable pair.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor | None] = [layer.bias for layer in layers]
        bias = torch.cat([part for part in biases if part is not None]) if biases[0] is not None else None
        self.linear = PackedLinear(torch.cat(weights), bias)
        self.sizes = [layer.out_features for layer in layers]
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def part(self, rows: Tensor, index: int) -> Tensor:
        """Return what layer ``index`` gives for ``rows``: ``[..., sizes[index]]``, a view of the common result."""
        last = self._last
        if last is None or last[0] is not rows:
            last = (rows, torch.split(self.linear(rows), self.sizes, dim=-1))
        self._last = None if index == len(self.sizes) - 1 else last
        return last[1][index]


class SharedLinear(nn.Module):
    """One of the layers of a ``SharedProduct``; stands where the ``nn.Linear`` stood."""

    def __init__(self, product: SharedProduct, index: int) -> None:
        super().__init__()
        self.product = product
        self.index = index
        self.in_features, self.out_features = product.linear.in_features, product.sizes[index]

    @property
    def weight(self) -> Tensor:
        """An unpacked copy ``[out, in]``. Slow."""
        return torch.split(self.product.linear.weight, self.product.sizes)[self.index]

    def forward(self, rows: Tensor) -> Tensor:
        """Return this layer's share of the product: ``[..., in]`` to ``[..., out]``."""
        return self.product.part(rows, self.index)


@torch.no_grad()
def optimize_for_cpu(model: nn.Module) -> Optimization:
    """Replace the ``nn.Linear`` layers of ``model``, in place, by packed ones; inference only from then on.

    Layer by layer, so that at most one layer's weights exist twice; a head tied to the embedding gets a packed copy and the
    embedding stays. What can't be packed (another dtype or device, subclasses such as quantised layers) is left as it was. The
    reason is logged and returned when that is everything.
    """
    reason = _why_not(model)
    if reason:
        log.info("linear layers are not packed: %s", reason)
        return Optimization(reason=reason)
    packed = fused = 0
    for module in list(model.modules()):
        for names in GROUPS:
            fused += _fuse(module, names)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and _packable(child):
                setattr(module, name, PackedLinear(child.weight, child.bias))
                packed += 1
    log.info("packed %d linear layers, %d of them into shared products", packed + fused, fused)
    return Optimization(packed + fused, fused)


def _why_not(model: nn.Module) -> str:
    """Return why no layer of ``model`` can be packed, '' when some can."""
    linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
    if not linear:
        return "there are no plain linear layers"
    if not any(_packable_kind(layer) for layer in linear):
        layer = linear[0]
        return f"weights are {layer.weight.dtype} on {layer.weight.device}; packed are float32 and bfloat16 on cpu"
    reasons = {why_no_packing(layer.weight.dtype) for layer in linear if _packable_kind(layer)}
    return "" if "" in reasons else "; ".join(sorted(reasons))


@functools.cache
def why_no_packing(dtype: torch.dtype) -> str:
    """Return why weights of ``dtype`` cannot be packed on this machine, '' when they can. Tried, not guessed."""
    try:
        PackedLinear(torch.eye(16, dtype=dtype), None)(torch.ones(1, 16, dtype=dtype))
    except (AttributeError, RuntimeError) as error:  # built without oneDNN, the operator was renamed, or the processor is too old
        return f"torch has no working oneDNN packing of {dtype}: {error}"
    return ""


def _packable_kind(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.dtype in TOLERANCE and layer.weight.device.type == "cpu"


def _packable(layer: nn.Linear) -> bool:
    return _packable_kind(layer) and not why_no_packing(layer.weight.dtype)


def _fuse(module: nn.Module, names: Iterable[str]) -> int:
    """Join the layers of ``module`` called ``names`` into one product; return how many were joined."""
    layers = [getattr(module, name, None) for name in names]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear) and _packable(layer)]
    alike = {(layer.in_features, layer.weight.dtype, layer.bias is None) for layer in linear}
    if len(linear) != len(layers) or len(alike) != 1:
        return 0
    product = SharedProduct(linear)
    for index, name in enumerate(names):
        setattr(module, name, SharedLinear(product, index))
    return len(linear)
