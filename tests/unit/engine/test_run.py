from __future__ import annotations

import asyncio

from support.engines import request
from support.kv import grown, make_pool

from agentmem.engine.run import Run, RunState
from agentmem.types import MissReason, ReuseReport, Tier


async def test_pending_is_what_has_no_kv_yet() -> None:
    """Without a branch every token is pending, with one those beyond it."""
    run = Run(request([1, 2, 3, 4, 5]), asyncio.get_running_loop())
    assert [1, 2, 3, 4, 5] == run.pending
    run.branch = grown(make_pool(10), [1, 2, 3])

    assert [4, 5] == run.pending


async def test_the_reuse_report_adds_up_to_the_prompt() -> None:
    """Tokens read from each tier and tokens computed make the prompt, generated ones apart."""
    run = Run(request(range(20)), asyncio.get_running_loop())
    run.reused.update({Tier.DEVICE: 4, Tier.HOST: 3, Tier.DISK: 2, Tier.PEER: 1})
    run.miss = (MissReason.EVICTED, "from token 10 on")
    run.chain.extend([7, 8])

    assert ReuseReport(4, 3, 2, 1, 10, MissReason.EVICTED, "from token 10 on") == run.reuse_report()


async def test_waking_reaches_every_reader_once() -> None:
    """Readers that took the event before the news are woken by it, and wait again on the next one."""
    run = Run(request([1]), asyncio.get_running_loop())
    before = run.news
    readers = [asyncio.create_task(run.news.wait()) for _ in range(3)]
    await asyncio.to_thread(run.wake_threadsafe)
    await asyncio.gather(*readers)

    assert before.is_set()
    assert not run.news.is_set()


def test_waking_after_the_loop_closed() -> None:
    """News for a loop that is gone are dropped."""
    loop = asyncio.new_event_loop()
    run = Run(request([1]), loop)
    loop.close()
    run.wake_threadsafe()

    assert not run.done
    run.state = RunState.DONE
    assert run.done
