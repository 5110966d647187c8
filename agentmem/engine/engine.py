"""The engine: one thread that owns the device, one step after the other, for all sessions."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from agentmem import faults
from agentmem.engine.background import is_complete, log_probabilities, note_background
from agentmem.engine.batch import Work, build_batch
from agentmem.engine.reading import Readers
from agentmem.engine.replies import reply_each
from agentmem.engine.restore import Restorer
from agentmem.engine.run import MAX_DECODED, Drafted, EngineRequest, Run, RunState, branch_of
from agentmem.engine.runner import Runner
from agentmem.engine.sampling import Sampler
from agentmem.engine.scheduler import Limits, Scheduler
from agentmem.engine.speculating import Speculator
from agentmem.engine.starting import Starter
from agentmem.engine.stats import EngineStats
from agentmem.errors import AgentMemError, ContextTooLong, Draining, InternalError, Overloaded
from agentmem.memory.pool import KVPool, PoolFull
from agentmem.memory.segment import Branch
from agentmem.types import FinishReason

T = TypeVar("T")
log = logging.getLogger(__name__)


class Engine:
    """Callers on an event loop ``submit`` requests and follow their runs; the thread does everything else.

    All books (pool, scheduler) belong to the thread; ``call`` runs a function there between two steps. ``threads`` are torch's
    threads for the engine thread (0: leave torch's default). It should be the only thread of the process with more than one:
    OpenMP puts idle threads to sleep at once where a process has more of them than cores, and waking them takes
    milliseconds of every step (measured: 20 instead of 14 ms a token). ``small``: a smaller model that drafts,
    and its pool.
    """

    def __init__(
        self,
        runner: Runner,
        pool: KVPool,
        restorer: Restorer,
        limits: Limits,
        threads: int = 0,
        *,
        small: tuple[Runner, KVPool] | None = None,
    ) -> None:
        self.runner = runner
        self.sampler = Sampler()
        self.pool = pool
        self.restorer = restorer
        self.stats = EngineStats()
        self.speculator = Speculator(self.stats)
        self.scheduler = Scheduler(pool, limits, self.speculator.draft)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.speculator.readers = Readers(runner, pool, restorer, self._inbox.put, small)
        self.starter = Starter(self.scheduler, restorer, runner.heads, self.stats, post=self._inbox.put, end=self._finish, fail=self._fail)
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._threads = threads
        self._ready = threading.Event()
        self._stopping = False
        self._gate = threading.Lock()  # between the last look into the inbox and what is put there
        self._ended = False

    # -- any thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine thread; returns when it has its threads, so that others may set theirs."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cancel what runs, end the thread and the loader's threads. Blocks until they are gone."""
        self._inbox.put(self._stop)
        self._thread.join()
        self.restorer.close()

    async def submit(self, request: EngineRequest) -> Run:
        """Accept ``request`` and return its run. Raises Overloaded when the queue is full, ContextTooLong when it can never fit."""
        run = Run(request, asyncio.get_running_loop())
        try:
            await self.call(self._accept, run)
        except asyncio.CancelledError:  # it may have been accepted all the same, and nobody would ever follow it
            self.cancel(run)
            raise
        return run

    async def call(self, function: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - the function's own arguments
        """Run ``function(*args)`` on the engine thread between two steps and return what it returns or raises.

        Raises Draining once the engine has stopped.
        """
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                future.set_exception(error)

        with self._gate:
            if self._ended:
                raise Draining("the engine has stopped")
            self._inbox.put(work)
        return await asyncio.wrap_future(future)

    def cancel(self, run: Run, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ask for ``run`` to end before the next step; what it has generated stays."""
        run.cancel_reason = reason
        self._inbox.put(lambda: None)

    # -- engine thread ------------------------------------------------------------------------------------------------

    def _accept(self, run: Run) -> None:
        if self._stopping:
            raise Draining("the server is shutting down", retry_after=1.0)
        if run.prompt_length >= run.request.max_length and run.request.sampling is not None:
            limit = run.request.max_length
            raise ContextTooLong(f"the context would be {run.prompt_length} tokens and leave no room for a reply; the limit is {limit}")
        self.scheduler.enqueue(run)
        for impossible, n_bytes in self.scheduler.impossible():
            if impossible is run:
                self.scheduler.drop(run)
                budget = self.pool.budget_bytes
                raise ContextTooLong(f"the context and its reply need {n_bytes} bytes of KV memory; the budget is {budget}")

    def _stop(self) -> None:
        self._stopping = True
        for run in [*self.scheduler.waiting(), *self.scheduler.active]:
            run.cancel_reason = FinishReason.CANCELLED

    def _loop(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        torch.get_num_threads()  # binds the number to this thread; later calls of set_num_threads elsewhere leave it alone
        self._ready.set()
        busy = False
        while not (self._stopping and not self.scheduler.active):
            try:
                self._drain_inbox(block=not busy)
                busy = self._turn()
            except Exception as error:
                # A bug in the books: the runs that they list end with it, the thread and the memory of other sessions live on.
                log.exception("engine turn failed")
                busy = False
                for run in [*self.scheduler.waiting(), *self.scheduler.active]:
                    self._fail(run, error)
        with self._gate:
            self._ended = True
        self._drain_inbox(block=False)

    def _turn(self) -> bool:
        """End, admit and step what there is; return whether the next turn may find something to do without news."""
        for run, reason in self.scheduler.expired(time.monotonic()):
            if run.state is RunState.RESTORING:
                run.cancel_reason = reason  # the loader asks before each block, and the rows stay claimed until it is done
            else:
                self._finish(run, reason)
        admitted = self.scheduler.admit()
        while self.scheduler.refused:
            self._finish(self.scheduler.refused.pop(), FinishReason.CANCELLED)
        for run in admitted:
            self.starter.start(run)
        step = self.scheduler.plan()
        if step:
            self._step(step)
        return bool(admitted or step)

    def _drain_inbox(self, *, block: bool) -> None:
        """Do what other threads asked for; with ``block``, wait for it or for the next deadline."""
        while True:
            deadline = self.scheduler.next_deadline() if block else None
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                work = self._inbox.get(block=block, timeout=timeout)
            except queue.Empty:
                return
            work()
            block = False

    def _step(self, step: Sequence[tuple[Run, Work]]) -> None:
        runs = [run for run, _ in step]
        started = time.monotonic()
        try:
            batch = build_batch(self.pool, [work for _, work in step], self.pool.shape.device)
            logits = self.runner.forward(batch)
            faults.point("engine.step")
            self._note(step, logits)
            finished = self._emit([run for run, work in step if work.logits and work.start is None], logits)
            self._publish([run for run in runs if not run.done])
        except Exception as error:
            log.exception("step failed for %d runs", len(runs))
            self.stats.failed_steps += 1
            for run in runs:
                self._fail(run, error)
            return
        finished += [(run, FinishReason.STOP) for run in runs if not run.done and is_complete(run, branch_of(run))]
        seconds = time.monotonic() - started
        self.speculator.learn(step, seconds)
        if any(run.guide is not None for run in runs):
            self.stats.guided_step_seconds += seconds
        for run in runs:
            run.num_steps += 1
        for run, reason in finished:
            self._finish(run, reason)
        for run in runs:
            run.wake_threadsafe()
        self._count(step)

    def _note(self, step: Sequence[tuple[Run, Work]], logits: Tensor) -> None:
        """Book what the step means for the exactness of each branch, before its tokens are sampled."""
        rows = iter(torch.split(logits, [len(work.logits) for _, work in step]))
        for run, work in step:
            branch, row = branch_of(run), next(rows)
            if run.request.background:
                note_background(run, branch, work, row)
                self.stats.reencoded += len(work.token_ids) if work.rewrite else 0
                continue
            position = branch.length - len(work.token_ids)
            if (work.compact or work.holes) and branch.approx_from is None:
                branch.approx_from = position
            if position >= run.prompt_length:
                run.num_decoded += 1
                run.attended_sum += _attended(branch, work) if work.compact else 1.0
            if branch.approx_from is not None and work.logits and not work.holes and len(run.decoded) < MAX_DECODED:
                run.decoded[branch.length - 1] = log_probabilities(row[-1])

    def _count(self, step: Sequence[tuple[Run, Work]]) -> None:
        self.stats.steps += 1
        self.stats.prefill_tokens += sum(n for run, work in step if (n := len(work.token_ids) - len(run.draft.token_ids)) > 1)
        for run, _ in step:
            run.draft = Drafted()

    def _emit(self, runs: Sequence[Run], logits: Tensor) -> list[tuple[Run, FinishReason]]:
        """Give each of ``runs`` the tokens that its rows of ``logits`` yield; return the runs that end with them.

        What was drafted in vain is forgotten. A run whose rows cannot be sampled fails alone.
        """
        finished = []
        before = sum(len(run.outputs) for run in runs)
        for run, ended in zip(runs, reply_each(self.sampler, runs, logits, self.stats.guiding), strict=True):
            if isinstance(ended, Exception):
                self._fail(run, ended)
                continue
            run.first_token = run.first_token or time.monotonic()
            branch = branch_of(run)
            if branch.length >= len(run.chain):
                self.pool.truncate(branch, len(run.chain) - 1)
            if ended is not None:
                finished.append((run, ended))
        self.stats.decode_tokens += sum(len(run.outputs) for run in runs) - before
        return finished

    def _publish(self, runs: Sequence[Run]) -> None:
        """Make the blocks that this step completed findable by other sessions."""
        size = self.pool.block_tokens
        for run in runs:
            branch = branch_of(run)
            first = run.num_published
            last = branch.length // size
            if last <= first:
                continue
            self.pool.publish(branch, run.chain.hashes, first)
            run.num_published = last
            self.scheduler.landed(run, run.chain.hashes[first:last])

    def _finish(self, run: Run, reason: FinishReason) -> None:
        self.scheduler.drop(run)
        self.speculator.close(run)
        run.recall = None
        if run.source is not None:  # it ended before its compact branch was there: the session keeps what it had
            if run.branch is not None:
                self.pool.release(run.branch)
            run.branch, run.source = run.source, None
        if run.branch is not None and run.branch.alive:
            self.pool.set_idle(run.branch)
        if run.reply_text is not None and reason is not FinishReason.STOP_STRING:
            run.tail_text = run.reply_text.finish()
        run.finish_reason = reason
        run.finished = time.monotonic()
        run.state = RunState.DONE
        run.wake_threadsafe()

    def _fail(self, run: Run, error: Exception) -> None:
        """End ``run`` with an error; its K and V may be half written, so the branch goes and will be recomputed."""
        self.scheduler.drop(run)
        self.speculator.close(run)
        run.recall = None
        for branch in (run.branch, run.source):
            if branch is not None:
                self.pool.release(branch)
        if isinstance(error, AgentMemError):
            run.error = error
        elif isinstance(error, (MemoryError, PoolFull, torch.OutOfMemoryError)):
            run.error = Overloaded("the device ran out of memory", reason="OUT_OF_MEMORY", retry_after=1.0)
        else:
            run.error = InternalError(f"the step failed: {type(error).__name__}: {error}")
        run.finished = time.monotonic()
        run.state = RunState.DONE
        run.wake_threadsafe()


def _attended(branch: Branch, work: Work) -> float:
    """Return the share of the tokens before and with the last one that a compact step read, on average over layers and heads."""
    root = branch.root
    if root is None:
        return 1.0
    recalled = 0.0 if work.recall is None else float(work.recall.counts.mean())
    layers = root.k.shape[0]
    dense = min(work.dense_layers, layers) / layers
    compact = (root.length + recalled + branch.length - root.covers) / branch.length
    return dense + (1 - dense) * compact
