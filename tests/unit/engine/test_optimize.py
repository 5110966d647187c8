from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import FAMILIES, llama
from torch import nn
from torch.nn import functional

from agentmem.engine import optimize
from agentmem.engine.optimize import TOLERANCE, PackedLinear, SharedLinear, SharedProduct, optimize_for_cpu, why_no_packing

DTYPES = tuple(
    pytest.param(dtype, marks=pytest.mark.skipif(bool(why_no_packing(dtype)), reason=f"this processor does not pack {dtype}"))
    for dtype in TOLERANCE
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return ((expected.float() - actual.float()).abs().max() / expected.float().abs().max()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@given(rows=st.integers(1, 70), n_in=st.integers(1, 97), n_out=st.integers(1, 130))
@settings(max_examples=20, deadline=None)
def test_packed_linear_equals_linear(dtype: torch.dtype, bias: bool, rows: int, n_in: int, n_out: int) -> None:
    """For any shape the packed layer equals F.linear within the stated tolerance, and gives its weight back unchanged."""
    layer = nn.Linear(n_in, n_out, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)
    packed = PackedLinear(layer.weight, layer.bias)
    x = torch.randn(1, rows, n_in, dtype=dtype)
    expected = functional.linear(x.float(), layer.weight.float(), layer.bias.float() if bias else None)

    assert expected.shape == packed(x).shape
    assert error(expected, packed(x)) <= TOLERANCE[dtype]
    assert torch.equal(layer.weight, packed.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_and_strided_rows(dtype: torch.dtype) -> None:
    """A step that needs no logits passes zero rows; a slice of a wider tensor gives what its copy gives."""
    packed = PackedLinear(torch.randn(24, 16, dtype=dtype), None)
    wide = torch.randn(1, 5, 32, dtype=dtype)

    assert (1, 0, 24) == packed(wide[:, :0, :16]).shape
    assert torch.equal(packed(wide[..., 16:].contiguous()), packed(wide[..., 16:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_optimized_model_gives_the_same_logits(family: str, dtype: torch.dtype, tied: bool) -> None:
    """Every family's logits stay within four times a layer's tolerance, for one row and for many; all linears are packed."""
    model = FAMILIES[family](tie_word_embeddings=tied).to(dtype)
    ids = torch.randint(0, 128, (1, 40))
    with torch.no_grad():
        expected = [model(ids).logits, model(ids[:, :1]).logits]
        done = optimize_for_cpu(model)
        actual = [model(ids).logits, model(ids[:, :1]).logits]

    layers = model.config.num_hidden_layers
    assert (7 * layers + 1, 5 * layers, "") == (done.packed, done.fused, done.reason)
    assert not [layer for layer in model.modules() if type(layer) is nn.Linear]
    for one, other in zip(expected, actual, strict=True):
        assert error(one, other) <= 4 * TOLERANCE[dtype]


def test_generate_still_works() -> None:
    """Transformers' own generation runs on the packed model and gives the same greedy tokens in fp32."""
    model = llama()
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    optimize_for_cpu(model)

    assert torch.equal(expected, model.generate(ids, max_new_tokens=12, do_sample=False))


def test_untied_weights_exist_once() -> None:
    """The unpacked weights are gone after packing, those of the embedding are not."""
    model = llama()
    plain = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)]
    optimize_for_cpu(model)
    gc.collect()

    assert [None] * len(plain) == [weight() for weight in plain]
    assert model.get_input_embeddings().weight.shape == (128, 64)


def test_a_tied_head_gets_a_copy_and_the_embedding_stays() -> None:
    """Packing the head of a tied model leaves the embedding as it was."""
    model = llama(tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    expected = embedding.clone()
    optimize_for_cpu(model)

    assert embedding is model.get_input_embeddings().weight
    assert torch.equal(expected, embedding)
    assert torch.equal(expected, model.lm_head.weight)


def shared(sizes: tuple[int, ...] = (8, 4, 4), *, bias: bool = True) -> tuple[list[nn.Linear], list[SharedLinear], SharedProduct]:
    layers = [nn.Linear(16, size, bias=bias).requires_grad_(requires_grad=False) for size in sizes]
    product = SharedProduct(layers)
    return layers, [SharedLinear(product, index) for index in range(len(sizes))], product


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_shared_layers_are_right_in_any_order(calls: list[tuple[int, int]]) -> None:
    """Whatever layer is called with whatever input, in any order, it gives what it would give alone."""
    layers, parts, _ = shared()
    inputs = [torch.randn(1, rows, 16) for rows in (1, 1, 3)]
    for layer, chosen in calls:
        x = inputs[chosen]
        assert torch.allclose(layers[layer](x), parts[layer](x), atol=1e-5)


def test_shared_product_is_computed_once_and_let_go() -> None:
    """q, k, v of one input cost one product, and nothing of a step is kept after the last of them."""
    _, parts, product = shared(bias=False)
    runs = []
    product.linear.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(1, 2, 16)
    for part in parts:
        part(x)

    assert [1] == runs
    assert product._last is None
    assert (4, 16) == parts[1].weight.shape


def test_shared_layers_may_be_called_from_several_threads() -> None:
    """Two threads on one model never see each other's results."""
    layers, parts, _ = shared()
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(200):
            x = torch.randn(1, 1, 16, generator=generator)
            if not all(torch.allclose(layer(x), part(x), atol=1e-5) for layer, part in zip(layers, parts, strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_layers_that_are_not_alike_stay_apart() -> None:
    """Projections of which only some have a bias are packed one by one; subclasses of nn.Linear are left alone."""

    class Quantised(nn.Linear):
        pass

    module = nn.Module()
    module.q_proj, module.k_proj, module.v_proj = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
    module.gate_proj, module.up_proj = nn.Linear(8, 8), Quantised(8, 8)
    done = optimize_for_cpu(module)

    assert (4, 0) == (done.packed, done.fused)
    assert isinstance(module.up_proj, Quantised)


def test_nothing_to_pack_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """fp16 weights, weights on another device and models without linear layers are left as they are, with a logged reason."""
    caplog.set_level(logging.INFO, logger=optimize.__name__)

    assert "torch.float16" in optimize_for_cpu(nn.Sequential(nn.Linear(4, 4).half())).reason
    assert "meta" in optimize_for_cpu(nn.Sequential(nn.Linear(4, 4, device="meta"))).reason
    assert "no plain linear" in optimize_for_cpu(nn.Sequential(nn.LayerNorm(4))).reason
    assert 3 == caplog.text.count("not packed")


@pytest.mark.parametrize("failure", [AttributeError("no _reorder_linear_weight"), RuntimeError("built without mkldnn")])
def test_without_the_operators_the_model_stays(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """A torch without oneDNN's operators leaves the model untouched and gives the reason."""

    def missing(*_: object) -> None:
        raise failure

    monkeypatch.setattr(optimize.PackedLinear, "forward", missing)
    monkeypatch.setattr(optimize, "why_no_packing", why_no_packing.__wrapped__)  # asked anew: not what the machine said before
    model = nn.Sequential(nn.Linear(4, 4))
    done = optimize_for_cpu(model)

    assert 0 == done.packed
    assert str(failure) in done.reason
    assert type(model[0]) is nn.Linear
