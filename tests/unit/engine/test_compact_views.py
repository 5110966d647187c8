from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch
from support.engines import BLOCK, LONG, FakeArchive, Oracle, WatchedRunner, archived, done, ids, request, running
from torch import Tensor

from agentmem.compression.simhash import encode, projection
from agentmem.engine.engine import Engine
from agentmem.engine.observe import QueryRecorder
from agentmem.engine.run import Run
from agentmem.memory.sealed import SealedMemory, SealedUnit
from agentmem.stores.records import BlockUnavailable
from agentmem.types import Fidelity, FinishReason, MissReason, Policy, Prefill, Tier

SEALED = 80  # tokens of LONG that are sealed, in two units
ALL = Policy(recall="oracle", recall_tokens=4096)
FEW = Policy(recall="oracle", recall_tokens=4, stride=1)


def unit(archive: FakeArchive, blocks: Sequence[bytes], start: int, stop: int, share: float) -> SealedUnit:
    """Return a unit whose residents are every n-th token, other ones in each head."""
    k = torch.cat([archive.blocks[name].k for name in blocks[start // BLOCK : stop // BLOCK]], dim=2)  # type: ignore[index]
    layers, heads, tokens, dim = k.shape
    kept = max(1, round(tokens * share))
    order = torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(s)) for s in range(layers * heads)])
    keep = order[:, :kept].sort(dim=1).values.reshape(layers, heads, kept).int() + start
    codes = torch.stack([encode(k[layer], projection(layer, dim, 64)) for layer in range(layers)])
    return SealedUnit(start, stop, keep, codes)


def sealed(archive: FakeArchive, run: Run, share: float, *, stop: int = SEALED) -> SealedMemory:
    """Return the first ``stop`` tokens of an archived run, sealed in two units."""
    blocks = tuple(run.chain.hashes[: stop // BLOCK])
    middle = stop // 2 // BLOCK * BLOCK
    return SealedMemory(blocks, (unit(archive, blocks, 0, middle, share), unit(archive, blocks, middle, stop, share)))


class Setting:
    """An engine whose archive holds LONG, and requests that attend to it under an approximate view."""

    def __init__(self, engine: Engine, archive: FakeArchive, run: Run) -> None:
        self.engine, self.archive, self.run = engine, archive, run

    async def ask(self, share: float, policy: Policy, fidelity: Fidelity = Fidelity.RECALL, **changes: Any) -> Run:
        memory = changes.pop("memory", None) or sealed(self.archive, self.run, share)
        tokens = changes.pop("tokens", LONG)
        return await done(self.engine, request(tokens, fidelity=fidelity, memory=memory, policy=policy, **changes))


@pytest.fixture
async def setting(runner: WatchedRunner) -> AsyncIterator[Setting]:
    archive = FakeArchive()
    async with running(runner, archive=archive) as engine:
        run = await archived(engine, archive)
        yield Setting(engine, archive, run)


async def rows(engine: Engine, run: Run, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return copies of K and V of the run's branch."""

    def copy() -> tuple[Tensor, Tensor]:
        assert run.branch is not None
        pinned = engine.pool.pin(run.branch, start, stop)
        k, v = (part.clone() for part in pinned.tensors())
        engine.pool.unpin(pinned)
        return k, v

    return await engine.call(copy)


@pytest.mark.parametrize(
    ("share", "policy", "fidelity"), [(1.0, FEW, Fidelity.COMPACT), (1.0, FEW, Fidelity.RECALL), (0.2, ALL, Fidelity.RECALL)]
)
async def test_a_view_that_leaves_nothing_out_is_exact(
    setting: Setting, oracle: Oracle, share: float, policy: Policy, fidelity: Fidelity
) -> None:
    """With all sealed tokens resident, or all others recalled, greedy tokens equal the full cache's: parts are disjoint and complete."""
    run = await setting.ask(share, policy, fidelity, n=24)

    assert oracle(LONG, 24) == ids(run)
    assert 1.0 == pytest.approx(run.attended)
    assert SEALED == run.branch.covers  # type: ignore[union-attr]
    assert (96, 4) == (run.reused[Tier.DISK], run.reuse_report().computed)  # the tail's blocks are read back too


async def test_dense_layers_attend_to_everything(setting: Setting, oracle: Oracle) -> None:
    """With as many dense layers as there are, nothing is left out, whatever is recalled; with fewer the share lies between."""
    everything = await setting.ask(0.1, Policy(recall="oracle", recall_tokens=1, dense_layers=99), n=12)
    some = await setting.ask(0.1, Policy(recall="oracle", recall_tokens=1, dense_layers=1), n=12)
    none = await setting.ask(0.1, Policy(recall="oracle", recall_tokens=1), n=12)

    assert oracle(LONG, 12) == ids(everything)
    assert none.attended < some.attended < everything.attended == 1.0


async def test_a_prompt_is_read_exactly(setting: Setting, oracle: Oracle) -> None:
    """Prompt tokens attend to everything: the first token is exact though next to nothing is resident, and nothing is approximate yet."""
    run = await setting.ask(0.1, FEW, Fidelity.COMPACT, n=1)

    assert oracle(LONG, 1) == ids(run)
    assert run.branch is not None
    assert (None, {}) == (run.branch.approx_from, run.decoded)


async def test_decoding_marks_what_it_writes(setting: Setting) -> None:
    """Rows written under an approximate view are marked from the first on, offered to nobody, and their predictions are kept."""
    run = await setting.ask(0.1, FEW, n=9)
    assert run.branch is not None

    assert (100, 108) == (run.branch.approx_from, run.branch.length)
    assert list(range(100, 108)) == sorted(run.decoded)
    assert run.attended < 0.5
    held = await setting.engine.call(lambda: [setting.engine.pool.holds(name) for name in run.chain.hashes[12:]])
    assert not any(held)


async def test_a_view_for_the_prompt_too(setting: Setting) -> None:
    """With prefill VIEW the prompt's tokens are computed one a step under the view, and marked."""
    run = await setting.ask(0.1, Policy(recall="none", prefill=Prefill.VIEW), n=3)
    assert run.branch is not None

    assert 96 == run.branch.approx_from  # what the archive has of the prompt is exact
    assert [[1]] * 6 == setting.engine.runner.sizes[-6:]  # type: ignore[attr-defined]
    assert {99, 100, 101} == set(run.decoded)


async def test_reencoding_makes_it_exact(setting: Setting, oracle: Oracle) -> None:
    """The idle re-encode replaces approximate K and V by what the full cache would hold, and reports how far off each prediction was."""
    policy = Policy(recall="none")
    memory = sealed(setting.archive, setting.run, 0.1)
    run = await setting.ask(0.1, policy, Fidelity.COMPACT, n=9, memory=memory)
    idle = {"background": True, "reencode": True, "decoded": run.decoded, "branch": run.branch, "memory": memory}
    sealing = await setting.ask(0.1, policy, Fidelity.COMPACT, n=None, tokens=run.chain.tokens, **idle)
    assert sealing.branch is not None

    assert (FinishReason.STOP, None, 109) == (sealing.finish_reason, sealing.branch.approx_from, sealing.branch.length)
    assert list(range(101, 109)) == [one.position for one in sealing.comparisons]
    assert any(one.kl > 1e-4 for one in sealing.comparisons)
    exact = await done(setting.engine, request(run.chain.tokens, n=None))
    for mine, theirs in zip(await rows(setting.engine, sealing, SEALED, 109), await rows(setting.engine, exact, SEALED, 109), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    again = await setting.ask(0.1, ALL, n=6, tokens=run.chain.tokens, branch=sealing.branch, memory=memory)
    assert oracle(run.chain.tokens, 6) == ids(again)


async def test_agreement_of_equal_views(setting: Setting) -> None:
    """A re-encode of tokens that were decoded under a complete view finds no difference."""
    memory = sealed(setting.archive, setting.run, 1.0)
    run = await setting.ask(1.0, FEW, n=9, memory=memory)
    idle = {"background": True, "reencode": True, "decoded": run.decoded, "branch": run.branch, "memory": memory}
    sealing = await setting.ask(1.0, FEW, n=None, tokens=run.chain.tokens, **idle)

    assert 8 == len(sealing.comparisons)
    assert all(one.agrees and one.kl < 1e-3 for one in sealing.comparisons)


async def test_switching_back_and_forth(setting: Setting, oracle: Oracle) -> None:
    """EXACT to RECALL takes the tail along, RECALL to EXACT reads the archive: the tokens stay those of the full cache."""
    exact = await done(setting.engine, request(LONG, n=8))
    memory = sealed(setting.archive, setting.run, 0.1)
    compact = await setting.ask(0.1, ALL, n=8, tokens=exact.chain.tokens, branch=exact.branch, memory=memory)
    back = await done(setting.engine, request(compact.chain.tokens, n=8, branch=compact.branch))

    assert 107 - SEALED == compact.reused[Tier.DEVICE]
    assert oracle(LONG, 24) == ids(exact) + ids(compact) + ids(back)
    assert 0 == back.branch.covers  # type: ignore[union-attr]


async def test_a_block_that_is_gone_shortens_what_is_sealed(setting: Setting, oracle: Oracle) -> None:
    """Units up to the lost block are used, the rest is computed again, and the report says why."""
    memory = sealed(setting.archive, setting.run, 0.2)
    setting.archive.errors[memory.blocks[7]] = BlockUnavailable(MissReason.CORRUPT, "bad sector")
    run = await setting.ask(0.2, ALL, n=8, memory=memory)

    assert oracle(LONG, 8) == ids(run)
    assert 40 == run.branch.covers  # type: ignore[union-attr]
    assert (MissReason.CORRUPT, 56, 44) == (run.miss[0], run.reused[Tier.DISK], run.reuse_report().computed)


async def test_a_compact_branch_is_reused_and_grows(setting: Setting, oracle: Oracle) -> None:
    """The same units serve the next turn as they are; other units make another compact branch that keeps the tail."""
    memory = sealed(setting.archive, setting.run, 0.2)
    first = await setting.ask(0.2, ALL, n=4, memory=memory)
    second = await setting.ask(0.2, ALL, n=4, tokens=first.chain.tokens, branch=first.branch, memory=memory)
    more = sealed(setting.archive, setting.run, 0.5)
    third = await setting.ask(0.5, ALL, n=4, tokens=second.chain.tokens, branch=second.branch, memory=more)

    assert (103, 1) == (second.reused[Tier.DEVICE], second.reuse_report().computed)
    assert (107 - SEALED, SEALED) == (third.reused[Tier.DEVICE], third.reused[Tier.DISK])
    assert oracle(LONG, 12) == ids(first) + ids(second) + ids(third)


async def test_observing_leaves_no_trace(setting: Setting) -> None:
    """Queries of archived and of resident tokens are recorded; nothing is written, and the branch stays as it was."""
    memory = sealed(setting.archive, setting.run, 0.2)
    run = await setting.ask(0.2, ALL, n=None, memory=memory)
    before = await rows(setting.engine, run, SEALED, 100)
    recorder = QueryRecorder()
    looking = {"background": True, "observe": (range(10, 30), range(75, 95)), "observer": recorder, "branch": run.branch}
    looked = await setting.ask(0.2, ALL, n=None, memory=memory, **looking)

    assert [*range(10, 30), *range(75, 95)] == recorder.positions.tolist()
    assert (3, 4, 40, 16) == tuple(recorder.queries.shape)
    for one, other in zip(before, await rows(setting.engine, looked, SEALED, 100), strict=True):
        assert torch.equal(one, other)
    exact = QueryRecorder()
    await done(setting.engine, request(LONG, n=None, background=True, observe=(range(10, 30), range(75, 95)), observer=exact))
    torch.testing.assert_close(recorder.queries, exact.queries, atol=1e-4, rtol=1e-4)
