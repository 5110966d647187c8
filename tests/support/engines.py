"""An engine over a tiny random model, with an archive in memory and a runner that tests can stop and watch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.engine.batch import StepBatch
from agentmem.engine.engine import Engine
from agentmem.engine.restore import Restorer
from agentmem.engine.run import EngineRequest, Run
from agentmem.engine.runner import Runner
from agentmem.engine.scheduler import Limits
from agentmem.memory.hashing import Chain, chain_root
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch
from agentmem.memory.shape import KVShape
from agentmem.stores.mapped import ArchiveFormat, MappedBlock
from agentmem.stores.records import BlockUnavailable, LoadedBlock
from agentmem.types import BlockHash, Fingerprint, MissReason, Policy, RequestId, SamplingParams, TenantId, Tier

BLOCK = 8
PROMPT = list(range(10, 40))
LONG = [(7 * i) % 120 + 3 for i in range(100)]
MAX_LENGTH = 256
PATIENCE = 20.0  # seconds after which a test that waits for another thread gives up


class WatchedRunner(Runner):
    """Keeps the sizes of every step; between ``hold`` and ``let_go`` a step waits until it is allowed."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.sizes: list[list[int]] = []  # of each step: tokens of each session
        self.raises: list[Exception] = []  # what the next steps fail with
        self.started = threading.Semaphore(0)
        self._allowed: threading.Semaphore | None = None

    def hold(self) -> None:
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        if self._allowed is not None:
            self._allowed.release(steps)

    def let_go(self) -> None:
        gate, self._allowed = self._allowed, None
        if gate is not None:
            gate.release(10_000)

    @property
    def num_tokens(self) -> int:
        """Tokens computed so far."""
        return sum(map(sum, self.sizes))

    def forward(self, batch: StepBatch) -> Tensor:
        self.sizes.append([item.stop - item.start for item in batch.slices])
        self.started.release()
        gate = self._allowed
        if gate is not None and not gate.acquire(timeout=PATIENCE):
            raise TimeoutError("the test never let this step go on")
        if self.raises:
            raise self.raises.pop(0)
        return super().forward(batch)


class FakeArchive:
    """Blocks in a dict; a hash may be given an error instead, and ``gate`` stops every load until it is set."""

    def __init__(self) -> None:
        self.blocks: dict[BlockHash, LoadedBlock] = {}
        self.errors: dict[BlockHash, Exception] = {}
        self.loads: list[BlockHash] = []
        self.loading = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def save(self, pool: KVPool, branch: Branch, chain: Chain, tier: Tier = Tier.DISK) -> None:
        """Keep a copy of every full block of ``branch``. Engine thread."""
        size = chain.block_tokens
        for index in range(branch.length // size):
            pinned = pool.pin(branch, index * size, (index + 1) * size)
            k, v = pinned.tensors()
            self.blocks[chain.hashes[index]] = LoadedBlock(k.clone(), v.clone(), tier)
            pool.unpin(pinned)

    def contains(self, block_hash: BlockHash) -> bool:
        return block_hash in self.blocks

    def map(self, block_hash: BlockHash) -> MappedBlock:
        block = self.load(block_hash)
        return MappedBlock(block_hash, ArchiveFormat.NATIVE, block.k, block.v, tier=block.tier)

    def load(self, block_hash: BlockHash) -> LoadedBlock:
        self.loads.append(block_hash)
        self.loading.set()
        if not self.gate.wait(PATIENCE):
            raise TimeoutError("the test never opened the archive")
        if block_hash in self.errors:
            raise self.errors[block_hash]
        if block_hash not in self.blocks:
            raise BlockUnavailable(MissReason.NEW, "never stored")
        return self.blocks[block_hash]


def shape_of(model: PreTrainedModel) -> KVShape:
    """Return the geometry of the K and V of ``model`` on its device and in its dtype."""
    config: Any = model.config
    return KVShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, model.dtype, model.device)


def pool_for(model: PreTrainedModel, rows: int, block_tokens: int = BLOCK) -> KVPool:
    """Return an empty pool with a budget of ``rows`` rows."""
    shape = shape_of(model)
    return KVPool(shape, rows * shape.row_bytes, block_tokens)


@asynccontextmanager
async def running(
    runner: Runner,
    *,
    rows: int = 2000,
    limits: Limits | None = None,
    archive: FakeArchive | None = None,
    threads: int = 0,
    small: PreTrainedModel | None = None,
) -> AsyncIterator[Engine]:
    """Start an engine over ``runner`` and stop it at the end, whatever happened; its books must add up then.

    ``small`` is a model that drafts.
    """
    drafting = None if small is None else (Runner(small), pool_for(small, rows))
    pool = pool_for(runner.model, rows)
    engine = Engine(runner, pool, Restorer(archive or FakeArchive(), BLOCK), limits or Limits(8, 16, 32, 64), threads, small=drafting)
    engine.start()
    try:
        yield engine
        await engine.call(pool.check_integrity)
        if drafting is not None:
            await engine.call(drafting[1].check_integrity)
    finally:
        if isinstance(runner, WatchedRunner):
            runner.let_go()
        if archive is not None:
            archive.gate.set()
        await asyncio.to_thread(engine.stop)


def chain_of(tokens: Iterable[int], tenant: str = "t") -> Chain:
    """Return the chain of ``tokens``, salted by the tenant's name."""
    return Chain(chain_root(tenant.encode(), Fingerprint("tiny"), BLOCK, "float32"), BLOCK, tokens)


def request(tokens: Iterable[int], *, n: int | None = 8, tenant: str = "t", **changes: Any) -> EngineRequest:
    """Return a greedy request for ``n`` tokens after ``tokens``; ``n`` None only computes K and V.

    ``changes`` go to the request, or to its sampling where that has a field of the name. Unless its policy says otherwise it drafts
    nothing, so that steps can be counted.
    """
    fields = SamplingParams.__dataclass_fields__
    sampling = {name: changes.pop(name) for name in list(changes) if name in fields and name != "seed"}
    params = None if n is None else SamplingParams(max_tokens=n, **sampling)
    settings: dict[str, Any] = {"max_length": MAX_LENGTH, "policy": Policy(drafter="none")} | changes
    return EngineRequest(RequestId("r"), TenantId(tenant), chain_of(tokens, tenant), sampling=params, **settings)


async def finished(run: Run) -> Run:
    """Wait until ``run`` is done and return it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            news = run.news
            if run.done:
                return run
            await news.wait()


async def until(run: Run, happened: Callable[[Run], bool]) -> None:
    """Wait for news of ``run`` until ``happened``."""
    async with asyncio.timeout(PATIENCE):
        while True:
            news = run.news
            if happened(run):
                return
            await news.wait()


async def acquire(semaphore: threading.Semaphore) -> None:
    """Wait for a semaphore of another thread without blocking the event loop."""
    if not await asyncio.to_thread(semaphore.acquire, timeout=PATIENCE):
        raise TimeoutError("the engine never got there")


def ids(run: Run) -> list[int]:
    """Return the token ids that ``run`` has generated."""
    return [output.token_id for output in run.outputs]


def greedy(model: PreTrainedModel, tokens: Sequence[int], n: int) -> list[int]:
    """Return the ``n`` tokens that HF's own generate makes of ``tokens`` with its full cache."""
    hf: Any = model
    hf.generation_config.eos_token_id = None  # so that n tokens come out
    prompt = torch.tensor([list(tokens)])
    out = hf.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, use_cache=True)
    generated: list[int] = out[0, len(tokens) :].tolist()
    return generated


class Oracle:
    """Knows what ``model`` says, by HF's own generate, and remembers it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def __call__(self, tokens: Sequence[int], n: int = 8) -> list[int]:
        key = (tuple(tokens), n)
        if key not in self._known:
            self._known[key] = greedy(self.model, tokens, n)
        return self._known[key]


async def done(engine: Engine, asked: EngineRequest) -> Run:
    """Submit a request and return its run once it has ended."""
    return await finished(await engine.submit(asked))


async def archived(engine: Engine, archive: FakeArchive, tokens: list[int] = LONG) -> Run:
    """Compute ``tokens``, keep their blocks in the archive and take them from the device."""
    run = await done(engine, request(tokens, n=None))
    await engine.call(archive.save, engine.pool, run.branch, run.chain)
    await engine.call(engine.pool.spill_idle)
    return run


async def expire(engine: Engine, run: Run) -> None:
    """Move the deadline of ``run`` to now and let the engine notice."""
    run.request = replace(run.request, deadline=time.monotonic())
    async with asyncio.timeout(PATIENCE):
        while run.cancel_reason is None:
            await engine.call(lambda: None)
