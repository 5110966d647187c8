"""Every registered compressor, in one matrix. A new one joins by being registered."""

from __future__ import annotations

import pytest
import torch
from support.segments import like, make_segment
from torch import Tensor
from torch.testing import assert_close

from agentmem.compression import Observe, SealedSegment, compressors, observed, select
from agentmem.errors import InvalidInput

NAMES = list(compressors)
OBSERVING = [name for name in NAMES if compressors.get(name).observes is not Observe.NONE]
BY_PLACE = {"random"}  # layer, head and position are all that it looks at
IN_ORDER = {"streaming", "h2o", "snapkv"} | BY_PLACE  # these tell tokens apart by their order

each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def case(name: str, **shape: object) -> SealedSegment:
    """Return a segment with the queries that the compressor observes."""
    return make_segment(compressors.get(name).observes, **shape)  # type: ignore[arg-type]


def score(name: str, segment: SealedSegment) -> Tensor:
    """Return the scores of the compressor with its defaults, after checking what holds for all."""
    scores = compressors.get(name)().score(segment)
    assert (torch.float32, segment.k.shape[:3], segment.k.device) == (scores.dtype, scores.shape, scores.device)
    assert bool(scores.isfinite().all())
    return scores


def test_the_documented_methods_are_registered() -> None:
    """The names that a policy may use are known once the package is imported."""
    documented = {"keydiff", "streaming", "h2o", "snapkv", "knorm", "expected_attention", "kvzip", "random"}
    assert documented <= set(NAMES)


@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 63, 200])
def test_scores_are_finite_fp32_of_the_right_shape(name: str, dtype: torch.dtype, group: int, tokens: int) -> None:
    """From one token to more than the windows, in every dtype of the model, with and without shared KV heads."""
    score(name, case(name, dtype=dtype, group=group, tokens=tokens, start=5))


@each_name
def test_equal_input_gives_equal_output(name: str) -> None:
    """Scoring twice gives the same bits, whatever torch's global seed is."""
    segment = case(name, tokens=100)
    first = score(name, segment)
    torch.manual_seed(1)
    assert torch.equal(first, score(name, segment))


@each_name
def test_the_segment_is_not_written_to(name: str) -> None:
    """K, V, queries and positions are the same after scoring."""
    used, fresh = case(name, tokens=70), case(name, tokens=70)
    score(name, used)
    for field in ("k", "v", "queries", "query_positions"):
        before, after = getattr(fresh, field), getattr(used, field)
        assert (before is None and after is None) or torch.equal(before, after), field


@each_name
def test_half_precision_is_only_a_way_to_store(name: str) -> None:
    """bf16 tensors give the scores of the same numbers in fp32."""
    half = case(name, dtype=torch.bfloat16, tokens=30)
    queries = None if half.queries is None else half.queries.float()
    assert torch.equal(score(name, like(half, k=half.k.float(), v=half.v.float(), queries=queries)), score(name, half))


@each_name
def test_views_of_longer_rows_score_alike(name: str) -> None:
    """K and V may be strided."""
    segment = case(name, tokens=30)
    k, v = (torch.cat([tensor, tensor], dim=2)[:, :, :30] for tensor in (segment.k, segment.v))
    assert torch.equal(score(name, segment), score(name, like(segment, k=k, v=v)))


@each_name
def test_layers_do_not_know_each_other(name: str) -> None:
    """A layer's scores are the same with and without the layers behind it; without those before it too, but for scores by place."""
    segment = case(name, layers=3)
    whole = score(name, segment)

    def part(layers: slice) -> SealedSegment:
        queries = None if segment.queries is None else segment.queries[layers]
        return like(segment, k=segment.k[layers], v=segment.v[layers], queries=queries)

    assert_close(score(name, part(slice(0, 1))), whole[:1])
    if name not in BY_PLACE:
        assert_close(score(name, part(slice(2, 3))), whole[2:])


@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_PLACE))
def test_heads_do_not_know_each_other(name: str) -> None:
    """With KV heads in another order, and their query groups along, the scores come in that order."""
    segment = case(name, kv_heads=3, group=2)
    order = [2, 0, 1]
    queries = segment.queries
    if queries is not None:
        queries = queries.unflatten(1, (3, 2))[:, order].flatten(1, 2)
    assert_close(score(name, segment)[:, order], score(name, like(segment, k=segment.k[:, order], v=segment.v[:, order], queries=queries)))


@pytest.mark.parametrize("name", OBSERVING)
def test_the_heads_of_a_group_are_equals(name: str) -> None:
    """Query heads of one group in another order give the same scores; of another group they do not."""
    segment = case(name, kv_heads=2, group=3)
    assert_close(score(name, segment), score(name, like(segment, queries=segment.queries[:, [2, 0, 1, 4, 5, 3]])))
    other = score(name, like(segment, queries=segment.queries[:, [3, 1, 2, 0, 4, 5]]))
    assert not torch.allclose(score(name, segment), other)


@pytest.mark.parametrize("name", sorted(set(NAMES) - IN_ORDER))
def test_tokens_are_a_set_where_order_says_nothing(name: str) -> None:
    """With tokens in another order the scores come in that order."""
    segment = case(name, tokens=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    assert_close(score(name, segment)[:, :, order], score(name, like(segment, k=segment.k[:, :, order], v=segment.v[:, :, order])))


@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_PLACE))
def test_a_segment_scores_alike_wherever_it_starts(name: str) -> None:
    """Only sinks and noise depend on the position in the session."""
    early = case(name, start=64, tokens=30)
    positions = None if early.query_positions is None else early.query_positions + 936
    assert torch.equal(score(name, early), score(name, like(early, start=1000, query_positions=positions)))


@each_name
@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_keys_that_are_all_equal_score_finitely(name: str, value: float) -> None:
    """Equal, zero and large vectors break no method, and a selection of the asked size comes out of the scores."""
    segment = case(name, tokens=70)
    flat = torch.full_like(segment.k, value)
    scores = score(name, like(segment, k=flat, v=flat))
    assert (2, 2, 4 + 33) == select(scores, 0.5, start=0, protect=0).shape


@each_name
def test_large_keys_and_queries_overflow_nothing(name: str) -> None:
    """Vectors far longer than a model's give finite scores."""
    segment = case(name, tokens=30)
    queries = None if segment.queries is None else segment.queries * 1e3
    score(name, like(segment, k=segment.k * 1e3, v=segment.v * 1e3, queries=queries))


@pytest.mark.parametrize("name", OBSERVING)
def test_pieces_of_attention_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query at a time or all at once: the same scores."""
    segment = case(name, tokens=90)
    whole = score(name, segment)
    monkeypatch.setattr(observed, "CHUNK", 1)
    assert_close(whole, score(name, segment))


@pytest.mark.parametrize("name", OBSERVING)
def test_missing_queries_are_named(name: str) -> None:
    """A compressor that observes refuses a segment without queries, or with none in it."""
    segment = case(name)
    with pytest.raises(InvalidInput, match="observes queries"):
        score(name, like(segment, queries=None, query_positions=None))
    with pytest.raises(InvalidInput, match="observes queries"):
        score(name, like(segment, queries=segment.queries[:, :, :0], query_positions=segment.query_positions[:0]))


@pytest.mark.parametrize("name", OBSERVING)
def test_a_key_that_all_queries_point_at_is_kept(name: str) -> None:
    """A planted heavy hitter is among the tenth that stays, in every head."""
    segment = case(name, tokens=60, dim=8)
    keys = segment.k.clone()
    keys[:, :, 20] = 30.0
    scores = score(name, like(segment, k=keys, queries=segment.queries.abs()))
    assert bool((select(scores, 0.1, start=0, protect=0) == 20).any(dim=-1).all())


@pytest.mark.gpu
@each_name
def test_scores_on_cuda_equal_those_on_the_cpu(name: str) -> None:
    """The same code runs on both devices, within fp32 rounding; recorded queries may still lie on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    segment = case(name, tokens=100, dim=64)
    moved = like(segment, k=segment.k.cuda(), v=segment.v.cuda())
    assert_close(score(name, segment), score(name, moved).cpu(), rtol=1e-3, atol=1e-4)
