"""Attention over one part of a view, with the log-sum-exp that lets disjoint parts be merged exactly.

softmax over a union of disjoint key sets is the average of the softmaxes over each, weighted by exp(lse): the identity
behind FlashAttention (Dao et al. 2022, arXiv:2205.14135) and cascade inference. ``attend_reference`` is the judge of every
faster backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from agentmem.registry import Registry

AttendFn = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]

backends: Registry[AttendFn] = Registry("attention backend")


@backends.register("reference")
def attend_reference(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attend in plain fp32.

    q ``[heads, T, D]``; k, v ``[kv_heads, N, D]``, heads a multiple of kv_heads. ``causal``: query i sees keys up to
    ``N - T + i``. Returns out ``[heads, T, D]`` in fp32 and lse ``[heads, T]`` in fp32, natural logarithm, of the scaled scores.
    """
    heads, n_q, dim = q.shape
    kv_heads, n_k, _ = k.shape
    grouped = q.float().reshape(kv_heads, heads // kv_heads, n_q, dim)
    scores = torch.einsum("hgtd,hnd->hgtn", grouped, k.float()) * scale
    if causal:
        visible = torch.ones(n_q, n_k, dtype=torch.bool, device=q.device).tril(n_k - n_q)
        scores = scores.masked_fill(~visible, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    out = torch.einsum("hgtn,hnd->hgtd", torch.exp(scores - lse[..., None]), v.float())
    return out.reshape(heads, n_q, dim), lse.reshape(heads, n_q)


@backends.register("flash_cpu")
def attend_flash_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with torch's CPU flash kernel; shapes as ``attend_reference``, out in q's dtype.

    Without a mask the query heads of a KV head are folded into rows, so that each key is read once for the group. A causal
    part must be square (T equal to N), since the kernel aligns its mask to the first key.
    """
    heads, n_q, dim = q.shape
    kv_heads, n_k, _ = k.shape
    group = heads // kv_heads
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001 - the public function has no lse
    if causal and n_q > 1:
        keys = k[:, None].expand(kv_heads, group, n_k, dim)
        values = v[:, None].expand(kv_heads, group, n_k, dim)
        out, lse = flash(q.reshape(kv_heads, group, n_q, dim), keys, values, dropout_p=0.0, is_causal=True, scale=scale)
    else:
        out, lse = flash(q.reshape(1, kv_heads, group * n_q, dim), k[None], v[None], dropout_p=0.0, is_causal=False, scale=scale)
    return out.reshape(heads, n_q, dim), lse.reshape(heads, n_q)


@backends.register("flash_cuda")
def attend_flash_cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with torch's CUDA flash kernel (fp16, bf16); shapes as ``attend_flash_cpu``."""
    heads, n_q, dim = q.shape
    kv_heads, n_k, _ = k.shape
    group = heads // kv_heads
    folded = not (causal and n_q > 1)
    queries = q.reshape(1, kv_heads, group * n_q, dim) if folded else q[None]
    keys = k[None] if folded else k[:, None].expand(kv_heads, group, n_k, dim).reshape(1, heads, n_k, dim)
    values = v[None] if folded else v[:, None].expand(kv_heads, group, n_k, dim).reshape(1, heads, n_k, dim)
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default  # noqa: SLF001 - the public function has no lse
    out, lse, *_ = flash(queries, keys, values, dropout_p=0.0, is_causal=not folded, return_debug_mask=False, scale=scale)
    return out.reshape(heads, n_q, dim), lse[..., : queries.shape[2]].reshape(heads, n_q)


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttendFn:
    """Return the fastest backend that this device and dtype have; the reference where the private kernels are missing."""
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return backends.get("flash_cpu")
    if device.type == "cuda" and half and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention"):
        return backends.get("flash_cuda")
    return backends.get("reference")


def attend_recalled(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, *, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to rows of which each KV head has another number, in plain fp32: for devices and methods without a kernel.

    q ``[heads, D]``; k, v ``[kv_heads, N, D]``, of head h the first ``counts[h]`` rows are valid; ``bias`` ``[heads, N]`` or None is
    added to the scaled scores. Returns out ``[heads, D]`` and lse ``[heads]`` (zeros and -inf where there is nothing), both fp32.
    """
    heads, dim = q.shape
    kv_heads, n_k, _ = k.shape
    scores = torch.einsum("hgd,hnd->hgn", q.float().reshape(kv_heads, heads // kv_heads, dim), k.float()) * scale
    if bias is not None:
        scores = scores + bias.reshape(kv_heads, heads // kv_heads, n_k)
    valid = torch.arange(n_k, device=q.device)[None] < counts[:, None]
    scores = scores.masked_fill(~valid[:, None], float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).masked_fill(~valid[:, None], 0.0)
    values = v.float().masked_fill(~valid[..., None], 0.0)  # rows that were never filled may hold anything
    return torch.einsum("hgn,hnd->hgd", weights, values).reshape(heads, dim), lse.reshape(heads)


def merge(outs: Tensor, lses: Tensor) -> Tensor:
    """Merge parts exactly: outs ``[parts, heads, T, D]``, lses ``[parts, heads, T]`` (-inf: an empty part) -> ``[heads, T, D]``."""
    weights = torch.softmax(lses, dim=0)
    return (outs * weights[..., None]).sum(dim=0)


def attend_window(q: Tensor, k: Tensor, v: Tensor, *, offset: int, window: int, scale: float) -> Tensor:
    """Attend within a sliding window, as one masked part.

    q ``[heads, T, D]``; k, v ``[kv_heads, N, D]``; query i stands at key index ``offset + i`` and sees the ``window`` keys
    that end there. Returns ``[heads, T, D]`` in q's dtype.
    """
    n_q, n_k = q.shape[1], k.shape[1]
    at = torch.arange(n_q, device=q.device)[:, None] + offset
    keys = torch.arange(n_k, device=q.device)[None]
    visible = (keys <= at) & (keys > at - window)
    return scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible[None, None], scale=scale, enable_gqa=True)[0]
