"""Compressors that look at queries get theirs from a background run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.replica import BLOCK, MAX_CONTEXT, Replica, running
from support.sealing import EXACT, WEAK, exact, talk

from agentmem.compression import Observe, SealJob, compressors
from agentmem.compression.recipe import Recipe
from agentmem.engine.observe import QueryRecorder
from agentmem.sessions.observing import Recordings, Repetition, observation_of, windows
from agentmem.types import BlockHash, Fidelity, Policy

JOB = SealJob((BlockHash(b"b" * 32),), 0, 4, Recipe())
OBSERVING = sorted(name for name in compressors if compressors.get(name).observes is not Observe.NONE)


@pytest.mark.parametrize(
    ("start", "stop", "count", "expected"),
    [
        (0, 16, 1, [(0, 16)]),
        (32, 320, 1, [(256, 320)]),
        (32, 320, 4, [(40, 104), (112, 176), (184, 248), (256, 320)]),
        (0, 130, 4, [(1, 65), (66, 130)]),  # two windows fit side by side
        (0, 60, 4, [(0, 60)]),
    ],
)
def test_windows(start: int, stop: int, count: int, expected: list[tuple[int, int]]) -> None:
    """As many as were asked for and fit, evenly spaced, none over another, the last at the end."""
    assert expected == [(window.start, window.stop) for window in windows(start, stop, count)]


@pytest.mark.parametrize("name", OBSERVING)
@pytest.mark.parametrize("policy", [EXACT, WEAK])
async def test_observing_compressors_seal(replica: Replica, name: str, policy: Policy) -> None:
    """Each gets what it wants to see, in exact and in approximate sessions, without changing what is said; no recording is left."""
    await replica.create(policy=replace(policy, compressor=name))
    await talk(replica, 2)
    session = await replica.settle()
    assert session.sealed is not None
    assert (len(session.chain) // BLOCK - 4) * BLOCK == session.sealed.length
    assert {name} == {job.recipe.compressor for job in session.sealed_by}
    assert [] == list((replica.state / "queries").iterdir())
    exact(replica, await replica.ask("a", "x", 8, ignore_eos=True, fidelity=Fidelity.EXACT))


async def test_what_is_recorded(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds the queries of the window's positions, for every layer and head."""
    seen: list[dict[str, torch.Tensor]] = []
    jobs: list[SealJob] = []
    seal = replica.core.executor.seal

    async def watched(job: SealJob) -> None:
        seen.append(load_file(job.queries))
        jobs.append(job)
        await seal(job)

    monkeypatch.setattr(replica.core.executor, "seal", watched)
    await replica.create(policy=replace(EXACT, compressor="snapkv"))
    await talk(replica, 2)
    end = jobs[-1].start + len(jobs[-1].blocks) * BLOCK
    assert list(range(end - 64, end)) == seen[-1]["positions"].tolist()
    shape = replica.core.engine.pool.shape
    heads = replica.core.engine.runner.heads.group * shape.kv_heads
    assert (shape.layers, heads, 64, shape.head_dim) == tuple(seen[-1]["queries"].shape)


async def test_reconstruction_leaves_the_session_alone(replica: Replica) -> None:
    """The model repeats the unit beside the session: its context ends with the unit's tokens, as many as the model's length allows."""
    await replica.create(policy=replace(EXACT, compressor="kvzip"))
    await talk(replica, 2)
    session = await replica.settle()
    job = session.sealed_by[-1]
    stop = job.start + len(job.blocks) * BLOCK
    for limit in (MAX_CONTEXT, stop + 10, 5):
        wish = observation_of(session, job, BLOCK, Repetition((7, 8), limit))
        assert wish is not None
        assert not wish.ours
        assert wish.request.branch is None
        tokens, (observed,) = wish.request.chain.tokens, wish.request.observe
        repeated = min(stop - job.start, max(1, limit - stop - 2))
        assert [*session.chain.tokens[:stop], 7, 8, *session.chain.tokens[job.start :][:repeated]] == tokens
        assert (stop + 2, len(tokens)) == (observed.start, observed.stop)
    branches = replica.core.engine.pool._branches
    assert {session.branch} == {branch for branch in branches if branch.alive}


async def test_an_observation_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    """A writer that comes in costs the recording, not the unit."""
    async with running(tmp_path) as replica:
        await replica.create(policy=replace(EXACT, compressor="h2o"))
        for index in range(3):
            await replica.ask("a", f"{index}" * 100, 10, ignore_eos=True)
        session = await replica.settle()
        assert session.sealed is not None
        assert (len(session.chain) // BLOCK - 4) * BLOCK == session.sealed.length


def test_recordings_outlive_neither_job_nor_process(tmp_path: Path) -> None:
    """What was said is in these files: they go with their job, and what a killed process left goes at the next start."""
    recordings = Recordings(tmp_path / "queries")
    recorder = QueryRecorder()
    recorder.see(0, range(3, 5), torch.ones(2, 2, 4), [])
    job = recordings.save(JOB, recorder)
    assert JOB.name == job.name
    assert (1, 2, 2, 4) == tuple(load_file(job.queries)["queries"].shape)
    again = recordings.save(JOB, recorder)
    recordings.remove(job)
    recordings.remove(again)
    recordings.remove(JOB)
    assert [] == list((tmp_path / "queries").iterdir())
    recordings.save(JOB, recorder)
    Recordings(tmp_path / "queries")
    assert [] == list((tmp_path / "queries").iterdir())
    assert 0o700 == (tmp_path / "queries").stat().st_mode & 0o777
