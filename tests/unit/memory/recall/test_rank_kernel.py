"""Scoring, ranking and choosing candidates, and comparing queries, against what a few lines of numpy say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.archives import archived, random_kv, recallable

from agentmem.compression.simhash import encode, projection
from agentmem.memory.recall.rank_kernel import nth_highest, rank_of, scorer, select, sign_codes, turn_away
from agentmem.memory.recall.ranking import Ranking
from agentmem.stores.mapped import ArchiveFormat


@pytest.mark.parametrize("values", [[3.0], [1, 1, 1, 1], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [2, -1, 2, 0, 2, -7, 9]])
def test_the_nth_highest(values: list[float]) -> None:
    """Every place, sorted or not, with equals; the input stays."""
    given = np.array([*values, 100.0], np.float32)  # the last is beyond n
    for nth in range(1, len(values) + 1):
        assert sorted(values, reverse=True)[nth - 1] == nth_highest(given, len(values), nth)
    assert [*values, 100.0] == given.tolist()


def test_the_nth_highest_of_many() -> None:
    """Random numbers, many of them equal."""
    generator = np.random.default_rng(0)
    for n in (10, 257, 1000):
        values = generator.integers(0, n // 2, n).astype(np.float32)
        for nth in (1, n // 3, n):
            assert np.sort(values)[n - nth] == nth_highest(values, n, nth)


def test_the_best_are_taken_in_order_and_of_equals_the_first() -> None:
    """The order of the candidates stays; room beyond the best goes to the first of the equals."""
    found, rank, ids = np.array([9, 4, 7, 2, 5], np.int32), np.array([1, 3, 2, 2, 2], np.float32), np.zeros(5, np.int32)
    assert 3 == select(found, rank, 5, 3, ids)
    assert [4, 7, 2] == ids[:3].tolist()
    assert 5 == select(found, rank, 5, 8, ids)
    assert found.tolist() == ids.tolist()


def test_a_token_ranks_by_the_query_that_misses_it_most() -> None:
    """A query whose scores are small gets its best token as surely as one with large scores."""
    score = np.array([[100, 90, 80], [0.1, 0.2, 0.3]], np.float32)
    rank = np.empty(3, np.float32)
    rank_of(score, 3, rank)
    np.testing.assert_allclose([0, -0.1, 0], rank, atol=1e-6)


@pytest.mark.parametrize("format", list(ArchiveFormat))
def test_scores_are_products_with_archived_keys(format: ArchiveFormat) -> None:
    """Also dequantised ones, more than a tile of them, across blocks."""
    k, v = random_kv((2, 2, 150, 32), torch.bfloat16)
    rows = archived(k, v, format)
    q = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    found = np.random.default_rng(2).permutation(150).astype(np.int32)[:77]
    out = np.empty((2, 80), np.float32)
    scorer(*rows.kind, 2)(rows.k, 1, 1, found, 77, q, out)
    expected = q[2:] @ archived(*rows_as_fp32(rows)).keys(1)[1].numpy()[found].T
    np.testing.assert_allclose(expected, out[:, :77], rtol=2e-2, atol=0.15)  # a quantised key is not rounded to bf16 before its score
    if format is ArchiveFormat.NATIVE:
        np.testing.assert_allclose(expected, out[:, :77], rtol=1e-5, atol=1e-5)


def rows_as_fp32(rows: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of both layers in fp32."""
    k, v = zip(*(rows.layer(layer) for layer in range(2)), strict=True)  # type: ignore[attr-defined]
    return torch.stack(k).float(), torch.stack(v).float()


def test_by_hand() -> None:
    """Two queries of one KV head; doubles, residents and none among the candidates."""
    k = torch.zeros(1, 1, 6, 32)
    k[0, 0, :, 0] = torch.tensor([9.0, 5, 4, 3, 2, 1])
    k[0, 0, :, 1] = torch.tensor([0.0, 1, 2, 3, 4, 5])
    resident = np.array([[[True, False, False, False, False, False]]])
    ranking = Ranking(recallable(k, k, resident, group=2))
    q = np.zeros((2, 32), np.float32)
    q[0, 0] = q[1, 1] = 1
    everything = np.array([[3, -1, 0, 5, 3, 1, 2, 4, 5]])
    for limit, expected in ((1, [5]), (2, [5, 1]), (4, [5, 1, 2, 4]), (9, [3, 5, 1, 2, 4])):
        found = ranking.best(0, everything, q, limit)
        assert [len(expected)] == found.counts.tolist()
        assert expected == found.ids[0, : len(expected)].tolist()
    assert 6 == ranking.host_bytes
    assert [0] == ranking.best(0, np.array([[-1, 0, -1]]), q, 3).counts.tolist()


def test_what_follows_is_a_candidate_too() -> None:
    """The token after each one chosen, once, unless there is none or it is resident; only as many count as were chosen."""
    k = torch.zeros(1, 2, 6, 32)
    resident = np.zeros((1, 2, 6), np.bool_)
    resident[0, 0, 3] = True
    chosen = np.array([[0, 2, 5, 4], [1, 3, 3, 3]], np.int32)
    candidates = np.array([[1, -1], [0, 2]])
    found = Ranking(recallable(k, k, resident)).best(0, candidates, np.zeros((2, 32), np.float32), 5, (chosen, np.array([4, 2])))
    assert [2, 3] == found.counts.tolist()
    assert [[1, 5], [0, 2, 4]] == [row[:n].tolist() for row, n in zip(found.ids, found.counts, strict=True)]


def test_turning_away() -> None:
    """A group turns with its lowest cosine, whatever the lengths, and takes its new queries; a zero query has turned nowhere."""
    now = np.array([[1, 0], [2, 0], [0, 0], [0, 4]], np.float32)
    cases = (([[3, 0], [1, 1], [5, 5], [0, 1]], 0.8, [True, False]), (now, 0.99, [False, False]), (-now, 0.5, [True, True]))
    for then, least, expected in cases:
        before = np.array(then, np.float32)
        held, away = before.copy(), np.empty(2, np.bool_)
        assert sum(expected) == turn_away(now, held, least, away)
        assert expected == away.tolist()
        own = np.repeat(away, 2)
        assert np.array_equal(np.where(own[:, None], now, before), held)


@pytest.mark.parametrize(("bits", "dim"), [(64, 16), (256, 64), (512, 128)])
def test_codes_are_those_that_sealing_makes(bits: int, dim: int) -> None:
    """The same bits in the same places, but where a product is so near zero that the order of a sum decides."""
    x = torch.randn((5, dim), generator=torch.Generator().manual_seed(0))
    codes = np.empty((5, bits // 8), np.uint8)
    sign_codes(x.numpy(), projection(0, dim, bits).numpy(), codes)
    clear = ((x @ projection(0, dim, bits).T).abs() > 1e-4).numpy()
    assert clear.mean() > 0.99
    same = np.unpackbits(codes ^ encode(x, projection(0, dim, bits)).numpy(), axis=1, bitorder="little") == 0
    assert same[clear].all()
    sign_codes(np.zeros((1, dim), np.float32), projection(0, dim, bits).numpy(), codes[:1])
    assert not codes[:1].any()
